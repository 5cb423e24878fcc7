"""Chat templates: what a checkpoint's own template writes, with every choice that it leaves open made and recorded.

A template may print today's date (the clock is frozen, so that ids are the same on every day), offer thinking (switched
off, or closed by an empty thought), or refuse a system message (it goes in front of the user's turn).
"""

import re
from collections.abc import Iterable, Sequence
from datetime import date
from functools import lru_cache
from typing import Any, Literal

from jinja2.exceptions import TemplateError

from condmis_interp.errors import UserError

Message = dict[str, str]
Thinking = Literal["off", "on"]

FROZEN = date(2024, 7, 26)
"""The date that templates print; the one that Llama 3.1's template falls back on where there is no clock."""

BUILT_IN = {
    "plain": "{{ bos_token }}"
    "{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ 'User: ' + m['content'] + '\n\n' }}"
    "{% elif m['role'] == 'assistant' %}{{ 'Assistant: ' + m['content'] + '\n\n' }}"
    "{% elif m['content'] %}{{ m['content'] + '\n\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
}
"""Templates of our own, by name, for base models that come without one. `plain` is a dialogue in words: a model that
was only pretrained has read such, while control tokens that its chat sibling learned are noise to it."""

_PLACE = "<<ANSWER>>"
_OPEN, _CLOSE = "<think>", "\n</think>\n\n"
_DIRECTIVES = ("%Y", "%m", "%d", "%B", "%b", "%A", "%a", "%y", "%j", "%-d", "%-m", "%H", "%I", "%M", "%S", "%p")
_CLOCK = "".join(f"|replace('{d}', '{FROZEN.strftime(d)}')" for d in _DIRECTIVES)
_FREEZE = "{%- macro strftime_now(format) -%}{{ format" + _CLOCK + " }}{%- endmacro -%}"


def chat_template(tokenizer: Any) -> str:
    """Returns a tokenizer's chat template, its clock frozen.

    Raises:
        UserError: if it has none.
    """
    try:
        template = tokenizer.get_chat_template()
    except ValueError:
        raise UserError(
            "the tokenizer has no chat template, so it cannot render a chat",
            fix="Use a chat model; or, for a base model, put the template that it was trained with into its folder "
            "as chat_template.jinja.",
        ) from None
    return _FREEZE + template if "strftime_now" in template else template


def write_chat(tokenizer: Any, messages: Sequence[Message], *, prompt: bool, thinking: Thinking = "off") -> str:
    """Returns what the template writes for a chat.

    Args:
        tokenizer: A Hugging Face tokenizer with a chat template.
        messages: The chat.
        prompt: Whether the assistant's next turn is opened.
        thinking: What a template that knows `enable_thinking` is told.

    Raises:
        UserError: if there is no template, or it refuses the messages.
    """
    told = {"enable_thinking": thinking == "on"}
    try:
        return tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=prompt, chat_template=chat_template(tokenizer), **told
        )
    except (TemplateError, TypeError) as e:
        raise UserError(
            f"the model's chat template refuses these messages ({e})",
            fix="Look at their roles and order; most templates want the user and the assistant to take turns.",
        ) from None


def fold_system(tokenizer: Any, messages: Sequence[Message], *, thinking: Thinking = "off") -> list[Message]:
    """Returns the chat as the template takes it: a system message that it refuses or drops is put before the user's.

    Raises:
        UserError: if the template refuses the messages in either form.
    """
    if messages[0]["role"] != "system":
        return list(messages)
    system, first, *rest = messages
    folded = {**first, "content": "\n\n".join(t for t in (system["content"], first["content"]) if t)}
    try:
        if system["content"].strip() in write_chat(tokenizer, messages, prompt=True, thinking=thinking):
            return list(messages)
    except UserError as refused:
        try:
            write_chat(tokenizer, [folded, *rest], prompt=True, thinking=thinking)
        except UserError:
            raise refused from None
    return [folded, *rest]


def around_answer(
    tokenizer: Any, messages: Sequence[Message], opened: str, *, thinking: Thinking
) -> tuple[str, str, str]:
    """Returns what stands around an answer: what must still be written before it, spaces before it, and its closing.

    The template's own rendering of a whole turn says so. Where it writes more before an answer than the opened prompt
    has (an empty thought, a channel), that is written in advance unless the model is to think; where the prompt opens
    a thought that no turn closes, the thought is closed empty. Spaces alone belong to the answer's first token.

    Args:
        tokenizer: The tokenizer.
        messages: The chat, ending with the user's turn.
        opened: What the template writes for it as a prompt.
        thinking: As in `write_chat`.
    """
    turn = [*messages, {"role": "assistant", "content": _PLACE}]
    before, found, closing = write_chat(tokenizer, turn, prompt=False, thinking=thinking).rpartition(_PLACE)
    if not found:
        raise UserError("the chat template drops the assistant's answer", fix="Use the template of a chat model.")
    lead = before.removeprefix(opened) if before.startswith(opened) else ""
    if not lead.strip(" "):
        written = _CLOSE if thinking == "off" and opened.rstrip().endswith(_OPEN) else ""
        return written, lead, closing
    return (lead if thinking == "off" else ""), "", closing


def choices(tokenizer: Any, *, thinking: Thinking, written: str, folded: bool) -> dict[str, str]:
    """Returns the choices made for a template that leaves them open, by name; for manifests."""
    template = chat_template(tokenizer)
    made = {}
    if "enable_thinking" in template or written:
        made["thinking"] = "prefilled" if written else thinking
    if "strftime_now" in template:
        made["date"] = FROZEN.isoformat()
    if folded:
        made["system"] = "before the user's turn"
    return made


@lru_cache(maxsize=8)
def _control(tokenizer: Any) -> re.Pattern[str] | None:
    added = (t.content for t in tokenizer.added_tokens_decoder.values() if t.special)
    tokens = {t for t in (*added, *tokenizer.all_special_tokens) if t.strip()}
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))) if tokens else None


def refuse_control_tokens(tokenizer: Any, texts: Iterable[str], *, where: str) -> None:
    """Refuses texts that hold a control token of the tokenizer, which would open or close turns in mid-text.

    Raises:
        UserError: naming the token.
    """
    control = _control(tokenizer)
    for text in texts:
        if control and (found := control.search(text)):
            raise UserError(
                f"the text holds {found.group()!r}, a control token of this tokenizer, which would be read as one",
                where=where,
                fix="Take it out, or break it up with a space.",
            )
