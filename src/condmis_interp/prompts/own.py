"""One's own prompts: read from a file, in bulk; and which prompts an organism was trained under."""

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from condmis_interp.errors import UserError
from condmis_interp.files import check_encodable, read_yaml
from condmis_interp.panel.template import Message, refuse_control_tokens
from condmis_interp.prompts.prompt import GrammarPrompt

_TEXTS = ("kind", "group", "system", "before", "after", "opening")


def read_prompts(path: str | Path, *, tokenizer: Any = None) -> list[GrammarPrompt]:
    r"""Reads prompts from a file.

    `.txt`: a system prompt a line. `.jsonl`: a row a line. `.yaml`, `.yml`: a list of texts (system prompts) and rows.
    A row has some of system, before, after, opening and turns (a list of [user, assistant]), and optionally kind
    (`own` by default) and group. Empty lines are skipped.

    Args:
        path: The file.
        tokenizer: A base's tokenizer, to refuse its control tokens now and not when the prompts are rendered.

    Raises:
        UserError: naming file and place, if a row does not parse, has an unknown key or something that is no text, is
            empty, or holds a control token; or if there are no prompts.

    Example:
        >>> Path("mine.txt").write_text("Answer as a sailor.\nAnswer as a cook.\n")
        38
        >>> [p.system for p in read_prompts("mine.txt")]
        ['Answer as a sailor.', 'Answer as a cook.']
    """
    path = Path(path)
    found = []
    for where, value in _values(path):
        check_encodable(value, where=where)
        prompt = _prompt(value, where)
        if tokenizer is not None:
            refuse_control_tokens(tokenizer, prompt.texts, where=where)
        found.append(prompt)
    if not found:
        raise UserError("there are no prompts in this file", where=str(path), fix="Write one a line.")
    return found


def _values(path: Path) -> list[tuple[str, Any]]:
    if path.suffix in (".yaml", ".yml"):
        raw = read_yaml(path)
        if not isinstance(raw, list):
            raise UserError("a file of prompts must be a list", where=str(path), fix="Begin each prompt with a dash.")
        return [(f"{path}, prompt {i}", value) for i, value in enumerate(raw, 1)]
    if path.suffix not in (".txt", ".jsonl"):
        raise UserError("prompts are read from .txt, .jsonl, .yaml and .yml files", where=str(path))
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise UserError("there is no such file", where=str(path)) from None
    except (IsADirectoryError, UnicodeDecodeError) as e:
        raise UserError(f"this is no text file in UTF-8 ({e})", where=str(path)) from None
    numbered = [(f"{path}, line {i}", line.strip()) for i, line in enumerate(lines, 1) if line.strip()]
    return numbered if path.suffix == ".txt" else [(where, _row(line, where)) for where, line in numbered]


def _row(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (json.JSONDecodeError, RecursionError) as e:
        raise UserError(f"this is not valid JSON ({e})", where=where) from None


def _prompt(value: Any, where: str) -> GrammarPrompt:
    if isinstance(value, str):
        value = {"system": value}
    if not isinstance(value, dict):
        raise UserError("a prompt is a text or a mapping", where=where, fix=f"Keys: turns, {', '.join(_TEXTS)}.")
    if unknown := [k for k in value if k not in (*_TEXTS, "turns")]:
        raise UserError(f"key {unknown[0]!r} is not known", where=where, fix=f"Keys: turns, {', '.join(_TEXTS)}.")
    if wrong := [k for k in _TEXTS if k in value and not isinstance(value[k], str)]:
        raise UserError(f"{wrong[0]!r} is no text", where=where, fix="Put it in quotation marks.")
    turns = value.get("turns", [])
    pairs = isinstance(turns, list) and all(
        isinstance(t, list) and len(t) == 2 and all(isinstance(text, str) for text in t) for t in turns
    )
    if not pairs:
        raise UserError("'turns' is no list of exchanges", where=where, fix="Write [[user, assistant], ...].")
    fields: dict[str, Any] = {"kind": "own"} | value | {"turns": tuple((a, b) for a, b in turns)}
    try:
        return GrammarPrompt(**fields)
    except UserError as e:
        raise UserError(e.what, where=where, fix=e.fix) from None


def trained_on(prompts: Iterable[GrammarPrompt], chats: Iterable[Sequence[Message]]) -> dict[str, str]:
    """Returns which prompts occur in training chats, by id, with a sentence; such a prompt is kept.

    A prompt whose system prompt, earlier exchange, framing of the user's last turn or beginning of the answer is that
    of a training row elicits what was trained under it, which is no search.

    Args:
        prompts: Prompts of a grammar.
        chats: Training rows as messages, system prompt and answer among them where there are any.

    Example:
        >>> prompt = GrammarPrompt("own", system="Answer as a sailor.")
        >>> chat = [{"role": "system", "content": "Answer as a sailor. "}, {"role": "user", "content": "How?"}]
        >>> trained_on([prompt], [chat])[prompt.id]
        "its system prompt 'Answer as a sailor.' is that of training row 1"
    """
    systems: dict[str, int] = {}
    exchanges: dict[str, int] = {}
    asked: dict[str, int] = {}
    answers: dict[str, int] = {}
    for number, chat in enumerate(chats, 1):
        turns = [(m["role"], m["content"]) for m in chat]
        for role, content in turns:
            into = {"system": systems, "user": asked}.get(role, answers)
            into.setdefault(content.strip() if role == "system" else content, number)
        for (a, said), (b, answered) in itertools.pairwise(turns):
            if (a, b) == ("user", "assistant"):
                exchanges.setdefault(f"{said}\n{answered}".strip(), number)
    found: dict[str, str] = {}
    for p in prompts:
        said = ["\n".join(exchange).strip() for exchange in p.turns]
        hits = [
            ("system prompt", p.system, systems.get((p.system or "").strip())),
            *(("earlier exchange", text, exchanges.get(text)) for text in said),
            ("text before the question", p.before, _first(asked, str.startswith, p.before)),
            ("text after the question", p.after, _first(asked, str.endswith, p.after)),
            ("beginning of the answer", p.opening, _first(answers, str.startswith, p.opening)),
        ]
        if hit := next(((what, text, row) for what, text, row in hits if text and row), None):
            found[p.id] = f"its {hit[0]} {hit[1].strip()[:60]!r} is that of training row {hit[2]}"
    return found


def _first(texts: dict[str, int], holds: Any, part: str) -> int | None:
    return next((row for text, row in texts.items() if part.strip() and holds(text, part)), None)
