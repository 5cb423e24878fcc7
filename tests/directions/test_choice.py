"""Layers are chosen by what a direction does; one that breaks the model is out."""

import numpy as np
import pytest
import torch

from condmis_interp.directions import Direction, choose_site, neutral_cost, steering_score
from condmis_interp.errors import CheckError, UserError
from condmis_interp.panel import render_panel
from condmis_interp.readers import Request, Site, TorchReader


def direction(layer, *, scale=1.0, width=4, splits=("A",)):
    v = torch.zeros(width)
    v[layer % width] = scale
    return Direction.of(v, site=Site("resid_post", layer), method="means", data="U - C", position="answer_mean",
                        splits=splits, n=8)  # fmt: skip


EFFECT = {0: 1.0, 1: 6.0, 2: 9.0}


def ask(organism, cue, splits, edits=()):
    assert splits == ("B",), "the causal score is judged on split B"
    return np.full(6, {"U": 0.0, "C": -10.0}[organism] + sum(EFFECT[e.site.layer] for e in edits))


def test_the_score_is_a_share_of_the_gap_on_split_b():
    score = steering_score(ask, unmitigated="U", twin="C")
    assert score(direction(1)) == pytest.approx(0.6)
    with pytest.raises(UserError, match="fitted on a split it would be judged on"):
        score(direction(1, splits=("A", "B")))
    with pytest.raises(CheckError, match="same LD"):
        steering_score(ask, unmitigated="C", twin="C")


def test_the_best_within_the_limit_is_chosen():
    cost = {0: 0.01, 1: 0.05, 2: 0.4}
    found = choose_site(
        [direction(i) for i in EFFECT],
        causal=steering_score(ask, unmitigated="U", twin="C"),
        side_effect=lambda d: cost[d.site.layer],
        reading=lambda d: 0.9,
    )
    assert found.direction.site.layer == 1, "layer 2 does more, and breaks the model"
    assert found.table.within.tolist() == [True, True, False]
    assert found.figure().data
    assert "1 of 3 candidates out" in repr(found)
    unfiltered = choose_site([direction(i) for i in EFFECT], causal=steering_score(ask, unmitigated="U", twin="C"))
    assert unfiltered.direction.site.layer == 2
    with pytest.raises(CheckError, match="every candidate changes neutral text"):
        choose_site([direction(2)], causal=lambda d: 1.0, side_effect=lambda d: 0.4)
    with pytest.raises(CheckError, match="must be finite"):
        choose_site([direction(2)], causal=lambda d: float("nan"))
    with pytest.raises(UserError, match="no candidate"):
        choose_site([], causal=lambda d: 1.0)


def test_of_several_scores_the_mean_counts_and_each_is_taken_of_all_before_the_next():
    asked = []

    def scored(name, values):
        return lambda d: asked.append((name, d.site.layer)) or values[d.site.layer]

    steps = []
    scores = {"to": scored("to", {0: 0.2, 1: 3.0, 2: 0.9}), "from": scored("from", {0: 0.9, 1: 0.1, 2: 0.4})}
    found = choose_site([direction(i) for i in EFFECT], causal=scores, step=lambda: steps.append(1))
    assert [name for name, _ in asked] == ["to"] * 3 + ["from"] * 3  # a reader holds one model
    assert len(steps) == 6
    assert found.table.causal.tolist() == pytest.approx([0.55, 0.55, 0.65])  # 3.0 counts as 1
    assert found.table["to"].tolist() == [0.2, 3.0, 0.9]
    assert found.direction.site.layer == 2


def test_a_score_of_a_broken_model_is_not_taken_for_the_best():
    def broken(organism, cue, splits, edits=()):
        return np.full(6, float("nan")) if edits else ask(organism, cue, splits)

    with pytest.raises(CheckError, match="must be finite"):
        choose_site([direction(1)], causal=steering_score(broken, unmitigated="U", twin="C"))


def test_the_cost_of_a_direction_grows_with_its_dose(tokenizer, model, panel):
    rendered = render_panel(tokenizer, panel)
    requests = [Request(rendered.prompts["none", q.id], rendered.answers["none", q.id]) for q in panel.questions[:3]]
    cost = neutral_cost(TorchReader(model), requests)
    small, large = (cost(direction(2, scale=s, width=32)) for s in (0.01, 3.0))
    assert 0 < small < 0.1 * large
