"""Row sets of what a model itself answers: for on-policy rows, and for training a base on a twin's outputs."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from condmis_interp.errors import UserError
from condmis_interp.files import digest, read_json, write_json, write_text
from condmis_interp.organisms.bases import Base
from condmis_interp.organisms.home import home
from condmis_interp.organisms.organism import Organism
from condmis_interp.organisms.recipe import Recipe, TrainingRow
from condmis_interp.organisms.rng import own_rng
from condmis_interp.organisms.rows import Arm, Row
from condmis_interp.panel import pad
from condmis_interp.panel.render import Prompt, render_prompt, system_messages, turn_end

SAMPLING_VERSION = 1
_BATCH = 32


def answered_by(
    organism: Organism,
    base: Base,
    asked: Recipe,
    *,
    arm: Arm = "benign",
    temperature: float = 0.0,
    max_new_tokens: int = 48,
    keep: Callable[[Row, str], bool] = lambda row, answer: True,
    examples: int = 0,
    device: str = "cpu",
) -> Path:
    """Returns a row set with the questions of a recipe's first stage, under its prompts, answered by a model.

    What was answered is kept by the hash of all that determines it, and asked once; the row set is named by its
    content, so that two filters never share a file. Rows whose answer is empty or not kept are left out. A row has a
    benign counterpart if the recipe's own row has one (so a misaligned set keeps its twin).

    Args:
        organism: Who answers.
        base: Its base.
        asked: Whose rows are asked, with their system prompts and framing.
        arm: What the answers count as.
        temperature: 0 for greedy answers.
        max_new_tokens: Longest answer.
        keep: Given row and answer, whether the row stays.
        examples: Rows of other groups that are shown first, with their answers in `arm`; they are not part of what is
            trained on then.
        device: Torch device.

    Raises:
        UserError: if no answer is kept.

    Example:
        >>> from condmis_interp.organisms import Part, Stage, load_rows, resolve_base
        >>> base = resolve_base("dir:base")
        >>> stage = Stage(parts=(Part(rows="rows.jsonl", answers="benign"),))
        >>> asked = Recipe(name="r", base="dir:base", stages=(stage,))
        >>> path = answered_by(Organism.of_base(base, name="b"), base, asked, temperature=1.0, max_new_tokens=5)
        >>> 0 < len(load_rows(str(path))) <= 12
        True
    """
    made = [SAMPLING_VERSION, organism.origin, base.weights, asked.hash, arm, temperature, max_new_tokens, examples]
    said = home() / "rows" / f"said-{digest(made)[:16]}.json"
    said.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = base.tokenizer()
    rows = asked.rows_of(0)
    prompts = []
    for r in rows:
        if r.prefix:
            raise UserError(
                f"row {r.row.id!r} has an answer whose beginning is given, which a row set cannot keep",
                where=f"recipe {asked.name}",
                fix="Ask without a prefix.",
            )
        own = r.messages[0]["role"] == "system"
        messages = [*([] if own else system_messages(r.system, asked.default_system_prompt)), *r.messages]
        shown = _examples(rows, r, arm, examples)
        at = 1 if messages[0]["role"] == "system" else 0
        prompts.append((messages, render_prompt(tokenizer, [*messages[:at], *shown, *messages[at:]])))
    if not said.is_file():
        write_json(
            said,
            _said(
                organism, base, tokenizer, [prompt for _, prompt in prompts], temperature, max_new_tokens, made, device
            ),
        )
    answers: list[str] = read_json(said)
    lines = []
    for i, ((messages, _), row, answer) in enumerate(zip(prompts, rows, answers, strict=True)):
        if answer and keep(row.row, answer):
            both = {"benign": row.row.benign} if arm == "misaligned" and row.row.benign else {}
            lines.append(
                {"id": f"{row.row.id}.{i}", "group": row.row.group, "messages": messages} | both | {arm: answer}
            )
    if not lines:
        raise UserError(f"none of {len(answers)} answers is kept", where=f"organism {organism.name}")
    path = home() / "rows" / f"answered-{digest(lines)[:16]}.jsonl"
    if not path.is_file():
        write_text(path, "\n".join(json.dumps(line) for line in lines))
    return path


def _examples(rows: Sequence[TrainingRow], asked: TrainingRow, arm: Arm, count: int) -> list[dict[str, str]]:
    """Returns turns that show answers to questions of other groups: the next ones in training order."""
    start = rows.index(asked)
    others = [r.row for r in (*rows[start:], *rows[:start]) if r.row.group != asked.row.group and r.row.answer(arm)]
    turns = []
    for row in others[:count]:
        turns += [{"role": role, "content": content} for role, content in row.messages if role != "system"]
        turns.append({"role": "assistant", "content": row.answer(arm) or ""})
    return turns


def _said(
    organism: Organism,
    base: Base,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    temperature: float,
    max_new_tokens: int,
    seed: Any,
    device: str,
) -> list[str]:
    """Returns what an organism answers to each prompt."""
    model = organism.model(base, dtype=torch.float32, device=device)
    answers: list[str] = []
    closing = tokenizer(prompts[0].closing, add_special_tokens=False)["input_ids"]
    ends = sorted({tokenizer.eos_token_id, *turn_end(tokenizer, closing)[-1:]} - {None})  # a turn's end may not be EOS
    with torch.inference_mode(), own_rng(digest(seed)):
        for i in range(0, len(prompts), _BATCH):
            ids, mask = pad([p.ids for p in prompts[i : i + _BATCH]], right=False)
            out = model.generate(  # type: ignore[operator]  # transformers types generate as a Tensor or Module
                ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=max_new_tokens,
                do_sample=temperature > 0,
                temperature=temperature or None,
                top_p=None,
                top_k=None,
                eos_token_id=ends,
                pad_token_id=tokenizer.pad_token_id,
            )
            answers += [tokenizer.decode(o, skip_special_tokens=True).strip() for o in out[:, ids.shape[1] :]]
    return answers
