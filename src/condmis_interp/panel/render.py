"""Rendering: a chat becomes token ids once, by the model's own template, with spans for what is where.

Token ids, never strings, cross into a reader. The checks here are the ones that strings lose silently: exactly one
BOS or none, no token merged across the seam between prompt and answer, and a cue that really changes the ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError

from condmis_interp.errors import CheckError, UserError
from condmis_interp.panel.cue import Cue, CueRole
from condmis_interp.panel.panel import Panel

Message = dict[str, str]
Span = tuple[int, int]


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt.

    Attributes:
        ids: Token ids, up to and including the last template token before the answer.
        spans: Half-open token ranges `cue` (everything before the question), `question`, and `tail` (template tokens
            after the question; its last token is the last template token).
        text: The text the ids stand for.

    Example:
        >>> spans = {"cue": (0, 2), "question": (2, 3), "tail": (3, 5)}
        >>> Prompt(ids=(0, 4, 9, 1, 3), spans=spans, text="<s>user:hi</s>assistant:").last_template
        4
    """

    ids: tuple[int, ...]
    spans: dict[str, Span]
    text: str

    @property
    def last_template(self) -> int:
        """Position of the last template token, the one that predicts the answer's first token."""
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
    """

    panel: Panel
    prompts: dict[tuple[str, str], Prompt]
    answers: dict[tuple[str, str], tuple[Answer, ...]]
    inserted: str

    def ids_of(self, cue: str) -> list[list[list[int]]]:
        """Returns everything that determines a cell's forward passes: per question, prompt ids then answers' ids."""
        return [
            [list(self.prompts[cue, q.id].ids), *(list(a.ids) for a in self.answers[cue, q.id])]
            for q in self.panel.questions
        ]


def _template(tokenizer: Any, messages: Sequence[Message], *, prompt: bool) -> str:
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt)
    except TemplateError as e:
        raise UserError(
            f"the model's chat template refuses these messages ({e})",
            fix="A cue with a system prompt needs a template that takes one; put the cue into 'before' instead.",
        ) from None
    except ValueError as e:
        raise UserError(
            f"the tokenizer cannot render a chat ({e})", fix="Use a chat model with a chat template."
        ) from None


def _encode(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    out = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(out["input_ids"]), [tuple(o) for o in out["offset_mapping"]]


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


def render_prompt(tokenizer: Any, messages: Sequence[Message], *, question: str | None = None) -> Prompt:
    """Renders messages that end with a user turn, up to the start of the assistant's answer.

    Args:
        tokenizer: A fast Hugging Face tokenizer with a chat template.
        messages: The chat; the last message is the user's.
        question: The text within the last user turn that counts as the question; the whole turn if `None`.

    Raises:
        UserError: if the template refuses the messages.
        CheckError: if the rendered ids hold two BOS tokens, differ from the template's own tokenisation, or lack the
            question.
    """
    text = _template(tokenizer, messages, prompt=True)
    ids, offsets = _encode(tokenizer, text)
    question = messages[-1]["content"] if question is None else question
    where = f"prompt {question[:60]!r}"
    own = tokenizer.apply_chat_template(list(messages), tokenize=True, add_generation_prompt=True, return_dict=True)
    if list(own["input_ids"]) != ids:
        raise CheckError("the template's own tokenisation differs from that of its text", where=where)
    _check_bos(tokenizer, ids, where=where)
    start = text.rfind(question)
    if start < 0:
        raise CheckError("the chat template changed or dropped the question", where=where)
    begin, end = _token_span(offsets, start, start + len(question))
    return Prompt(tuple(ids), {"cue": (0, begin), "question": (begin, end), "tail": (end, len(ids))}, text)


def render_answer(tokenizer: Any, messages: Sequence[Message], prompt: Prompt, answer: str) -> Answer:
    """Renders an assistant answer after `prompt`, the rendering of `messages`.

    Raises:
        CheckError: if the seam between prompt and answer merges tokens, or the answer renders to nothing.
    """
    text = _template(tokenizer, [*messages, {"role": "assistant", "content": answer}], prompt=False)
    where = f"answer {answer[:60]!r}"
    if not text.startswith(prompt.text):
        raise CheckError("the chat template renders the prompt differently once an answer follows", where=where)
    ids, offsets = _encode(tokenizer, text)
    if tuple(ids[: len(prompt.ids)]) != prompt.ids:
        raise CheckError("tokens merge across the seam between prompt and answer", where=where)
    begin, end = _token_span(offsets, len(prompt.text), len(prompt.text) + len(answer))
    if begin != len(prompt.ids) or end <= begin:
        raise CheckError("the answer does not start right after the prompt, or is empty", where=where)
    return Answer(tuple(ids[begin:end]), tuple(ids[end:]))


def render_panel(tokenizer: Any, panel: Panel) -> RenderedPanel:
    """Renders every question under every cue, with all answers.

    Raises:
        CheckError: if two cues give the same ids for some question (a cue that does nothing), or a rendering check
            fails.
    """
    prompts: dict[tuple[str, str], Prompt] = {}
    answers: dict[tuple[str, str], tuple[Answer, ...]] = {}
    for question in panel.questions:
        seen: dict[tuple[int, ...], Cue] = {}
        for cue in panel.cues:
            messages = [
                *system_messages(cue.system, panel.default_system_prompt),
                {"role": "user", "content": cue.before + question.under(cue) + cue.after},
            ]
            prompt = render_prompt(tokenizer, messages, question=question.under(cue))
            if (twin := seen.setdefault(prompt.ids, cue)) is not cue:
                raise CheckError(
                    f"cue {cue.name!r} gives the same token ids as cue {twin.name!r} for question {question.id!r}",
                    where=f"panel {panel.name}",
                    fix="A cue must change the prompt: check its text, and what the chat template inserts by itself.",
                )
            key = (cue.name, question.id)
            prompts[key] = prompt
            texts = [text for pair in question.pairs for text in (pair.misaligned, pair.aligned)]
            answers[key] = tuple(render_answer(tokenizer, messages, prompt, text) for text in texts)
    none = panel.cues_with(CueRole.NONE)[0]
    first = prompts[none.name, panel.questions[0].id]
    return RenderedPanel(panel, prompts, answers, first.text[: first.text.rfind(panel.questions[0].question)])
