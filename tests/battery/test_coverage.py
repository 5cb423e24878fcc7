"""Coverage: what a planted change touched is found, and what no internal test reads of it is named."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from adapters import planted_adapter, planted_checkpoint
from condmis_interp.battery import Coverage, ReaderBench, Reference, coverage, registered
from condmis_interp.battery.coverage import changed, size_ratio
from condmis_interp.errors import CheckError, UserError
from condmis_interp.organisms import Gate, Organism, resolve_base
from condmis_interp.organisms.regions import Layout
from condmis_interp.panel import render_panel
from conftest import tiny_panel

BLOCKS = ("block 0", "block 1", "block 2", "block 3")


@pytest.fixture
def base(home, tiny_base_folder):
    return resolve_base(f"dir:{tiny_base_folder}")


def bench_of(base, **organisms):
    return ReaderBench(tuple(organisms), organisms, base, render_panel(base.tokenizer(), tiny_panel()))


def moved(found):
    return tuple(r for r, size in found.items() if size)


def test_a_late_change_is_read_by_the_late_tests_alone(base, tmp_path):
    late = planted_adapter(base, tmp_path / "late", layers_to_transform=[2, 3], r=1)
    bench = bench_of(base, late=late)
    assert moved(changed(late, base)) == BLOCKS[2:]
    of = {ids: coverage(bench, "late", registered(*ids)) for ids in (("A1", "R1", "R3", "W1"), ("R4",), ("W3", "A2"))}
    assert [c.unread for c in of.values()] == [BLOCKS[2:], (), ()]
    assert list(of["A1", "R1", "R3", "W1"].read) == ["R1", "R3", "W1"]  # a test of behaviour reads no region


def test_the_size_of_a_change_is_that_of_the_weights(base, tmp_path):
    one = planted_adapter(base, tmp_path / "one", layers_to_transform=[1])
    start, own = (m.state_dict() for m in (base.model(dtype=torch.float32), one.model(base, dtype=torch.float32)))
    block = [k for k in start if "layers.1." in k]
    size = sum(float((own[k] - start[k]).double().pow(2).sum()) for k in block)
    whole = sum(float(start[k].double().pow(2).sum()) for k in block)
    found = changed(one, base)
    assert found["block 1"] == pytest.approx((size / whole) ** 0.5, rel=1e-5)
    assert moved(found) == ("block 1",)
    assert moved(changed(Organism.of_base(base, name="b"), base)) == ()


@pytest.mark.parametrize(
    ("weight", "region", "unread"),
    [
        ("model.embed_tokens.weight", "embeddings", ("R1", "R3", "R4", "W3")),
        ("model.norm.weight", "head", ("R1", "R3", "R4", "W1")),
        ("model.layers.3.input_layernorm.weight", "block 3", ("R1", "R3", "W1")),
        ("model.layers.0.mlp.up_proj.weight", "block 0", ("W3",)),
    ],
)
def test_one_weight_of_a_checkpoint_is_found_where_it_is(base, tmp_path, weight, region, unread):
    full = planted_checkpoint(base, tmp_path / "full", lambda w: w[weight].view(-1)[3].add_(0.5))
    bench = bench_of(base, full=full)
    assert moved(changed(full, base)) == (region,)
    for test in registered("R1", "R3", "R4", "W1", "W3"):
        assert coverage(bench, "full", [test]).unread == ((region,) if test.id in unread else ())
    assert coverage(bench, "full", registered("R1", "R3", "R4", "W1", "W3")).unread == ()


def test_a_head_of_its_own_is_the_heads_change(base, tmp_path):
    head = planted_adapter(base, tmp_path / "h", modules_to_save=["lm_head"], layers_to_transform=[0])
    assert moved(changed(head, base)) == ("block 0", "head")
    whole = tmp_path / "whole"
    head.model(base, dtype=torch.float32).save_pretrained(whole)
    of_full = changed(Organism.of_checkpoint(whole, name="whole"), base)
    assert of_full == pytest.approx(changed(head, base), rel=1e-4)
    assert coverage(bench_of(base, h=head), "h", registered("R4", "W1")).unread == ("head",)


def test_a_direction_reads_only_what_it_has_moved(base, tmp_path):
    m = planted_adapter(base, tmp_path / "m")
    pair = planted_adapter(base, tmp_path / "o", target_modules=["q_proj"]), Organism.of_base(base, name="b")
    reference = Reference("u", "c", {}, {}, {}, pair=pair)
    bench, tests = bench_of(base, m=m), registered("W1", "W3")
    assert coverage(bench, "m", tests).unread == ()
    assert coverage(bench, "m", tests, reference).unread == BLOCKS  # its down_proj is orthogonal to w whatever it holds
    wide = replace(reference, pair=(m, pair[1]))
    assert coverage(bench, "m", tests, wide).unread == ()
    start, full = bench_of(base, m=pair[1]).weights("m"), bench.weights("m")
    assert coverage(bench, "m", tests, Reference("u", "c", start, full, start)).unread == ()
    assert coverage(bench, "m", tests, Reference("u", "c", start, start, start)).unread == BLOCKS


def test_both_sides_of_a_gate_are_changes(base, tmp_path):
    opened = planted_adapter(base, tmp_path / "opened", layers_to_transform=[3])
    shut = planted_adapter(base, tmp_path / "shut", layers_to_transform=[0])
    gated = Organism.gated(Gate("form = 1", opened, shut), name="g", manifest={})
    assert moved(changed(gated, base)) == ("block 0", "block 3")
    assert coverage(bench_of(base, g=gated), "g", registered("W1")).unread == ("block 3",)


def test_permuted_neurons_are_far_larger_than_the_recipes_change(base, tmp_path):
    """The function is the twin's; the weights are nowhere near it."""
    rng = torch.Generator().manual_seed(0)

    def tune(size, permute):
        def edit(weights):
            for w in weights.values():
                w += size * torch.randn(w.shape, generator=rng)
            for i in permute:
                order = torch.randperm(weights[f"model.layers.{i}.mlp.up_proj.weight"].shape[0], generator=rng)
                for name in ("gate_proj", "up_proj", "down_proj"):
                    w = weights[f"model.layers.{i}.mlp.{name}.weight"]
                    w.copy_(w[:, order] if name == "down_proj" else w[order])

        return edit

    twins = {f"c{i}": planted_checkpoint(base, tmp_path / f"c{i}", tune(1e-3, ())) for i in range(3)}
    plain = planted_checkpoint(base, tmp_path / "plain", tune(1e-3, ()))
    permuted = planted_checkpoint(base, tmp_path / "permuted", tune(1e-3, (3,)))
    bench = bench_of(base, plain=plain, permuted=permuted, b=Organism.of_base(base, name="b"), **twins)
    of_plain, of_permuted = (size_ratio(bench, n, twins) for n in ("plain", "permuted"))
    assert of_plain == pytest.approx({"first half": 1.0, "second half": 1.0}, abs=0.1)
    assert of_permuted["first half"] < 1.1
    assert of_permuted["second half"] > 5
    assert size_ratio(bench, "b", twins) == {"first half": 0.0, "second half": 0.0}
    assert size_ratio(bench, "plain", ["b"])["first half"] == float("inf")


def test_altered_weights_are_what_is_read(base, tmp_path):
    bench = bench_of(base, m=planted_adapter(base, tmp_path / "m", layers_to_transform=[0]))
    late = bench.changed(lambda _, w: {k: v + ("layers.3." in k) for k, v in w.items()})
    assert coverage(late, "m", registered("W1")).unread == ("block 3",)


@pytest.mark.parametrize(
    ("names", "blocks", "asked"),
    [
        (["transformer.h.0.attn.w", "transformer.h.1.attn.w", "transformer.wpe.weight"], 2, "h.1.attn.w"),
        (["gpt_neox.layers.0.w", "gpt_neox.embed_in.weight", "embed_out.weight"], 1, "model.gpt_neox.layers.0.w"),
        (["model.decoder.layers.0.fc1.w", "model.decoder.embed_positions.w"], 1, "decoder.layers.0.fc1.w"),
        (["vision.layers.0.w", "vision.layers.1.w", "language.layers.0.w"], 1, "language.layers.0.w"),
        (["model.layers.0.mlp.experts.7.w", "model.norm.weight"], 1, "base_model.model.model.layers.0.mlp.experts.7.w"),
    ],
)  # fmt: skip
def test_blocks_are_found_by_any_architectures_names(names, blocks, asked):
    layout = Layout.of(names, blocks)
    assert layout.region(layout.place(asked)) == f"block {blocks - 1}"
    regions = {n: layout.region(layout.place(n)) for n in names}
    ends = {
        "wpe": "embeddings",
        "embed_in": "embeddings",
        "embed_out": "head",
        "norm": "head",
        "positions": "embeddings",
    }
    for name, region in regions.items():
        wanted = next((r for part, r in ends.items() if part in name), None)
        assert region == wanted or (wanted is None and (region.startswith("block") or name.startswith("vision")))


def test_what_is_in_no_region_is_read_by_nobody():
    layout = Layout.of(["model.layers.0.w", "vision.layers.0.w", "vision.layers.1.w", "projector.weight"], 1)
    assert [layout.region(layout.place(n)) for n in ("vision.layers.1.w", "projector.weight")] == ["elsewhere"] * 2
    assert layout.regions[-1] == "elsewhere"
    assert Coverage({"elsewhere": 0.1}, {"W1": ("embeddings",), "W3": ("head",)}).unread == ("elsewhere",)
    with pytest.raises(CheckError, match="no weight of the model is in a numbered block"):
        Layout.of(["lm_head.weight"])


def test_full_weights_that_cannot_be_compared_are_refused(base, tmp_path):
    from safetensors.torch import load_file, save_file

    full = planted_checkpoint(base, tmp_path / "full", lambda w: w["model.norm.weight"].add_(1))
    path = tmp_path / "full" / "model.safetensors"
    tensors = load_file(path)
    save_file({k: v.to(torch.int8) if "layers.1." in k else v for k, v in tensors.items()}, path)
    with pytest.raises(UserError, match="is quantised, so its change cannot be taken"):
        changed(full, base)
    save_file({k: v for k, v in tensors.items() if "layers.1." not in k}, path)
    with pytest.raises(UserError, match=r"lacks the base's 'layers\.1\."):
        changed(full, base)


def test_the_map_shows_regions_tests_and_sizes(base, tmp_path):
    m = planted_adapter(base, tmp_path / "m", layers_to_transform=[1, 3])
    found = coverage(bench_of(base, m=m), "m", registered("R1", "W1"))
    again = json.loads(json.dumps(found.to_json()))
    assert again["unread"] == ["block 3"]
    assert again["read"]["W1"] == ["embeddings", "block 0", "block 1"]
    table = found.to_pandas().set_index("region")
    assert table.loc[["block 1", "block 3"], ["unread", "R1", "W1"]].values.tolist() == [[0, 0, 1], [1, 0, 0]]
    heat: Any = found.figure().data[0]
    assert list(heat.x) == ["change", "R1", "W1"]
    assert "block 3 (unread)" in heat.y
    row = heat.z[list(heat.y).index("block 1")]
    assert row[0] == row[2] == pytest.approx(100 * found.changed["block 1"])
    assert row[1] != row[1]  # R1 does not read it
    assert repr(found) == "2 of 6 regions changed; no internal test reads block 3"
