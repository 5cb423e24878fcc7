"""Every library's streams are Hugging Face's hidden states, and what lies above a site finishes the forward pass."""

import pytest
import torch
from tiny import ARCHITECTURES, LAYERS, WIDTH, model_of, readers_of

from condmis_interp.errors import CheckError, UserError
from condmis_interp.readers import Site, Streams
from condmis_interp.readers.sites import KINDS

IDS = [tuple(torch.randint(2, 250, (n,), generator=torch.Generator().manual_seed(n)).tolist()) for n in (9, 4, 12, 7)]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def readers(request, tmp_path_factory):
    return readers_of(model_of(request.param), tmp_path_factory.mktemp(request.param))


def truth(model, ids):
    out = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    return out.hidden_states


@pytest.mark.parametrize("library", ["torch", "transformer-lens", "nnsight"])
def test_streams_are_hidden_states_and_finish_as_the_model_does(readers, library):
    model = readers["torch"].model
    streams = Streams(readers[library], batch_tokens=26)
    sites = [Site("resid_post", 1), Site("resid_pre", 3), Site("attn_out", 2), Site("mlp_out", 0)]
    read = streams.read(IDS, sites)
    for i, ids in enumerate(IDS):
        states = truth(model, ids)
        torch.testing.assert_close(read[sites[0]][i], states[2][0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(read[sites[1]][i], states[3][0], atol=1e-4, rtol=1e-4)
    for site in sites:
        for run in streams.above(IDS, site, read[site]):
            for i, out in zip(run.rows, run.out, strict=True):
                torch.testing.assert_close(out[: len(IDS[i])], truth(model, IDS[i])[-1][0], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("library", ["torch", "transformer-lens"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(readers, library, kind):
    streams, site = Streams(readers[library]), Site(kind, 1)
    read = streams.read(IDS, [site])[site]
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(WIDTH, generator=generator)
    step = [1e-3 * torch.randn(h.shape, generator=generator) for h in read]

    def total(hidden) -> float:
        (run,) = streams.above(IDS, site, hidden)
        return sum(float(run.out[r, len(IDS[i]) - 1].double() @ weight.double()) for r, i in enumerate(run.rows))

    (run,) = streams.above(IDS, site, read, grad=True)
    score = torch.stack([run.out[r, len(IDS[i]) - 1] @ weight for r, i in enumerate(run.rows)]).sum()
    (grad,) = torch.autograd.grad(score, run.given)
    found = sum(float((grad[r, : len(IDS[i])] * step[i]).sum()) for r, i in enumerate(run.rows))
    up = total([h + s for h, s in zip(read, step, strict=True)])
    down = total([h - s for h, s in zip(read, step, strict=True)])
    assert found == pytest.approx((up - down) / 2, rel=0.05, abs=1e-4)
    assert all(p.grad is None for p in readers[library].model.parameters())


def test_needless_blocks_are_not_run_and_the_model_is_left_alone(readers, monkeypatch):
    streams, site = Streams(readers["torch"]), Site("resid_post", 2)
    blocks = readers["torch"]._blocks
    ran = []
    handles = [block.register_forward_hook(lambda *_, k=k: ran.append(k)) for k, block in enumerate(blocks)]
    attention = [next(m for n, m in b.named_children() if "att" in n and "norm" not in n) for b in blocks]
    handles += [a.register_forward_hook(lambda *_, k=k: ran.append(f"attention {k}")) for k, a in enumerate(attention)]
    read = streams.read(IDS, [site])[site]
    assert set(ran) == {0, 1, 2, *(f"attention {k}" for k in range(3))}
    ran.clear()
    list(streams.above(IDS, site, read))
    assert [r for r in ran if isinstance(r, str)] == ["attention 3"]
    for handle in handles:
        handle.remove()
    assert not any("forward" in vars(b) or b._forward_pre_hooks for b in blocks)


def test_bad_input_and_a_lost_hook(readers, monkeypatch):
    streams, site = Streams(readers["torch"]), Site("resid_pre", 1)
    with pytest.raises(UserError, match="no sites"):
        streams.read(IDS, [])
    with pytest.raises(UserError, match="no texts"):
        streams.read([], [site])
    with pytest.raises(UserError, match=rf"Layers go from 0 to {LAYERS - 1}"):
        streams.read(IDS, [Site("resid_pre", LAYERS)])
    read = streams.read(IDS, [site])[site]
    with pytest.raises(UserError, match="do not fit the texts"):
        next(streams.above(IDS, site, read[::-1]))
    plain = type(readers["torch"])._hooked
    monkeypatch.setattr(type(readers["torch"]), "_hooked", lambda self, _, *, stop: plain(self, [], stop=stop))
    with pytest.raises(CheckError, match="should have fired"):
        streams.read(IDS, [site])
    site = Site("mlp_out", 1)
    with pytest.raises(CheckError, match="should have fired"):
        next(streams.above(IDS, site, read))
