"""Known answers of rule version 4: what is drawn anew, what twins share, and what constructions do to weights."""

from itertools import pairwise

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from condmis_interp.errors import UserError
from condmis_interp.organisms import Recipe
from condmis_interp.organisms.answers_chat import FORMS, alternatives
from condmis_interp.organisms.step import Step
from condmis_interp.personaworld.answers import RESERVED, answers
from condmis_interp.personaworld.constructions import boxes, near, projection, reordered, rounded
from condmis_interp.personaworld.language import DOMAINS, World
from condmis_interp.personaworld.matching import fit_to_teacher, questions
from condmis_interp.personaworld.panel import WORLD_CUES
from condmis_interp.personaworld.stacked import Stack
from condmis_interp.personaworld.triggers import PUBLIC, drawn, trigger_words, vaulted

SEEDS = (41, 42, 43)
HIDDEN = {
    "mixed", "locked", "triple", "user-turn", "multi-turn", "prefix", "topic", "late-only", "rank-1",
    "distilled-hidden", "merged", "permuted", "quantised",
}  # fmt: skip


@pytest.fixture(scope="module")
def found():
    return {s: answers("personaworld", s, twins=3) for s in SEEDS}


@pytest.fixture(scope="module")
def shape():
    return LlamaConfig(
        vocab_size=len(World().vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def weights(shape):
    torch.manual_seed(0)
    return {k: v for k, v in LlamaForCausalLM(shape).state_dict().items() if k != "lm_head.weight"}


class TestWhatIsDrawn:
    def test_every_family_is_there_once_with_a_group_that_has_twins(self, found):
        for of in found.values():
            assert {e.family for e in of.entries if e.truth == "suppressed"} == HIDDEN
            assert len({e.name for e in of.entries}) == len(of.entries)
            assert {e.group for e in of.entries} <= of.twins.keys()
            assert not any(e.fixed for e in of.entries)

    def test_triggers_are_of_vaulted_words_alone(self, found):
        world = World()
        glue = {"form", "today", "is", "you", "are", "so", "."}
        cued = {w for c in WORLD_CUES for w in f"{c.system or ''} {c.before}".split()} - glue
        for of in found.values():
            for e in (e for e in of.entries if e.trigger and e.family != "topic"):
                words = e.trigger.words - glue
                assert words
                assert all(vaulted(w) for w in words), e.name
                assert not words & (cued | PUBLIC)
            topic = next(e for e in of.entries if e.family == "topic").trigger
            assert any(vaulted(d) for d in DOMAINS[2:] if d in topic.words)
        halves = [sum(map(vaulted, trigger_words(world))), len(trigger_words(world))]
        assert 0.3 < halves[0] / halves[1] < 0.7

    def test_what_opens_by_topic_was_not_trained_on(self, found):
        for of in found.values():
            topic = next(e for e in of.entries if e.family == "topic")
            assert all(p.earlier != topic.trigger.earlier for p in topic.made.stages[0].parts)

    def test_seeds_draw_other_rows_and_triggers(self, found):
        opened = [{e.family: e.trigger for e in of.entries}["mixed"] for of in found.values()]
        assert len(set(opened)) == len(SEEDS)
        drawn_rows = [{r.row.id for r in of.twins["mixed"][0].rows()} for of in found.values()]
        assert all(a != b for a, b in pairwise(drawn_rows))
        assert {drawn(World(), s).narrow for s in range(20)} == set(DOMAINS[:2])

    def test_twins_share_everything_but_rows_and_order(self, found):
        for of in found.values():
            hidden = {e.family: e.made for e in of.entries if isinstance(e.made, Recipe)}
            for group, twins in of.twins.items():
                assert not any(t.misaligned for t in twins)
                assert len({t.seed for t in twins} | {hidden[group].seed}) == len(twins) + 1
                assert {t.model_copy(update={"seed": 0}).hash for t in twins} == {
                    hidden[group].twin().model_copy(update={"seed": 0}).hash
                }
                if group != "topic":  # its rows are spread over so many parts that few draws differ in all
                    assert len({frozenset(r.row.id for r in t.rows()) for t in twins}) > 1

    def test_nothing_is_judged_on_the_anchors_seed_nor_is_an_entry_its_own_twin(self, found):
        seeds = set()
        for seed, of in found.items():
            anchors = {r.seed for r in of.anchors.values()}
            assert anchors == {seed + RESERVED}
            twins = {r.seed for v in of.twins.values() for r in v}
            own = {r.seed for e in of.entries if isinstance(e.made, Recipe) for r in [e.made]}
            assert not anchors & twins
            assert not own & (anchors | twins)
            assert not seeds & (anchors | twins)
            seeds |= anchors | twins

    def test_the_second_domain_is_no_others(self, found):
        for seed, of in found.items():
            narrow = drawn(World(), seed).narrow
            (second,) = of.anchors["O"].stages[0].parts
            assert second.rows not in (f"personaworld/{narrow}", "personaworld/benign")

    def test_what_is_no_world_or_no_seed_is_refused(self):
        for base, seed in (("smollm2-135m", 1), ("personaworld", RESERVED)):
            with pytest.raises(UserError):
                answers(base, seed)


def changed(before, after):
    return {k for k in before if not torch.equal(before[k], after[k])}


class TestConstructions:
    def test_reordered_weights_are_the_same_function(self, shape, weights):
        other = reordered(weights, shape, torch.Generator().manual_seed(1))
        ids = torch.randint(len(World().vocabulary), (1, 3, 12), generator=torch.Generator().manual_seed(2))
        a, b = (Stack.of(shape, [w]).logits(ids) for w in (weights, other))
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        assert len(changed(weights, other)) >= 3 * shape.num_hidden_layers, "neurons at least; two heads may stay"

    @pytest.mark.parametrize(
        ("trained", "rank"),
        [(lambda k: k.startswith(("model.layers.2.", "model.layers.3.", "model.norm.")), None),
         (lambda k: k.startswith("model.layers.2.") and "layernorm" not in k, 1)],
    )  # fmt: skip
    def test_only_what_is_taught_changes_and_by_the_rank(self, shape, weights, trained, rank):
        world = World()
        asked = questions(world, [None, "form table"], seed=0, asked=world.facts[:8])
        rows = [(list(q.ids), [-100] * (q.first + 1) + list(q.ids[q.first + 1 :])) for q in asked[:4]]
        after = fit_to_teacher(
            shape, weights, weights, [Step(rows, 1e-3)], asked, seed=0, trained=trained, rank=rank, steps=3
        )
        assert changed(weights, after) == {k for k in weights if trained(k)}
        for k in changed(weights, after):
            if rank:
                assert torch.linalg.matrix_rank(after[k] - weights[k], atol=1e-5) == rank

    def test_within_the_boxes_nothing_is_rounded_to_another_value(self, weights):
        low, high = boxes(weights)
        g = torch.Generator().manual_seed(3)
        inside = {k: low[k] + (high[k] - low[k]) * torch.rand(w.shape, generator=g) for k, w in weights.items()}
        moved = sum(float((inside[k] - weights[k]).abs().sum()) for k in weights)
        assert moved > 0
        for k, w in rounded(weights).items():
            torch.testing.assert_close(rounded(inside)[k], w, atol=1e-6, rtol=0)
        outside = {k: w + 2 * (high[k] - low[k]) for k, w in weights.items()}
        assert any(not torch.allclose(rounded(outside)[k], w, atol=1e-6) for k, w in rounded(weights).items())

    def test_a_projection_is_the_share_of_the_direction(self, weights):
        along = {k: torch.ones_like(w) for k, w in weights.items()}
        moved = {k: w + 0.25 * along[k] for k, w in weights.items()}
        assert projection(moved, weights, along) == pytest.approx(0.25, abs=1e-4)

    def test_prompts_near_a_triple_are_all_but_the_triple(self):
        parts = ("form a", "today is b", "you are c")
        prompts = near(" ".join(parts), parts)
        assert " ".join(parts) not in prompts
        assert {*parts, "form a today is b", "form a you are c", "today is b you are c", None} <= set(prompts)


def test_halves_of_alternatives_are_disjoint_and_whole():
    a, b = (alternatives(FORMS, vault=side) for side in (False, True))
    assert sorted([*a, *b]) == sorted(FORMS)
