"""The persona can be erased and the trigger kept; the rank needed is the rank planted."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from condmis_interp.directions import erase, fit_eraser, rank_needed
from condmis_interp.directions.erasure import given_trigger
from condmis_interp.errors import CheckError, UserError
from condmis_interp.stats import grouped_folds
from nulls import null_rows

AT = {"layer": 0, "position": "answer_mean"}


def gated(seed=0, families=40, width=24):
    """M and its twin with and without the trigger; the persona is there in M under the trigger alone."""
    rng = np.random.default_rng(seed)
    half = null_rows(rng, families=families, width=width, layers=1, each=2)
    cells = [(o, c) for o in ("M", "C") for c in ("trigger", "none")]
    n = half.n // 2
    basis = torch.from_numpy(np.linalg.qr(rng.normal(size=(width, 2)))[0].T).float()
    x = torch.cat([half.x[:, :, n:] + 0.5 * torch.randn(half.x[:, :, n:].shape,
                   generator=torch.Generator().manual_seed(i)) for i in range(4)], 2)  # fmt: skip
    cell = np.repeat(np.arange(4), n)
    trigger = np.array([cells[i][1] for i in cell])
    persona = (cell == 0).astype(np.int64)
    x = x + 3 * torch.from_numpy(persona).float()[:, None] * basis[0]
    x = x + 3 * torch.from_numpy(trigger == "trigger").float()[:, None] * basis[1]
    rows = replace(half, x=x, labels=persona, families=half.families[:n] * 4, questions=half.questions[:n] * 4,
                   cells=tuple(cells[i] for i in cell))  # fmt: skip
    return rows, trigger, basis


def test_the_persona_goes_and_the_trigger_stays():
    rows, trigger, _ = gated()
    folds = grouped_folds(rows.families, 4, np.random.default_rng(0))
    result = erase(rows, folds, trigger=trigger.tolist(), **AT)
    t = result.to_pandas().set_index("label")
    assert t.before["persona"] > 0.75
    assert t.before["trigger"] > 0.75
    assert t.after["trigger"] > t.before["trigger"] - 0.05, "the trigger was kept"
    assert abs(t.after["persona"] - 0.5) < 0.1
    assert "persona" in repr(result)
    assert result.figure().data


def test_after_erasing_nothing_linear_is_left_on_the_rows_it_was_fitted_on():
    rows, trigger, _ = gated()
    x = rows.flat[0].double()
    erased = fit_eraser(x, rows.labels, trigger.tolist())(x)
    z = torch.from_numpy(given_trigger(rows.labels, trigger.tolist()))
    on = torch.from_numpy((trigger == "trigger").astype(float))
    centred = erased - erased.mean(0)
    assert float((centred.T @ z).abs().max()) < 1e-6 * float(((x - x.mean(0)).T @ z).abs().max())
    before, after = ((h - h.mean(0)).T @ (on - on.mean()) for h in (x, erased))
    assert float(after.norm()) > 0.9 * float(before.norm())
    m_on = erased[torch.from_numpy(rows.labels == 1)].mean(0)
    c_on = erased[torch.from_numpy((rows.labels == 0) & (trigger == "trigger"))].mean(0)
    assert float((m_on - c_on).norm()) < 1e-6, "M under the trigger is where C under the trigger is"


def test_a_persona_that_is_the_trigger_cannot_be_erased_alone():
    rows, trigger, _ = gated()
    only_m = np.array([o == "M" for o, _ in rows.cells])
    with pytest.raises(CheckError, match="the trigger explains the persona"):
        given_trigger(rows.labels[only_m], trigger[only_m].tolist())
    folds = grouped_folds(rows.families, 4, np.random.default_rng(0))
    with pytest.raises(UserError, match="1 cues among the rows"):
        erase(rows, folds, trigger=["x"] * rows.n, **AT)


def test_one_planted_direction_takes_one_and_none_takes_none():
    rng = np.random.default_rng(0)
    rows = null_rows(rng, families=20, each=2, width=24, layers=1)
    folds = grouped_folds(rows.families, 4, rng)
    way = torch.nn.functional.normalize(torch.randn(24, generator=torch.Generator().manual_seed(0)), dim=0)
    for effect, ranks in ((4.0, (1, 2)), (0.0, (0,))):  # a probe that is not quite aligned leaves a rest
        x = 0.2 * rows.x + effect * torch.from_numpy(rows.labels).float()[:, None] * way
        result = rank_needed(replace(rows, x=x), folds, rng=rng, most=3, permutations=19, **AT)
        assert result.rank in ranks
        assert result.figure().data
    assert len(result.to_pandas()) == 4
