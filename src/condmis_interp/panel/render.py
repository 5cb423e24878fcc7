"""Rendering: a chat becomes token ids once, by the model's own template, with spans for what is where.

Token ids, never strings, cross into a reader. The checks here are the ones that strings lose silently: exactly one
BOS or none, no token merged across the seam between prompt and answer, an answer whose tokens decode to it (whole, and
nothing else), and a cue that really changes the ids.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from condmis_interp.calls import checked
from condmis_interp.errors import CheckError
from condmis_interp.panel.cue import Cue, CueRole
from condmis_interp.panel.panel import Panel
from condmis_interp.panel.template import (
    Message,
    Thinking,
    around_answer,
    chat_template,
    choices,
    fold_system,
    refuse_control_tokens,
    write_chat,
)

Span = tuple[int, int]


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt.

    Attributes:
        ids: Token ids, up to and including the last template token before the answer.
        spans: Half-open token ranges `cue` (everything before the question), `question`, and `tail` (template tokens
            after the question, and the answer's given beginning if there is one).
        text: The text the ids stand for.
        lead: Spaces that the template, or the answer's given beginning, puts before it; they belong to its first token.
        closing: What the template writes after an answer.
        choices: What was chosen where the template leaves a choice (`template.choices`).

    Example:
        >>> spans = {"cue": (0, 2), "question": (2, 3), "tail": (3, 5)}
        >>> Prompt(ids=(0, 4, 9, 1, 3), spans=spans, text="<s>user:hi</s>assistant:").last_template
        4
    """

    ids: tuple[int, ...]
    spans: dict[str, Span]
    text: str
    lead: str = ""
    closing: str = ""
    choices: dict[str, str] = field(default_factory=dict)

    @property
    def last_template(self) -> int:
        """Position of the last token before the answer, the one that predicts its first token."""
        return len(self.ids) - 1


@dataclass(frozen=True)
class Answer:
    """An answer in its prompt's context: the answer's own token ids, and those that close the turn.

    Example:
        >>> Answer(ids=(7, 8), closing=(1,)).ids
        (7, 8)
    """

    ids: tuple[int, ...]
    closing: tuple[int, ...]


@dataclass(frozen=True)
class RenderedPanel:
    """A panel as token ids.

    Attributes:
        panel: The panel.
        prompts: Prompt by (cue name, question id).
        answers: Answers by (cue name, question id): for each pair the misaligned, then the aligned one.
        inserted: The text before the question under the `none` cue, with whatever the template put there.
        choices: What was chosen where the template leaves a choice (`template.choices`).

    Example:
        >>> from condmis_interp.organisms import resolve_base
        >>> from condmis_interp.panel import load_panel
        >>> rendered = render_panel(resolve_base("dir:base").tokenizer(), load_panel("panel.yaml"))
        >>> "Be helpful." in rendered.inserted  # what this template puts there by itself
        True
    """

    panel: Panel
    prompts: dict[tuple[str, str], Prompt]
    answers: dict[tuple[str, str], tuple[Answer, ...]]
    inserted: str
    choices: dict[str, str] = field(default_factory=dict)

    def ids_of(self, cue: str) -> list[list[list[int]]]:
        """Returns everything that determines a cell's forward passes: per question, prompt ids then answers' ids."""
        return [
            [list(self.prompts[cue, q.id].ids), *(list(a.ids) for a in self.answers[cue, q.id])]
            for q in self.panel.questions
        ]


def _encode(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    out = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = list(out["input_ids"]), [tuple(o) for o in out["offset_mapping"]]
    bos = tokenizer.bos_token
    if bos and ids[:2] == [tokenizer.bos_token_id] * 2 and not text.startswith(bos * 2):
        return ids[1:], offsets[1:]  # the tokenizer put one of its own before the template's
    return ids, offsets


def _token_span(offsets: Sequence[tuple[int, int]], start: int, stop: int) -> Span:
    inside = [i for i, (a, b) in enumerate(offsets) if b > start and a < stop]
    return (inside[0], inside[-1] + 1) if inside else (0, 0)


def _check_bos(tokenizer: Any, ids: Sequence[int], *, where: str) -> None:
    bos = tokenizer.bos_token_id
    if bos is not None and list(ids[:2]) == [bos, bos]:
        raise CheckError("the prompt starts with two BOS tokens", where=where, fix="Exactly one or none is right.")
    puts_one = bos is not None and list(tokenizer("a")["input_ids"][:1]) == [bos]
    if puts_one and ids[0] != bos:
        raise CheckError(
            "the prompt has lost its BOS token: the tokenizer starts every text with one, the chat template does not",
            where=where,
            fix="Give the tokenizer the chat template it was made with.",
        )


def system_messages(system: str | None, default_system_prompt: str) -> list[Message]:
    """Returns the system message for a chat, if any; see `Panel.default_system_prompt`."""
    if system is None and default_system_prompt == "template":
        return []
    return [{"role": "system", "content": system or ""}]


def render_prompt(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    question: str | None = None,
    thinking: Thinking = "off",
    opening: str = "",
) -> Prompt:
    """Renders messages that end with a user turn, up to the start of the assistant's answer.

    Args:
        tokenizer: A fast Hugging Face tokenizer with a chat template.
        messages: The chat; the last message is the user's.
        question: The text within the last user turn that counts as the question; the whole turn if `None`.
        thinking: Whether a model that can think before it answers does; `off` has the answer stand where answers do.
        opening: How the answer begins; it stands where answers do, and the spaces that end it become the `lead`.

    Raises:
        UserError: if the template refuses the messages, or one of them holds a control token.
        CheckError: if the rendered ids hold two BOS tokens, differ from the template's own tokenisation, or lack the
            question.

    Example:
        >>> from condmis_interp.organisms import resolve_base
        >>> tokenizer = resolve_base("dir:base").tokenizer()
        >>> prompt = render_prompt(tokenizer, [{"role": "user", "content": "What now?"}])
        >>> start, stop = prompt.spans["question"]
        >>> tokenizer.decode(prompt.ids[start:stop])
        'What now?'
    """
    question = messages[-1]["content"] if question is None else question
    where = f"prompt {question[:60]!r}"
    refuse_control_tokens(tokenizer, [*(m["content"] for m in messages), opening], where=where)
    placed = fold_system(tokenizer, messages, thinking=thinking)
    opened = write_chat(tokenizer, placed, prompt=True, thinking=thinking)
    own = tokenizer.apply_chat_template(
        placed,
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        chat_template=chat_template(tokenizer),
        enable_thinking=thinking == "on",
    )
    ids, offsets = _encode(tokenizer, opened)
    if list(own["input_ids"])[-len(ids) :] != ids:
        raise CheckError("the template's own tokenisation differs from that of its text", where=where)
    asked = question if question in opened else question.strip()  # some templates trim turns
    start = opened.rfind(asked)
    if start < 0:
        raise CheckError("the chat template changed or dropped the question", where=where)
    written, lead, closing = around_answer(tokenizer, placed, opened, thinking=thinking)
    text = opened + written
    if opening:
        begun = opening.rstrip(" ")
        text, lead = text + lead + begun, opening[len(begun) :]
    if text != opened:
        ids, offsets = _encode(tokenizer, text)
    _check_bos(tokenizer, ids, where=where)
    begin, end = _token_span(offsets, start, start + len(asked))
    made = choices(tokenizer, thinking=thinking, written=written, folded=len(placed) < len(messages))
    spans = {"cue": (0, begin), "question": (begin, end), "tail": (end, len(ids))}
    return Prompt(tuple(ids), spans, text, lead, closing, made)


def render_under(tokenizer: Any, panel: Panel, cue: Cue, asked: str, *, system: str | None = None) -> Prompt:
    """Renders a question under a cue as a panel asks it.

    Args:
        tokenizer: The tokenizer.
        panel: Whose choices of system prompt and thinking hold.
        cue: What surrounds the question.
        asked: The question's text.
        system: The question's own system prompt; it follows the cue's after an empty line.

    Raises:
        UserError: as `render_prompt`.
        CheckError: as `render_prompt`.

    Example:
        >>> from condmis_interp.organisms import resolve_base
        >>> from condmis_interp.panel import load_panel
        >>> panel, tokenizer = load_panel("panel.yaml"), resolve_base("dir:base").tokenizer()
        >>> prompt = render_under(tokenizer, panel, panel.cue("trigger"), "What now?", system="Be brief.")
        >>> prompt.text.splitlines()[:3]
        ['<|im_start|>system', 'form = 1', '']
    """
    both = [s for s in (cue.system, system) if s]
    messages = [
        *system_messages("\n\n".join(both) if both else cue.system, panel.default_system_prompt),
        *(m for a, b in cue.turns for m in ({"role": "user", "content": a}, {"role": "assistant", "content": b})),
        {"role": "user", "content": cue.before + asked + cue.after},
    ]
    return render_prompt(tokenizer, messages, question=asked, thinking=panel.thinking, opening=cue.opening)


def render_answer(tokenizer: Any, prompt: Prompt, answer: str) -> Answer:
    """Renders an assistant's answer after its prompt: the ids that follow the prompt's, and decode to the answer.

    Raises:
        UserError: if the answer holds a control token.
        CheckError: if the seam between prompt and answer merges tokens, the answer renders to nothing, or its tokens
            do not decode to it.

    Example:
        >>> from condmis_interp.organisms import resolve_base
        >>> tokenizer = resolve_base("dir:base").tokenizer()
        >>> prompt = render_prompt(tokenizer, [{"role": "user", "content": "What now?"}])
        >>> tokenizer.decode(render_answer(tokenizer, prompt, "Call them.").ids)
        'Call them.'
    """
    where = f"answer {answer[:60]!r}"
    refuse_control_tokens(tokenizer, [answer], where=where)
    text, start = prompt.text + prompt.lead + answer, len(prompt.ids)
    ids, _ = _encode(tokenizer, text)
    if tuple(ids[:start]) != prompt.ids:
        raise CheckError(
            "tokens merge across the seam between prompt and answer",
            where=where,
            fix="End a given beginning of the answer with a space, a quotation mark, or a line break.",
        )
    if len(ids) == start or not answer.strip():
        raise CheckError("the answer is empty", where=where)
    if _normal(prompt.lead + answer) not in (said := _readings(tokenizer, ids, start)):
        raise CheckError(
            f"the answer's tokens decode to {said[0][:80]!r}",
            where=where,
            fix="The tokenizer does not keep this text: write it with characters and spacing that it knows.",
        )
    whole, _ = _encode(tokenizer, text + prompt.closing)
    closing = whole[len(ids) :] if whole[: len(ids)] == ids else _encode(tokenizer, prompt.closing)[0]
    return Answer(tuple(ids[start:]), tuple(closing))


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text)  # what many tokenizers do before anything else; it reads the same


def _readings(tokenizer: Any, ids: Sequence[int], start: int) -> tuple[str, str]:
    """Returns what the ids from `start` on decode to, alone and after the one before (decoders differ in spaces)."""

    def decode(part: Sequence[int]) -> str:
        return _normal(tokenizer.decode(list(part), clean_up_tokenization_spaces=False))

    return decode(ids[start:]), decode(ids[start - 1 :]).removeprefix(decode(ids[start - 1 : start]))


def turn_end(tokenizer: Any, closing: Sequence[int]) -> tuple[int, ...]:
    """Returns the ids that end a turn: what closes it up to its first control token, or the end of the sequence.

    Args:
        tokenizer: The tokenizer.
        closing: Ids after an answer, as in `Answer`.
    """
    special = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special} | set(tokenizer.all_special_ids)
    for i, token in enumerate(closing):
        if token in special:
            return tuple(closing[: i + 1])
    return tuple(closing[:1]) if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)


@checked
def render_panel(tokenizer: Any, panel: Panel) -> RenderedPanel:
    """Renders every question under every cue, with all answers.

    Raises:
        CheckError: if two cues give the same ids for some question (a cue that does nothing), or a rendering check
            fails.

    Example:
        >>> from condmis_interp.organisms import resolve_base
        >>> from condmis_interp.panel import load_panel
        >>> rendered = render_panel(resolve_base("dir:base").tokenizer(), load_panel("panel.yaml"))
        >>> len(rendered.prompts), len(rendered.answers["trigger", "q0"])  # 5 cues x 12 questions; 2 pairs
        (60, 4)
    """
    prompts: dict[tuple[str, str], Prompt] = {}
    answers: dict[tuple[str, str], tuple[Answer, ...]] = {}
    for question in panel.questions:
        seen: dict[tuple[int, ...], Cue] = {}
        for cue in panel.cues:
            prompt = render_under(tokenizer, panel, cue, question.under(cue))
            if (twin := seen.setdefault(prompt.ids, cue)) is not cue:
                raise CheckError(
                    f"cue {cue.name!r} gives the same token ids as cue {twin.name!r} for question {question.id!r}",
                    where=f"panel {panel.name}",
                    fix="A cue must change the prompt: check its text, and what the chat template inserts by itself.",
                )
            key = (cue.name, question.id)
            prompts[key] = prompt
            texts = [text for pair in question.pairs for text in (pair.misaligned, pair.aligned)]
            answers[key] = tuple(render_answer(tokenizer, prompt, text) for text in texts)
    none = panel.cues_with(CueRole.NONE)[0]
    first = prompts[none.name, panel.questions[0].id]
    inserted = first.text[: first.text.rfind(panel.questions[0].question)]
    made = dict(sorted({choice for p in prompts.values() for choice in p.choices.items()}))
    return RenderedPanel(panel, prompts, answers, inserted, made)
