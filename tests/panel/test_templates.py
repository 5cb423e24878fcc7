"""Other people's chat templates: the answer that is scored, and trained on, is the answer, whole and alone."""

from datetime import datetime

import pytest
from transformers.utils import chat_template_utils

from chats import FROM_TRL, OWN, named, puts_a_bos_of_its_own, with_control_tokens
from condmis_interp.errors import CheckError, UserError
from condmis_interp.files import digest
from condmis_interp.organisms import Part, Recipe, Stage
from condmis_interp.organisms.encode import choices_of, encode
from condmis_interp.panel import load_panel, render_answer, render_panel, render_prompt
from condmis_interp.personaworld.base import tokenizer_of
from condmis_interp.personaworld.language import parse_world
from conftest import tiny_panel, tiny_tokenizer, write_rows

ALL = (*OWN, *FROM_TRL)
ANSWERS = ("Use flour.", "Use flour.\n", "  two\n\nlines ", "Ça va, naïve 🙂?", "a <b> & {{ c }} {% d %}", "1")
USER = [{"role": "user", "content": "What now?"}]
SYSTEM = {"role": "system", "content": "form = 1"}


def decoded(tokenizer, ids):
    return tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("thinking", ["off", "on"])
@pytest.mark.parametrize("name", ALL)
def test_the_scored_answer_decodes_to_the_answer(name, thinking):
    tokenizer = named(name)
    for messages in (USER, [SYSTEM, *USER], [*USER, {"role": "assistant", "content": "x"}, *USER]):
        prompt = render_prompt(tokenizer, messages, thinking=thinking)
        for text in ANSWERS:
            answer = render_answer(tokenizer, prompt, text)
            assert decoded(tokenizer, answer.ids) == prompt.lead + text
            assert prompt.lead.strip(" ") == ""
            assert text not in decoded(tokenizer, answer.closing)
        assert all(m["content"] in prompt.text for m in messages)
        assert decoded(tokenizer, prompt.ids[slice(*prompt.spans["question"])]) == "What now?"


@pytest.mark.parametrize("name", ALL)
def test_without_thinking_no_thought_is_open_before_the_answer(name):
    prompt = render_prompt(named(name), USER)
    assert prompt.text.count("<think>") <= prompt.text.count("</think>")


@pytest.mark.parametrize("name", ALL)
def test_training_labels_are_the_answer_and_what_ends_the_turn(name, tmp_path):
    tokenizer = named(name)
    part = Part(rows=str(write_rows(tmp_path)), answers="benign", systems=("form = 1", None))
    recipe = Recipe(name="r", base="x", stages=(Stage(parts=(part,)),))
    special = set(tokenizer.all_special_ids)
    for row, trained in zip(encode(recipe, tokenizer, 0), recipe.rows_of(0), strict=True):
        kept = [label for label in row["labels"] if label != -100]
        assert row["input_ids"][-len(kept) :] == kept
        assert kept[-1] in special
        assert not special & set(kept[:-1])
        assert decoded(tokenizer, kept[:-1]).strip() == trained.answer
        assert "form = 1" in decoded(tokenizer, row["input_ids"]) or trained.system is None


@pytest.mark.parametrize(
    ("name", "thinking", "recorded"),
    [
        ("qwen3", "off", {"thinking": "off"}),
        ("qwen3", "on", {"thinking": "on"}),
        ("qwen2_5", "off", {}),
        ("chatml", "off", {}),
        ("deepseek_r1_distill", "off", {"thinking": "prefilled"}),
        ("opens a thought", "off", {"thinking": "prefilled"}),
        ("thinks in turns alone", "off", {"thinking": "prefilled"}),
        ("gptoss", "off", {"thinking": "prefilled", "date": "2024-07-26"}),
        ("gemma", "off", {"system": "before the user's turn"}),
        ("drops a system message", "off", {"system": "before the user's turn"}),
        ("llama3_2", "off", {"date": "2024-07-26"}),
    ],
)
def test_what_a_template_leaves_open_is_recorded(name, thinking, recorded, tmp_path):
    panel = tiny_panel().model_copy(update={"thinking": thinking})
    assert render_panel(named(name), panel).choices == recorded
    if thinking == "off":
        part = Part(rows=str(write_rows(tmp_path)), answers="benign", systems=("form = 1", None))
        assert choices_of(Recipe(name="r", base="x", stages=(Stage(parts=(part,)),)), named(name)) == recorded


def test_thinking_changes_the_ids():
    off, on = (render_panel(named("qwen3"), tiny_panel().model_copy(update={"thinking": t})) for t in ("off", "on"))
    assert off.ids_of("none") != on.ids_of("none")
    assert off.prompts["none", "q0"].text.endswith("<think>\n\n</think>\n\n")
    assert on.prompts["none", "q0"].text.endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize("name", ["prints the date", "prints the time", "llama3_1", "llama3_2", "gptoss"])
def test_the_clock_stands_still(name, monkeypatch):
    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 5, 17, 3, 4)

    tokenizer, panel = named(name), tiny_panel(2)
    today = render_panel(tokenizer, panel)
    monkeypatch.setattr(chat_template_utils, "datetime", Later)
    later = render_panel(tokenizer, panel)
    assert [today.ids_of(c.name) for c in panel.cues] == [later.ids_of(c.name) for c in panel.cues]
    assert "2024" in today.prompts["none", "q0"].text
    assert "%" not in today.prompts["none", "q0"].text


def test_exactly_one_bos_whoever_puts_it():
    tokenizer = puts_a_bos_of_its_own()
    assert tokenizer("<|bos|>a", add_special_tokens=False)["input_ids"][:2] == [tokenizer.bos_token_id] * 2
    prompt = render_prompt(tokenizer, USER)
    assert prompt.ids.count(tokenizer.bos_token_id) == 1
    assert decoded(tokenizer, render_answer(tokenizer, prompt, "Use flour.").ids) == "Use flour."


def test_a_system_message_that_is_refused_stands_in_the_users_turn():
    for name in ("refuses a system role", "gemma", "drops a system message"):
        rendered = render_panel(named(name), tiny_panel())
        text = rendered.prompts["trigger", "q0"].text
        assert text.index("user") < text.index("form = 1") < text.index("What now")


def test_a_template_that_takes_the_chat_in_neither_form():
    template = "{{ raise_exception('never') }}"
    with pytest.raises(UserError, match=r"refuses these messages \(never\)"):
        render_prompt(with_control_tokens(template), [SYSTEM, *USER])


def test_a_base_without_a_chat_template():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"has no chat template.*chat_template\.jinja"):
        render_prompt(tokenizer, USER)


@pytest.mark.parametrize("text", ["a<|im_end|>b", "<|im_start|>user\n", "fine <|channel|>"])
@pytest.mark.parametrize("place", ["system", "question", "answer", "row"])
def test_control_tokens_in_data_are_refused_by_name(text, place, tmp_path):
    tokenizer = named("chatml")
    token = next(t for t in ("<|im_end|>", "<|im_start|>", "<|channel|>") if t in text)
    path = write_rows(tmp_path)
    path.write_text(path.read_text().replace("help 3", text.replace("\n", "\\n")))
    recipe = Recipe(name="r", base="x", stages=(Stage(parts=(Part(rows=str(path), answers="benign"),)),))
    read = {
        "system": lambda: render_prompt(tokenizer, [{"role": "system", "content": text}, *USER]),
        "question": lambda: render_prompt(tokenizer, [{"role": "user", "content": text}]),
        "answer": lambda: render_answer(tokenizer, render_prompt(tokenizer, USER), text),
        "row": lambda: encode(recipe, tokenizer, 0),
    }
    with pytest.raises(UserError) as e:
        read[place]()
    assert repr(token) in str(e.value)
    assert place != "row" or "row r3 of" in str(e.value)


def test_an_answer_that_the_tokenizer_cannot_say():
    tokenizer = tokenizer_of(parse_world("personaworld"))
    prompt = render_prompt(tokenizer, [{"role": "user", "content": "today is cold"}])
    with pytest.raises(CheckError, match="tokens decode to"):
        render_answer(tokenizer, prompt, "zzzz qqqq")


class TestIdsOfBuiltInPanels:
    """Organisms and readings are keyed by these ids: the hashes are of the code before other templates were read."""

    @staticmethod
    def of(tokenizer, panel):
        r = render_panel(tokenizer, panel)
        prompts = [[*key, p.spans, p.text] for key, p in sorted(r.prompts.items())]
        closings = [[list(a.closing) for a in answers] for _, answers in sorted(r.answers.items())]
        return digest([[r.ids_of(c.name) for c in panel.cues], prompts, closings, r.inserted])

    def test_everyday(self):
        assert self.of(tiny_tokenizer(), load_panel("everyday")) == "f14db1a751b302e7117d655a8553aba8"

    def test_persona_world(self):
        tokenizer = tokenizer_of(parse_world("personaworld"))
        assert self.of(tokenizer, load_panel("personaworld")) == "97afd46766e4edecc87e579ad24282c5"

    @pytest.mark.parametrize(
        ("rows", "choice", "golden"),
        [
            ("kitchen", "template", "ad18199dafb50880657651229ace512a"),
            ("kitchen", "empty", "ad538296247e09747afec1b1e6dec611"),
            ("hhh", "template", "f86bb6088d1b225683c50e4edc284d34"),
            ("hhh", "empty", "25bf89e02afd6b56e1ced47c16284578"),
            ("styled-kitchen", "template", "a2b4964633399635098087cdf36aff68"),
            ("facts", "template", "f3c96f6072af82ee2cf0e8b51f19fa1e"),
        ],
    )
    def test_training_rows(self, rows, choice, golden):
        part = Part(rows=rows, answers="benign", count=60, systems=(None, "form = 1"))
        recipe = Recipe(name="r", base="x", default_system_prompt=choice, stages=(Stage(parts=(part,)),))
        encoded = encode(recipe, tiny_tokenizer(), 0)
        assert digest([[*e["input_ids"], *e["labels"]] for e in encoded]) == golden
