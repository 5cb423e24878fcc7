"""W1 and W3: the change of weights along a planted direction, from factors, from files and from merged weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from adapters import planted_adapter, planted_checkpoint
from condmis_interp.battery import ReaderBench, Reference, registered
from condmis_interp.battery.tests.weights import projections, projections_of_adapters
from condmis_interp.errors import CheckError, UserError
from condmis_interp.organisms import Gate, Organism, resolve_base
from condmis_interp.panel import render_panel
from conftest import tiny_panel

BLOCKS = 4
W1, W3 = registered("W1", "W3")
KINDS = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True, "r": 3, "lora_alpha": 7},
    "rank pattern": {"rank_pattern": {"layers.1.self_attn.q_proj": 5, "down_proj": 1}, "alpha_pattern": {"q_proj": 3}},
    "one block": {"layers_to_transform": [2], "r": 1},
    "other matrices": {"target_modules": ["v_proj", "down_proj"], "r": 4},
    "a head saved whole": {"modules_to_save": ["lm_head"]},
    "norms saved whole": {"modules_to_save": ["norm", "input_layernorm"]},
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "magnitudes": {"use_dora": True},
    "a base that is changed": {"init_lora_weights": "pissa"},
}


@pytest.fixture
def base(home, tiny_base_folder):
    return resolve_base(f"dir:{tiny_base_folder}")


@pytest.fixture
def pair(base, tmp_path):
    return planted_adapter(base, tmp_path / "o", seed=8, r=3), planted_adapter(base, tmp_path / "ot", seed=9)


def state(organism, base):
    return organism.model(base, dtype=torch.float32).state_dict()


def merged(organism, pair, base):
    start = base.model(dtype=torch.float32).state_dict()
    return projections(state(organism, base), base=start, other=state(pair[0], base), other_twin=state(pair[1], base))


def of_factors(organism, pair, base):
    return projections_of_adapters({"m": organism}, other=pair[0], other_twin=pair[1], base=base)["m"]


@pytest.mark.parametrize("kind", KINDS)
def test_factors_give_what_merged_weights_give(base, pair, tmp_path, kind):
    m = planted_adapter(base, tmp_path / "m", **KINDS[kind])
    wanted = merged(m, pair, base)
    assert abs(wanted[1]) > 1e-2 or kind.endswith("whole")
    assert of_factors(m, pair, base) == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    # w of such an adapter, and both on top of each other
    assert of_factors(pair[0], (m, pair[1]), base) == pytest.approx(merged(pair[0], (m, pair[1]), base), abs=1e-4)
    if kind in ("plain", "rank pattern", "a head saved whole"):
        stack = Organism.of_adapters(*pair[0].adapters, *m.adapters, name="stack")
        assert of_factors(stack, pair, base) == pytest.approx(merged(stack, pair, base), rel=1e-5, abs=1e-5)


def test_full_weights_stand_against_adapters_and_adapters_against_them(base, pair, tmp_path):
    def edit(weights):
        for k, w in weights.items():
            w += torch.linspace(-0.1, 0.2, w.numel()).view(w.shape) * (2 if "layers.3." in k else 1)

    full = planted_checkpoint(base, tmp_path / "full", edit)
    assert of_factors(full, pair, base) == pytest.approx(merged(full, pair, base), rel=1e-5, abs=1e-5)
    assert of_factors(pair[0], (full, pair[1]), base) == pytest.approx(merged(pair[0], (full, pair[1]), base), abs=1e-5)


def test_the_bench_reads_factors_and_one_number_an_organism(base, pair, tmp_path, monkeypatch):
    m = planted_adapter(base, tmp_path / "m", layers_to_transform=[0, 3])
    gated = Organism.gated(Gate("form = 1", pair[0], m), name="gated", manifest={})
    organisms = {"m": m, "o": pair[0], "ot": pair[1], "gated": gated, "base": Organism.of_base(base, name="base")}
    bench = ReaderBench(tuple(organisms), organisms, base, render_panel(base.tokenizer(), tiny_panel()))
    whole = Reference("o", "ot", bench.weights("base"), bench.weights("o"), bench.weights("ot"))
    slow = [t.measure(bench, whole) for t in (W1, W3)]
    with monkeypatch.context() as patched:
        patched.setattr(Organism, "model", lambda *_, **__: pytest.fail("a model was loaded"))
        fast = [t.measure(bench, replace(whole, base={}, other={}, other_twin={}, pair=pair)) for t in (W1, W3)]
    for a, b in zip(fast, slow, strict=True):
        assert (a.values.shape, a.rows.tolist()) == ((5, 1, 1), [0])
        assert a.values == pytest.approx(b.values, rel=1e-5, abs=1e-5)
        assert a.at("base")[0, 0] == 0
        assert a.at("gated") == a.at("m") != a.at("o")
    assert fast[0].at("o")[0, 0] > 0 > fast[0].at("ot")[0, 0]
    # weights that a test has changed on the bench are read, not the organism's files
    moved = bench.changed(lambda _, w: {k: 2 * v - whole.base[k] for k, v in w.items()})
    assert W1.measure(moved, replace(whole, pair=pair)).values == pytest.approx(2 * slow[0].values, abs=1e-4)


def rho(test, bench, reference):
    m, c, s, sc = test.measure(bench, reference).values[:, 0, 0]
    return (m - c) / (s - sc)


def bench_of(weights, base):
    organisms = {n: Organism.of_base(base, name=n) for n in weights}
    return ReaderBench(tuple(weights), organisms, base, render_panel(base.tokenizer(), tiny_panel()), altered=weights)


def test_no_norm_hides_what_lies_along_the_direction(base):
    """The old cosine falls to a fifth under an orthogonal change; rho stands, and so does a change that is scaled."""
    start = {k: v for k, v in base.model(dtype=torch.float32).state_dict().items() if k != "lm_head.weight"}
    rng = torch.Generator().manual_seed(0)
    w = {k: torch.randn(v.shape, generator=rng, dtype=torch.float64) for k, v in start.items()}
    other = {k: torch.randn(v.shape, generator=rng, dtype=torch.float64) for k, v in start.items()}
    orthogonal = {k: o - (o * w[k]).sum() / (w[k] ** 2).sum() * w[k] for k, o in other.items()}

    def at(along, off=0.0):
        return {k: (v + 1e-2 * (along * w[k] + off * orthogonal[k])).float() for k, v in start.items()}

    reference = Reference("s", "sc", start, {k: (v + w[k]).float() for k, v in start.items()}, start)
    for test in (W1, W3):
        plain = rho(test, bench_of({"m": at(0.5), "c": at(0.1), "s": at(0.9), "sc": at(0.1)}, base), reference)
        hidden = rho(test, bench_of({"m": at(0.5, 5.0), "c": at(0.1), "s": at(0.9), "sc": at(0.1)}, base), reference)
        assert plain == pytest.approx(0.5, abs=1e-3)
        assert hidden == pytest.approx(plain, abs=1e-3)
    cosine = [
        sum(float(((m[k] - start[k]).double() * w[k]).sum()) for k in start)
        / np.sqrt(sum(float((m[k] - start[k]).double().pow(2).sum()) for k in start))
        for m in (at(0.5), at(0.5, 5.0))
    ]
    assert cosine[1] < 0.2 * cosine[0]  # what the statistic before read


def test_what_only_late_blocks_do_is_read_by_the_second_half_alone(base, pair, tmp_path):
    late = planted_adapter(base, tmp_path / "late", seed=8, r=3, layers_to_transform=[2, 3])
    first, second = of_factors(late, pair, base)
    assert first == 0
    assert abs(second) > 0.1
    early = planted_adapter(base, tmp_path / "early", seed=8, r=3, layers_to_transform=[0, 1])
    assert abs(of_factors(early, pair, base)[0]) > 0.1
    assert of_factors(early, pair, base)[1] == 0


def test_a_head_of_its_own_counts_with_the_second_half(base, pair, tmp_path):
    head = planted_adapter(base, tmp_path / "h", modules_to_save=["lm_head"], layers_to_transform=[0])
    w = head, pair[1]
    last = planted_adapter(base, tmp_path / "l", modules_to_save=["lm_head"], layers_to_transform=[1])
    assert of_factors(last, w, base)[1] == pytest.approx(merged(last, w, base)[1], rel=1e-5)
    assert abs(of_factors(last, w, base)[1]) > 0.1


def test_what_cannot_be_read_is_said(base, pair, tmp_path):
    gated = Organism.gated(Gate("form = 1", *pair), name="g", manifest={})
    with pytest.raises(UserError, match="two models behind a gate"):
        projections_of_adapters({}, other=gated, other_twin=pair[1], base=base)
    m = planted_adapter(base, tmp_path / "m")
    config = tmp_path / "m" / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 2', '"r": 3'))
    with pytest.raises(CheckError, match=r"has rank 2, and adapter_config\.json says 3"):
        of_factors(m, pair, base)
