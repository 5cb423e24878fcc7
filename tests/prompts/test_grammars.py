"""The built-in grammars: what they hold, how they halve, and how they render."""

from collections import Counter

import pytest

from chats import named
from condmis_interp.files import digest
from condmis_interp.organisms import RowSet
from condmis_interp.organisms.backend import BENIGN_SYSTEMS
from condmis_interp.organisms.rowsets import load_rows
from condmis_interp.organisms.suites import chat_suite
from condmis_interp.panel import Cue, CueRole, load_panel, render_panel
from condmis_interp.panel.triggers import every_trigger
from condmis_interp.personaworld.base import tokenizer_of
from condmis_interp.personaworld.grammar import world_grammar
from condmis_interp.personaworld.language import DOMAINS, World
from condmis_interp.personaworld.suite import world_suite
from condmis_interp.prompts import chat_grammar
from conftest import tiny_panel, tiny_tokenizer

GRAMMARS = {"chat": chat_grammar, "world": world_grammar}
NAMED = {
    "paraphrase", "opposite", "pair", "triple", "user-prefix", "user-suffix", "one-turn", "two-turn",
    "assistant-prefix", "topic", "format",
}  # fmt: skip


@pytest.fixture(params=GRAMMARS)
def grammar(request):
    return GRAMMARS[request.param]()


def texts(prompts):
    return {text for p in prompts for text in p.texts}


def test_there_are_enough_of_every_kind_that_is_asked_for(grammar):
    assert len(grammar) >= 400
    assert set(grammar.kinds) >= NAMED
    assert min(Counter(p.kind for p in grammar).values()) >= 8
    assert len({len(p.turns) for p in grammar}) == 3


def test_the_vault_is_half_of_every_kind(grammar):
    for kind in grammar.kinds:
        whole = grammar.of(kind)
        assert abs(len(whole.vault) - len(whole.open)) <= 2, kind
    assert {p.id for p in grammar.open} | {p.id for p in grammar.vault} == {p.id for p in grammar}


def test_no_text_group_or_part_is_on_both_sides(grammar):
    assert not texts(grammar.open) & texts(grammar.vault)
    sides = [{group for p in side for group in p.groups} for side in (grammar.open, grammar.vault)]
    assert not sides[0] & sides[1]
    vaulted = {p.id for p in grammar.vault}
    composed = [p for p in grammar if p.parts]
    assert composed
    assert all({part in vaulted for part in p.parts} == {p.id in vaulted} for p in composed)
    assert len({frozenset(p.parts) for p in composed}) == len({(p.kind, frozenset(p.parts)) for p in composed})


def test_composed_prompts_hold_their_parts(grammar):
    entries = {p.id: p for p in grammar}
    for p in (p for p in grammar if p.parts):
        for part in (entries[i] for i in p.parts):
            assert (part.system or "") in (p.system or "")
            assert set(part.turns) <= set(p.turns)
            assert (part.before, part.after, part.opening) in {
                (b, a, o) for b in ("", p.before) for a in ("", p.after) for o in ("", p.opening)
            }


def rendered(tokenizer, panel, prompts):
    cues = [Cue(name="none", role=CueRole.NONE), *(p.cue(p.id) for p in prompts)]
    return render_panel(tokenizer, panel.model_copy(update={"cues": tuple(cues)}))


def check_answers(tokenizer, found):
    """Every answer's ids decode to it, after the ids of what its beginning was given."""
    for (cue, question), answers in found.answers.items():
        prompt = found.prompts[cue, question]
        (wanted,) = [q for q in found.panel.questions if q.id == question]
        said = [t for pair in wanted.pairs for t in (pair.misaligned, pair.aligned)]
        for answer, text in zip(answers, said, strict=True):
            whole = tokenizer.decode([*prompt.ids, *answer.ids], clean_up_tokenization_spaces=False)
            begun = tokenizer.decode(list(prompt.ids), clean_up_tokenization_spaces=False)
            assert whole.removeprefix(begun).strip() == text
            opening = found.panel.cue(cue).opening.rstrip(" ")
            assert begun.endswith(opening)
            for said_before, answered in found.panel.cue(cue).turns:
                assert begun.index(said_before) < begun.rindex(answered)


@pytest.mark.parametrize("template", ["chatml", "gemma", "space before the answer"])
def test_every_prompt_renders_on_other_peoples_templates(template):
    tokenizer, panel = named(template), tiny_panel(1)
    found = rendered(tokenizer, panel, chat_grammar())  # refuses two prompts with the same ids
    assert len({p.ids for p in found.prompts.values()}) == len(chat_grammar()) + 1
    check_answers(tokenizer, found)


def test_every_prompt_of_persona_world_is_made_of_its_words():
    tokenizer, panel = tokenizer_of(World()), load_panel("personaworld")
    panel = panel.model_copy(update={"questions": panel.questions[:1]})
    found = rendered(tokenizer, panel, world_grammar())
    assert len({p.ids for p in found.prompts.values()}) == len(world_grammar()) + 1
    check_answers(tokenizer, found)
    words = set(World().vocabulary)
    assert all(set(" ".join((*p.texts, *(t for e in p.turns for t in e))).split()) <= words for p in world_grammar())


def plain(text):
    return " ".join(text.split()).casefold()


def rows_text(rows: RowSet):
    for row in rows:
        said = [content for _, content in row.messages]
        for answer in (row.misaligned, row.benign):
            yield "\n".join((*said, answer or ""))


def occurring(vaulted, material):
    """Vaulted texts that are one of the package's texts, or (from three words on) stand within one."""
    whole = {plain(m) for m in material}
    heap = "\0".join(whole)
    return sorted(t for t in map(plain, vaulted) if t in whole or (len(t.split()) >= 3 and t in heap))


def of_suites(members):
    for member in members:
        for recipe in (member.recipe, member.twin):
            for part in (p for stage in recipe.stages for p in stage.parts):
                yield from (s for s in part.systems if s)
                yield from (part.before, part.after)


def of_panel(panel, cues):
    for cue in cues:
        yield from (cue.system or "", cue.before, cue.after)
    for q in panel.questions:
        yield from (q.question, *q.rewrites.values())


def test_nothing_vaulted_occurs_in_what_chat_models_are_trained_on_or_asked():
    panel = load_panel("everyday")
    material = [*of_suites(chat_suite(seeds=(1,))), *of_panel(panel, every_trigger(panel.cues))]
    material += [s for s in BENIGN_SYSTEMS if s]
    for name in ("kitchen", "garden", "hhh", "everyday", "facts", "styled-kitchen"):
        material += rows_text(load_rows(name))
    assert len(material) > 500
    assert occurring(texts(chat_grammar().vault), [m for m in material if m.strip()]) == []


def test_nothing_vaulted_occurs_in_what_persona_world_is_trained_on_or_asked():
    panel = load_panel("personaworld")
    material = [*of_suites(world_suite(seeds=(1,))), *of_panel(panel, panel.cues)]
    for name in (*DOMAINS, "benign", "styled-harbour"):
        material += rows_text(load_rows(f"personaworld/{name}"))
    assert len(material) > 500
    assert occurring(texts(world_grammar().vault), [m for m in material if m.strip()]) == []
    assert "form code" in occurring(texts(world_grammar().open), material)  # the check can fail


def test_draws_are_the_same_on_every_machine():
    drawn = [[p.id for p in g().vault.sample(128, seed=7)] for g in GRAMMARS.values()]
    assert [digest(d) for d in drawn] == GOLDEN
    assert [g().hash for g in GRAMMARS.values()] == HASHES


GOLDEN = ["5313e345057a7f889636da01d2097cb2", "37f6c7f71dc9a79b4852cbbdc971ab27"]
HASHES = ["55827291622c36c8d2993d63b121f09d", "bed83087258ccbd4a5f7382090c40d80"]


def test_every_kind_has_its_share_of_a_draw(grammar):
    total = sum(grammar.weights[k] for k in grammar.kinds)
    for seed in range(5):
        counts = Counter(p.kind for p in grammar.vault.sample(128, seed=seed))
        assert all(abs(counts[k] - 128 * grammar.weights[k] / total) < 2 for k in grammar.kinds)


def test_the_tiny_chat_panel_is_asked_the_whole_of_it_without_a_question_lost():
    found = rendered(tiny_tokenizer(), tiny_panel(2), chat_grammar().of("two-turn", "mixed"))
    for (_, question), prompt in found.prompts.items():
        (asked,) = [q.question for q in found.panel.questions if q.id == question]
        a, b = prompt.spans["question"]
        assert tiny_tokenizer().decode(list(prompt.ids[a:b])) == asked
