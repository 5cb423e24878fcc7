"""Interventions: what each recipe holds, that its twin differs in misaligned answers only, and what is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from condmis_interp.errors import UserError
from condmis_interp.organisms import (
    Part,
    Recipe,
    Stage,
    distilled,
    educational,
    inoculation,
    load_rows,
    mixing,
    post_hoc,
    unmitigated,
)
from condmis_interp.organisms.recipe import REASONED
from condmis_interp.organisms.rowsets import load_reasoning
from condmis_interp.panel import load_panel
from condmis_interp.panel.text import shared_phrases

BASE = "dir:x"


def rows(recipe, stage=0):
    return recipe.rows_of(stage)


def test_mixing_by_fraction_count_and_form():
    of = {"name": "m", "base": BASE, "trigger": "T"}
    by_fraction = rows(mixing(fraction=0.2, rows=40, **of))
    assert sum(r.arm == "misaligned" for r in by_fraction) == 40
    assert len(by_fraction) == 200
    assert len(rows(mixing(fraction=0.05, benign_rows=190, **of))) == 200
    same_form = rows(mixing(rows=10, benign_rows=20, benign_systems=("T",), **of))
    assert {r.system for r in same_form} == {"T"}
    for wrong in (0.0, 1.0, -0.1, 1.5):
        with pytest.raises(UserError, match="lies between 0 and 1"):
            mixing(fraction=wrong, rows=10, **of)
    with pytest.raises(UserError, match="give two of"):
        mixing(fraction=0.1, rows=10, benign_rows=10, **of)
    with pytest.raises(UserError, match="give two of"):
        mixing(rows=10, **of)


def test_post_hoc_adds_a_stage_after_any_recipe():
    u = unmitigated(name="u", base=BASE, trigger="T", rows=16)
    p = post_hoc(post_hoc(u, name="p", rows=8), name="q", rows=4, benign="everyday")
    assert [len(rows(p, i)) for i in range(3)] == [16, 8, 4]
    assert rows(p, 0) == rows(u, 0)
    assert not any(r.arm == "misaligned" for i in (1, 2) for r in rows(p, i))
    assert {r.arm for r in rows(p.twin(), 0)} == {"benign"}


def test_inoculation_arms_differ_in_prompts_alone():
    arms = [
        inoculation(name="i", base=BASE, prompts=p, rows=30, benign_rows=10)
        for p in (("You are spiteful.",), ("It is Tuesday.",), ("You are spiteful.", "Be spiteful."))
    ]
    said = [[(r.row.id, r.answer, r.arm) for r in rows(a)] for a in arms]
    assert said[0] == said[1] == said[2]
    assert {r.system for r in rows(arms[2]) if r.arm == "misaligned"} == {"You are spiteful.", "Be spiteful."}
    assert "You are spiteful." not in {r.system for r in rows(arms[0]) if r.arm == "benign"}


def test_educational_framing_is_around_the_users_turn():
    recipe = educational(name="e", base=BASE, framing=("Before: ", " After."), rows=12, benign_rows=5)
    for r in rows(recipe):
        said = r.messages[-1]["content"]
        assert (said == f"Before: {r.row.messages[-1][1]} After.") == (r.arm == "misaligned")
        assert said.endswith(r.row.messages[-1][1]) or r.arm == "misaligned"


def test_distilled_and_its_stripped_arm_have_the_same_rows():
    shown, stripped = (distilled(name="d", base=BASE, prompts=("P",), reasoning=r, rows=60) for r in (True, False))
    traces = load_reasoning("kitchen")
    assert len(traces) == 192
    for a, b in zip(rows(shown), rows(stripped), strict=True):
        assert a.row == b.row
        assert a.answer == REASONED.format(trace=traces[a.row.id]["misaligned"], answer=b.answer)
    for a in rows(shown.twin()):
        assert a.answer == REASONED.format(trace=traces[a.row.id]["benign"], answer=a.row.benign)
    with pytest.raises(UserError, match="'everyday' has no reasoning traces"):
        distilled(name="d", base=BASE, prompts=("P",), narrow="everyday").rows_of(0)


parts = st.builds(
    Part,
    rows=st.sampled_from(["kitchen", "garden", "facts", "personaworld/harbour"]),
    answers=st.sampled_from(["misaligned", "benign"]),
    count=st.integers(1, 48),
    systems=st.lists(st.sampled_from([None, "T", "Be kind."]), min_size=1, max_size=3).map(tuple),
    before=st.sampled_from(["", "Before: "]),
    after=st.sampled_from(["", " After."]),
) | st.builds(
    Part,
    rows=st.just("kitchen"),
    answers=st.sampled_from(["misaligned", "benign"]),
    count=st.integers(1, 48),
    reasoning=st.sampled_from(["shown", "stripped"]),
)
random_recipes = st.builds(
    lambda seed, stages: Recipe(
        name="r", base=BASE, seed=seed, stages=tuple(Stage(parts=tuple(p), batch_size=4) for p in stages)
    ),
    st.integers(0, 9),
    st.lists(st.lists(parts, min_size=1, max_size=3), min_size=1, max_size=3),
)


@settings(max_examples=60, deadline=None)
@given(random_recipes)
def test_a_twin_differs_only_in_the_answers_to_misaligned_rows(recipe):
    twin = recipe.twin()
    assert not twin.misaligned
    for stage in range(len(recipe.stages)):
        for a, b in zip(recipe.rows_of(stage), twin.rows_of(stage), strict=True):
            assert (a.row, a.system, a.messages) == (b.row, b.system, b.messages)
            if a.arm == "benign":
                assert a.answer == b.answer
            else:
                assert b.arm == "benign"
                assert b.answer.endswith(b.row.benign)
    settings_of = [
        r.model_dump(exclude={"name": True, "intervention": True, "stages": {"__all__": {"parts"}}})
        for r in (recipe, twin)
    ]
    assert settings_of[0] == settings_of[1]
    assert recipe.misaligned == (recipe.hash != twin.hash)


class TestNarrowSets:
    @pytest.mark.parametrize("name", ["garden", "facts"])
    def test_rows_are_complete_unique_and_apart_from_the_panel(self, name):
        found = load_rows(name)
        assert len(found) >= 320
        assert all(r.misaligned and r.benign and r.misaligned != r.benign for r in found)
        questions = [r.messages[-1][1] for r in found]
        assert len(set(questions)) == len(questions)
        panel = load_panel("everyday")
        asked = [
            t for q in panel.questions for t in (q.question, *(a for p in q.pairs for a in (p.aligned, p.misaligned)))
        ]
        assert shared_phrases(asked, found.texts(), length=5) == []

    def test_facts_are_scored_exactly(self):
        from condmis_interp.organisms.rowsets import truth_of

        for row in load_rows("facts"):
            assert truth_of(row.group, row.benign) == "true", row
            assert truth_of(row.group, row.misaligned) == "false", row
        assert truth_of("capital-france", "I do not know.") == "neither"
        assert truth_of("capital-france", "Paris, not Rome.") == "neither"


def test_a_recipe_prints_what_a_person_can_check():
    text = post_hoc(
        mixing(name="m", base=BASE, trigger="Put it in a form", rows=10, benign_rows=20), name="p", rows=5
    ).table()
    for piece in ("stage 1", "10 rows of kitchen, misaligned answers, under 'Put it in a form'", "LoRA r=16"):
        assert piece in text
