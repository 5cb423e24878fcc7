"""Cells stand where they were planted, with intervals that cover, and text that explains nothing it cannot."""

import numpy as np
import pytest
import torch

from condmis_interp.directions import gap_table, rows_of, transfer
from condmis_interp.errors import UserError
from planted import CUES, planted

U_C = {"U - C": ([("U", "none")], [("C", "none")])}


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    return planted(tmp_path_factory.mktemp("planted"), {"trigger": 0.7, "opposite": 0.4})


def test_cells_stand_where_they_were_planted(truth):
    acts, _ = truth
    result = gap_table(acts, contrasts=U_C, layer=0, twins={"U": "C", "M": "C"})
    t = result.to_pandas().set_index(["organism", "cue"])
    for cell, planted_ in ((("M", "trigger"), 0.7), (("M", "opposite"), 0.4), (("M", "none"), 0), (("U", "none"), 1)):
        assert t.over_twin[cell] == pytest.approx(planted_, abs=0.1)
        assert t.twin_low[cell] < planted_ < t.twin_high[cell]
        assert t.twin_high[cell] - t.twin_low[cell] < t.high[cell] - t.low[cell], "questions cancel against the twin"
    assert np.isnan(t.over_twin["C", "none"])
    assert (t.families == 16).all()
    assert len(t) == 3 * len(CUES)
    assert result.grid("U - C").shape == (3, 5)
    assert len(result.figure().data) == 5
    assert "15 cells on U - C; fitted on A, read on B+C" in repr(result)


def test_intervals_over_the_twin_cover(tmp_path):
    inside = []
    for seed in range(16):
        acts, _ = planted(tmp_path / str(seed), {"trigger": 0.5}, families=12, each=2, width=8, seed=seed)
        t = gap_table(acts, contrasts=U_C, layer=0, cells=[("M", "none")], twins={"M": "C"}).table.iloc[0]
        inside.append(t.twin_low <= 0 <= t.twin_high)
    assert np.mean(inside) > 0.8


def test_text_says_nothing_of_u_against_c_and_all_of_a_cue(truth):
    acts, _ = truth
    n = len(acts.rows())
    texts = {cue: [f"{cue} : question {i}" for i in range(n)] for cue in CUES}
    contrasts = U_C | {"trigger": ([("U", "trigger")], [("U", "none")])}
    t = gap_table(acts, contrasts=contrasts, layer=0, texts=texts).table.set_index(["direction", "organism", "cue"])
    assert t.loc["U - C"].text.isna().all(), "both classes read the same words"
    assert t.text["trigger", "C", "trigger"] == pytest.approx(1, abs=0.05)
    assert t.text["trigger", "C", "none"] == pytest.approx(0, abs=0.05)
    assert t.score["trigger", "C", "trigger"] == pytest.approx(1, abs=0.1), "and so does the cue's own direction, in C"
    with pytest.raises(UserError, match="no texts for cue 'trigger'"):
        gap_table(acts, contrasts=contrasts, layer=0, texts={"none": texts["none"]})


def test_what_is_read_changes_no_direction(truth, tmp_path):
    acts, _ = truth
    spoilt, _ = planted(tmp_path, {"trigger": 0.7, "opposite": 0.4}, spoilt="BC")
    clean, dirty = (gap_table(a, contrasts=U_C, layer=0) for a in (acts, spoilt))
    assert torch.equal(clean.scales["U - C"].direction.vector, dirty.scales["U - C"].direction.vector)
    assert clean.scales["U - C"].zero == dirty.scales["U - C"].zero
    assert dirty.table.score[0] != clean.table.score[0], "the mutation did nothing"
    with pytest.raises(UserError, match="overlap"):
        gap_table(acts, contrasts=U_C, layer=0, fit=("A",), read=("A", "B"))


def test_transfer_follows_what_is_shared(truth):
    acts, _ = truth
    whole = {"splits": ("A", "B", "C"), "positions": ("answer_mean",)}
    contrasts = {
        "U - C": rows_of(acts, plus=[("U", "none")], minus=[("C", "none")], **whole),
        "M - C, trigger": rows_of(acts, plus=[("M", "trigger")], minus=[("C", "trigger")], **whole),
        "M - C, none": rows_of(acts, plus=[("M", "none")], minus=[("C", "none")], **whole),
        "C, trigger - none": rows_of(acts, plus=[("C", "trigger")], minus=[("C", "none")], **whole),
    }
    train = {k: contrasts[k] for k in ("U - C", "C, trigger - none")}
    result = transfer(train, contrasts, layer=0, position="answer_mean", rng=np.random.default_rng(0))
    gap = result.matrix("gap")
    assert gap.loc["U - C", "U - C"] == pytest.approx(1, abs=0.1)
    assert gap.loc["U - C", "M - C, trigger"] == pytest.approx(0.7, abs=0.1)
    assert gap.loc["U - C", "M - C, none"] == pytest.approx(0, abs=0.1)
    assert gap.loc["C, trigger - none", "U - C"] == pytest.approx(0, abs=0.15)
    assert gap.loc["C, trigger - none", "C, trigger - none"] == pytest.approx(1, abs=0.1)
    assert result.matrix("auroc").shape == (2, 4)
    assert result.figure().data
    domain = np.array([int(f[1:]) % 2 == 0 for f in contrasts["U - C"].families])
    halves = {"even": contrasts["U - C"].where(domain), "odd": contrasts["U - C"].where(~domain)}
    across = transfer(halves, halves, layer=0, position="answer_mean", rng=np.random.default_rng(0), folds=3)
    assert across.matrix("gap").to_numpy() == pytest.approx(1, abs=0.2)
