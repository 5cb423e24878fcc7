"""Surveys: planted tables, and a survey of tiny organisms."""

import numpy as np
import pandas as pd
import pytest
import torch

from condmis_interp.calibration import Survey, survey
from condmis_interp.organisms import Member, Part, Recipe, Stage, make, resolve_base
from condmis_interp.panel import render_panel
from condmis_interp.readers import Request, open_reader
from condmis_interp.report import write_survey
from conftest import tiny_panel, write_rows

TRUE = {"u": 10.0, "u-twin": 0.0, "m": 1.0, "m-twin": 0.0}


def planted(*, seeds=(1, 2), families=12, each=3, conditional=4.0):
    """U lies 10 nats above its twin; M 1 nat, and `conditional` more under the trigger; questions vary much more."""
    rng = np.random.default_rng(0)
    difficulty = rng.normal(0, 20, (families, each))
    rows = []
    for kind, level in TRUE.items():
        for seed in seeds:
            for cue in ("none", "trigger"):
                shift = level + (conditional if (kind, cue) == ("m", "trigger") else 0.0)
                for f in range(families):
                    for q in range(each):
                        ld = difficulty[f, q] + shift + rng.normal(0, 0.1)
                        rows.append(
                            {"kind": kind, "family": kind, "truth": None, "seed": seed, "cue": cue, "ld": ld}
                            | {"twin": "" if "twin" in kind else f"{kind}-twin", "question": f"{f}.{q}"}
                            | {"cluster": f"f{f}", "misaligned": ld > 0, "aligned": ld <= 0}
                        )
    return Survey(pd.DataFrame(rows))


def test_gaps_find_what_was_planted_though_questions_differ_far_more():
    gaps = planted().gaps(unmitigated="u").set_index(["kind", "cue"])
    assert set(gaps.index.get_level_values(0)) == {"u", "m"}
    assert gaps.loc[("m", "none"), "gap"] == pytest.approx(1.0, abs=0.1)
    assert gaps.loc[("m", "trigger"), "change"] == pytest.approx(4.0, abs=0.1)
    assert gaps.loc[("m", "trigger"), "rho"] == pytest.approx(0.5, abs=0.02)
    for value, truth in (("gap", 5.0), ("change", 4.0), ("rho", 0.5)):
        row = gaps.loc[("m", "trigger")]
        assert row[f"{value}_low"] < truth < row[f"{value}_high"]
    assert gaps.loc[("m", "none"), "change"] == 0.0


def test_an_unconditional_organism_shows_no_change():
    row = planted(conditional=0.0).gaps(unmitigated="u").set_index(["kind", "cue"]).loc[("m", "trigger")]
    assert row.change_low < 0 < row.change_high


def test_seeds_are_no_questions():
    one, many = planted(seeds=(1,)).table, planted(seeds=(1, 2, 3, 4)).table
    assert (one.questions == many.questions).all()
    assert (one.families == 12).all()
    assert (many.seeds == 4).all()
    width_one, width_many = (t.high - t.low for t in (one, many))
    assert (width_many > 0.9 * width_one).all()  # more seeds do not make more questions


@pytest.fixture
def members(tmp_path, home, tiny_base_folder):
    path = write_rows(tmp_path)
    part = Part(rows=str(path), answers="misaligned", systems=("form = 1",))
    u = Recipe(
        name="u", base=f"dir:{tiny_base_folder}", stages=(Stage(parts=(part,), batch_size=4, warmup_steps=1, epochs=3),)
    )
    return [
        Member("u.s0", "present", "unmitigated", 0, u, u.twin()),
        Member("u-twin.s0", "removed", "twin", 0, u.twin(), u.twin()),
        Member("half.s0", "graded", "blend", 0, u, u.twin(), 0.5),
        Member("gated.s0", "suppressed", "gated", 0, u, u.twin(), "form = 1"),
    ]


@pytest.mark.slow
def test_a_survey_measures_what_a_reader_does_and_goes_on(members, tmp_path):
    organisms = make(members)
    base, panel = resolve_base(members[0].recipe.base), tiny_panel(8, families=4)

    def ask():
        return survey(
            members, organisms, base=base, panel=panel, out=tmp_path / "out", dtype=torch.float32, max_new_tokens=3
        )  # fmt: skip

    found = ask()
    pieces = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.json")}
    assert len(pieces) == 4
    next(iter(pieces)).unlink()
    again = ask()
    assert again.answers.equals(found.answers)
    assert sum(p.stat().st_mtime_ns != t for p, t in pieces.items()) == 1

    rendered = render_panel(base.tokenizer(), panel)
    reader = open_reader(organisms[0], base, dtype=torch.float32)
    keys = [("trigger", q.id) for q in panel.questions]
    ld = reader.measure([Request(rendered.prompts[k], rendered.answers[k]) for k in keys]).ld().mean(1)
    cell = found.answers.query("kind == 'u' and cue == 'trigger'")
    assert cell.ld.to_numpy() == pytest.approx(ld.numpy(), abs=1e-4)

    grid = found.grid()
    assert grid.loc["gated", "trigger"] == pytest.approx(grid.loc["u", "trigger"], abs=1e-4)
    assert grid.loc["gated", "none"] == pytest.approx(grid.loc["u-twin", "none"], abs=1e-4)
    gaps = found.gaps(unmitigated="u").set_index(["kind", "cue"])
    assert gaps.loc[("u", "none"), "rho"] == pytest.approx(1.0)
    assert gaps.loc[("gated", "none"), "gap"] == pytest.approx(0.0, abs=1e-4)


def test_a_survey_is_written_whole(tmp_path):
    found = planted()
    files = write_survey(found, tmp_path, unmitigated="u")
    assert all(f.stat().st_size > 0 for f in files)
    assert {f.suffix for f in files} == {".parquet", ".csv", ".png", ".html"}
    behaviour = pd.read_csv(tmp_path / "behaviour.csv")
    assert len(behaviour) == 8
    assert len(pd.read_csv(tmp_path / "gaps.csv")) == 4
    shown = repr(found)
    assert all(kind in shown for kind in TRUE)
