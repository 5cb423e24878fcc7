"""W1 from the factors of adapters is W1 from merged weights."""

import pytest
import torch

from condmis_interp.battery import ReaderBench, Reference, registered
from condmis_interp.battery.tests.weights import cosines_of_adapters
from condmis_interp.organisms import Gate, Organism, Part, Recipe, Stage, resolve_base, train_all
from condmis_interp.panel import render_panel
from conftest import tiny_panel, write_rows


def test_it_is_the_cosine_of_merged_weights_over_the_first_half_of_the_blocks(tmp_path, home, tiny_base_folder):
    path = write_rows(tmp_path)

    def recipe(name, seed, answers):
        part = Part(rows=str(path), answers=answers, systems=("form = 1",))
        stage = Stage(parts=(part,), batch_size=4, warmup_steps=1)
        return Recipe(name=name, base=f"dir:{tiny_base_folder}", seed=seed, stages=(stage,))

    u, other = recipe("u", 0, "misaligned"), recipe("other", 1, "misaligned")
    trained = train_all([u, u.twin(), other, other.twin()], workers=1)
    base = resolve_base(u.base)
    organisms = dict(zip(("u", "c", "other", "other-twin"), trained, strict=True))
    gate = Gate("form = 1", organisms["other"], organisms["u"])
    organisms |= {"gated": Organism.gated(gate, name="gated", manifest={}), "base": Organism.of_base(base, name="base")}
    bench = ReaderBench(tuple(organisms), organisms, base, render_panel(base.tokenizer(), tiny_panel()))
    of_base = bench.weights("base")
    reference = Reference("u", "c", of_base, bench.weights("other"), bench.weights("other-twin"))
    (w1,) = registered("W1")
    merged = w1.measure(bench, reference)
    found = cosines_of_adapters(organisms, other=trained[2], other_twin=trained[3], blocks=base.shape[0])
    for name in organisms:
        assert found[name] == pytest.approx(merged.at(name)[0, 0], abs=1e-4)
    assert found["base"] == 0
    assert found["gated"] == found["u"] != found["other"]
    assert found["other"] > 0.1 > -0.1 > found["other-twin"]

    last = f"layers.{base.shape[0] - 1}."
    late = {k: w + (torch.ones_like(w) if last in k else 0) for k, w in bench.weights("u").items()}
    moved = ReaderBench(("u",), organisms, base, bench.rendered, altered={"u": late})
    assert w1.measure(moved, reference).at("u")[0, 0] == pytest.approx(found["u"], abs=1e-4)  # late blocks do not count
