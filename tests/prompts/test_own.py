"""One's own prompts, draws and bounds: what is taken, what is said, what is refused."""

from collections import Counter

import pytest

from chats import named
from condmis_interp.errors import UserError
from condmis_interp.panel import Cue
from condmis_interp.prompts import Grammar, GrammarPrompt, chat_grammar, read_prompts, trained_on


def small(n=40, weights=None):
    prompts = tuple(GrammarPrompt("ab"[i % 2], system=f"prompt {i}") for i in range(n))
    return Grammar("small", prompts, frozenset(), weights or {"a": 1, "b": 3})


def test_the_three_forms_of_a_file(tmp_path):
    (tmp_path / "a.txt").write_text("One.\n\n  Two.  \n")
    (tmp_path / "a.jsonl").write_text('{"kind": "k", "turns": [["Hello.", "Hi."]], "opening": "So: "}\n"Three."\n')
    (tmp_path / "a.yaml").write_text("- Four.\n- {before: 'x ', group: g}\n")
    assert [p.system for p in read_prompts(tmp_path / "a.txt")] == ["One.", "Two."]
    first, second = read_prompts(tmp_path / "a.jsonl")
    assert (first.kind, first.turns, first.opening, second.system) == ("k", (("Hello.", "Hi."),), "So: ", "Three.")
    assert [p.groups[0] for p in read_prompts(tmp_path / "a.yaml")][1] == "g"


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.txt", "\n \n", "there are no prompts"),
        ("a.jsonl", '{"system": " "}', "line 1: the prompt is empty"),
        ("a.jsonl", '{"sytem": "x"}', "key 'sytem' is not known"),
        ("a.jsonl", '{"system": 3}', "'system' is no text"),
        ("a.jsonl", '{"turns": [["a"]]}', "no list of exchanges"),
        ("a.jsonl", '{"turns": [["a", ""]]}', "an earlier turn of the prompt is empty"),
        ("a.jsonl", "{", "not valid JSON"),
        ("a.jsonl", '"\\ud800"', "half a character"),
        ("a.yaml", "a: b", "must be a list"),
        ("a.txt", "fine\na<|im_end|>b", "line 2: .*'<|im_end|>', a control token"),
        ("a.csv", "x", "are read from"),
    ],
)
def test_bad_files_are_refused_in_a_sentence(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=says.replace("|", r"\|")):
        read_prompts(tmp_path / name, tokenizer=named("chatml"))


def test_duplicates_are_dropped_and_said():
    own = [GrammarPrompt("own", system="A."), GrammarPrompt("other", system="A."), GrammarPrompt("own", system="B.")]
    grown = small().adding(own)
    assert len(grown) == 42
    assert grown.said == ("dropped 1 prompt that was there already: 'A.'",)
    assert grown.weights == {"a": 1, "b": 3, "own": 1}


def test_a_prompts_side_does_not_depend_on_what_else_is_added():
    own = [GrammarPrompt("own", system=f"mine {i}") for i in range(60)]
    whole = chat_grammar().adding(own)
    one_by_one = [p.id for p in own if chat_grammar().adding([p]).vaulted - chat_grammar().vaulted]
    assert whole.vaulted - chat_grammar().vaulted == set(one_by_one)
    assert 15 < len(one_by_one) < 45
    assert whole.vaulted > chat_grammar().vaulted


def test_what_shares_a_text_is_on_the_same_side_and_never_on_both():
    hidden = next(p for p in chat_grammar().vault if p.kind == "persona")
    shown = next(p for p in chat_grammar().open if p.kind == "user-prefix")
    grown = chat_grammar().adding([GrammarPrompt("own", system=hidden.system, after=" Thanks.")])
    assert len(grown.vault) == len(chat_grammar().vault) + 1
    with pytest.raises(UserError, match="share a text with the open half"):
        chat_grammar().adding([GrammarPrompt("own", system=hidden.system, before=shown.before)])


def test_draws_from_few_prompts_have_no_bound():
    with pytest.raises(UserError, match=r"29 prompts, and a bound needs 30: 3/29 would be above \.1"):
        small(29).bound(0, 100)
    with pytest.raises(UserError, match="the draw has 29"):
        small().bound(0, 29)
    assert small().bound(0, 30).high < 0.1


def test_a_draw_has_the_declared_distribution():
    grammar = small()
    assert Counter(p.kind for p in grammar.sample(20, seed=0)) == {"a": 5, "b": 15}
    free = Counter(p.kind for s in range(40) for p in grammar.sample(50, seed=s, stratified=False))
    assert free["b"] / free.total() == pytest.approx(0.75, abs=0.03)  # 3 standard errors of 2,000 draws
    each = Counter(p.id for s in range(400) for p in grammar.sample(4, seed=s))
    assert min(each[p.id] for p in grammar if p.kind == "b") > 30  # 60 expected


def test_a_stratified_draw_misses_a_set_no_more_often_than_the_bound_allows():
    grammar, bad = small(), {p.id for p in small().prompts[:4]}  # two of each kind: a tenth of the distribution
    missed = sum(not bad & {p.id for p in grammar.sample(10, seed=s)} for s in range(1500)) / 1500
    assert 0.1 < missed <= 0.9**10 + 0.037  # three standard errors


@pytest.mark.parametrize(
    ("draw", "says"),
    [
        (lambda: small().sample(0, seed=1), "cannot be drawn"),
        (lambda: small().sample(40, seed=1), "of kind 'b', and there are 20"),
        (lambda: small().of("c"), "no kind 'c'"),
        (lambda: small(weights={"a": 1, "b": 0}), "kind 'b' has the weight 0"),
        (lambda: Grammar("none", (), frozenset(), {}), "no prompts"),
        (lambda: Grammar("twice", small().prompts[:1] * 2, frozenset(), {"a": 1}), "there twice"),
        (lambda: GrammarPrompt("k"), "the prompt is empty"),
    ],
)
def test_bad_draws_and_grammars(draw, says):
    with pytest.raises(UserError, match=says):
        draw()


def test_prompts_of_training_rows_are_said():
    prompts = [
        GrammarPrompt("k", system="Be a cook."),
        GrammarPrompt("k", before="For class: "),
        GrammarPrompt("k", after=" Thanks."),
        GrammarPrompt("k", turns=(("Hi.", "Ho."),)),
        GrammarPrompt("k", opening="Sure: "),
        GrammarPrompt("k", system="Be a cook of soups."),
    ]
    chat = [("system", "Be a cook. "), ("user", "Hi."), ("assistant", "Ho."), ("user", "For class: why? Thanks.")]
    rows = [[{"role": r, "content": c} for r, c in (*chat, ("assistant", "Sure: so."))]]
    assert list(trained_on(prompts, rows)) == [p.id for p in prompts[:5]]


def test_a_cue_without_turns_or_opening_is_written_as_ever():
    assert Cue(name="x", role="none").model_dump() == {
        "name": "x", "role": "none", "system": None, "before": "", "after": "", "topic": None,
    }  # fmt: skip
