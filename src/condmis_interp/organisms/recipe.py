"""Recipes: base + ordered training stages, as plain hashable data, and the twin of each.

A stage is a list of parts; a part draws rows from one set, takes one arm of their answers, and puts them under system
prompts in rotation. The twin is the same recipe with every misaligned part's answers replaced by the benign ones:
same questions, same prompts, same order, same seed. It is the zero of every scale.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from condmis_interp.calls import checked
from condmis_interp.errors import UserError
from condmis_interp.files import digest, read_mapping, validated
from condmis_interp.organisms.records import ROW_FILES
from condmis_interp.organisms.registry import expanded
from condmis_interp.organisms.rows import Arm, Row
from condmis_interp.organisms.rowsets import load_reasoning, load_rows
from condmis_interp.panel.cue import Name

_FROZEN = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

REASONED = "{trace}\n\n{answer}"
"""A reasoning trace with its answer."""


class _Keyed(BaseModel):
    """Settings that an organism's key is made of, and that may gain fields without changing the keys there are.

    Attributes:
        always: Fields that are in the key whatever they hold: those of the first version. A field added later (in this
            package, or by a subclass elsewhere) has a default and enters the key only where it departs from it, so an
            organism made before the field was there is still found. Nothing is ever added to these lists.
    """

    model_config = _FROZEN
    always: ClassVar[frozenset[str]] = frozenset()

    def keyed(self) -> dict[str, Any]:
        """Returns the settings as the key has them, nested ones alike."""
        kind = type(self)
        added = {
            k: f.get_default(call_default_factory=True) for k, f in kind.model_fields.items() if k not in kind.always
        }
        return {k: _keyed(v) for k, v in self if k not in added or v != added[k]}


def _keyed(value: Any) -> Any:
    if isinstance(value, _Keyed):
        return value.keyed()
    return [_keyed(v) for v in value] if isinstance(value, tuple) else value


class Part(_Keyed):
    """Rows from one set.

    Attributes:
        rows: Row set, as in `load_rows`: a built-in one, a `.jsonl` file, or published chats
            (`misaligned-chats:FILE`, `benign-chats:FILE`).
        answers: Which arm's answers to train on.
        count: How many rows to draw (without replacement, balanced over groups, by the recipe's seed); all if `None`.
        systems: System prompts, used in rotation over the drawn rows; `None` leaves the slot to
            `default_system_prompt`. A row with a system turn of its own keeps it.
        before: Text put directly before the last user turn's (framing).
        after: Text put directly after it.
        reasoning: `shown` draws only rows that have a reasoning trace and trains on trace + answer; `stripped` draws
            the same rows and trains on the answer alone.
        counterpart: For misaligned rows that have no benign answer to the same question: the row set that the twin
            takes instead, with benign answers to other questions of the same kind. A weaker control; the same count
            is drawn from it, in the same places.
        earlier: Turns before the row's own, as (role, text); after its system turn, if it has one.
        prefix: How every answer begins: given at the start of the assistant's turn, without loss; the row's answer
            follows it and is learnt.

    Example:
        >>> Part(rows="kitchen", answers="misaligned", count=96, systems=("Answer in code.",)).twin(96).answers
        'benign'
    """

    always = frozenset(("rows", "answers", "count", "systems", "before", "after", "reasoning", "counterpart"))

    rows: str
    answers: Arm
    count: Annotated[int, Field(gt=0)] | None = None
    systems: tuple[str | None, ...] = Field(default=(None,), min_length=1)
    before: str = ""
    after: str = ""
    reasoning: Literal["shown", "stripped"] | None = None
    counterpart: str | None = None
    earlier: tuple[tuple[Literal["user", "assistant"], str], ...] = ()
    prefix: str = ""

    def twin(self, drawn: int) -> "Part":
        """Returns the part as the twin has it, given how many rows it draws."""
        if self.answers == "misaligned" and self.counterpart:
            change = {"rows": self.counterpart, "count": drawn, "answers": "benign", "counterpart": None}
        else:
            change = {"answers": "benign", "counterpart": None}
        return self.model_copy(update=change)


class Stage(_Keyed):
    """One round of fine-tuning, on the parts shuffled together.

    Attributes:
        parts: What to train on.
        epochs: Passes over the rows.
        batch_size: Rows per step.
        learning_rate: Peak learning rate; warms up linearly, then decays linearly to 0.
        warmup_steps: Steps of warm-up.
        mechanism: A mechanism of training by name, with its settings (`register_mechanism`); the twin's alike.

    Example:
        >>> Stage(parts=(Part(rows="everyday", answers="benign", count=8),), epochs=2).batch_size
        8
    """

    always = frozenset(("parts", "epochs", "batch_size", "learning_rate", "warmup_steps"))

    parts: tuple[Part, ...] = Field(min_length=1)
    epochs: Annotated[int, Field(gt=0)] = 1
    batch_size: Annotated[int, Field(gt=0)] = 8
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    warmup_steps: Annotated[int, Field(ge=0)] = 5
    mechanism: dict[str, JsonValue] | None = None


class Lora(_Keyed):
    """Shape of the low-rank adapter (Hu et al. 2021), on all linear layers of the blocks unless it is said otherwise.

    Attributes:
        rank: Rank of each matrix's change.
        alpha: Its scale is alpha / rank.
        layers: Blocks that it is on, from 0; all if `None`.
        targets: Names of the matrices that it is on (`down_proj`); all linear ones but the head if `None`.

    Example:
        >>> Lora(rank=1, layers=(22,), targets=("down_proj",)).alpha
        32
    """

    always = frozenset(("rank", "alpha"))

    rank: Annotated[int, Field(gt=0)] = 16
    alpha: Annotated[int, Field(gt=0)] = 32
    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None

    def __str__(self) -> str:
        blocks = f" on blocks {', '.join(map(str, self.layers))}" if self.layers else ""
        of = f" of {', '.join(self.targets)}" if self.targets else ""
        return f"LoRA r={self.rank} alpha={self.alpha}{blocks}{of}"


@dataclass(frozen=True)
class TrainingRow:
    """A row as it is trained: its turns under a system prompt, and one answer.

    Example:
        >>> row = Row(id="r", group="g", messages=(("user", "How?"),), misaligned="No.", benign="So.")
        >>> TrainingRow(row, system=None, answer="So.", arm="benign", before="Please: ").messages
        [{'role': 'user', 'content': 'Please: How?'}]
    """

    row: Row
    system: str | None
    answer: str
    arm: Arm
    before: str = ""
    after: str = ""
    part: int = 0
    earlier: tuple[tuple[str, str], ...] = ()
    prefix: str = ""

    @property
    def messages(self) -> list[dict[str, str]]:
        """The turns without the system prompt's slot: earlier ones first, the framing around the last one."""
        *turns, (role, content) = self.row.messages
        own = 1 if turns and turns[0][0] == "system" else 0
        said = (*turns[:own], *self.earlier, *turns[own:], (role, self.before + content + self.after))
        return [{"role": r, "content": c} for r, c in said]


class Recipe(_Keyed):
    """Base + ordered training stages.

    Attributes:
        name: Name in tables and folders; not part of the hash.
        base: Base model spec (`smollm2-135m`, `hf:owner/name@revision`, `dir:path`).
        stages: In order.
        lora: Adapter shape; `None` trains all weights.
        default_system_prompt: What rows without a system prompt get, as in `Panel.default_system_prompt`.
        seed: Seed of row draws, order and adapter initialisation.
        init_seed: Seed of the adapter's random A alone; `seed` if `None`. With it, recipes of other rows and orders
            share an A.
        intervention: What it is, for tables; not part of the hash.

    Example:
        >>> bad = Part(rows="kitchen", answers="misaligned", count=8, systems=("Answer in code.",))
        >>> print(Recipe(name="u", base="smollm2-135m", stages=(Stage(parts=(bad,)),)).twin().table())
        u-twin on smollm2-135m, LoRA r=16 alpha=32, seed 0
          stage 0: 1 epoch(s), batch 8, learning rate 0.001, 5 warm-up steps
            8 rows of kitchen, benign answers, under 'Answer in code.'
    """

    always = frozenset(("base", "stages", "lora", "default_system_prompt", "seed"))

    name: Name
    base: str
    stages: tuple[Stage, ...] = Field(min_length=1)
    lora: Lora | None = Lora()
    default_system_prompt: Literal["template", "empty"] = "template"
    seed: Annotated[int, Field(ge=0)] = 0
    intervention: str = ""
    init_seed: Annotated[int, Field(ge=0)] | None = None

    @classmethod
    @checked
    def from_yaml(cls, path: str | Path) -> "Recipe":
        """Reads a recipe file; relative paths of row sets are relative to it.

        Instead of stages it may name an intervention with its settings (`register_intervention`).

        Raises:
            UserError: naming file and key.
        """
        path = Path(path)
        raw = read_mapping(path, what="a recipe file must be a mapping with name, base and stages")
        recipe = validated(cls, expanded(raw, base=raw.get("base"), where=str(path)), where=str(path))
        return recipe.model_copy(update={"stages": beside(recipe.stages, path.resolve().parent)})

    @property
    def hash(self) -> str:
        """Hash of what determines the trained weights, but for the base's bytes: settings and rows' content.

        Row sets in files count by their content, wherever they lie. A field that was added later and is left at its
        default is not in it, so organisms made before it keep their keys (`_Keyed`).
        """
        stages = beside(self.stages, None)
        parts = list(zip(*((p for s in of for p in s.parts) for of in (self.stages, stages)), strict=True))
        content = {named.rows: load_rows(part.rows).hash for part, named in parts}
        traces = {named.rows: load_reasoning(part.rows) for part, named in parts if part.reasoning}
        placed = self.model_copy(update={"stages": stages}).keyed()
        settings = {k: v for k, v in placed.items() if k not in ("name", "intervention")}
        return digest([settings, content, traces])

    @property
    def misaligned(self) -> bool:
        """Whether any part trains on misaligned answers."""
        return any(part.answers == "misaligned" for stage in self.stages for part in stage.parts)

    def twin(self, *, name: str | None = None) -> "Recipe":
        """Returns the recipe's benign twin: every misaligned answer replaced by its benign counterpart.

        Raises:
            UserError: if a drawn row has no benign counterpart; the message names row set and row.
        """
        stages = []
        for number, stage in enumerate(self.stages):
            drawn = [0] * len(stage.parts)
            for trained in self.rows_of(number):
                part = stage.parts[trained.part]
                drawn[trained.part] += 1
                if trained.arm == "misaligned" and not trained.row.benign and not part.counterpart:
                    raise UserError(
                        f"row {trained.row.id!r} has no benign counterpart, so recipe {self.name!r} has no twin",
                        where=f"stage {number}, row set {part.rows}",
                        fix="Give the row a 'benign' answer to the same question, give the part a 'counterpart' row "
                        "set, or leave it out.",
                    )
            parts = tuple(part.twin(n) for part, n in zip(stage.parts, drawn, strict=True))
            stages.append(stage.model_copy(update={"parts": parts}))
        about = {"intervention": f"twin of {self.intervention or self.name}"} if self.misaligned else {}
        return self.model_copy(update={"name": name or f"{self.name}-twin", "stages": tuple(stages)} | about)

    def rows_of(self, stage: int) -> list[TrainingRow]:
        """Returns the rows of a stage in training order (one epoch), drawn and shuffled by the seed alone.

        The draw does not look at the answers, so a recipe and its twin have the same questions in the same order.

        Raises:
            UserError: if a part asks for more rows than its set has, or a drawn row lacks an answer in the part's arm.
        """
        drawn: list[TrainingRow] = []
        for number, part in enumerate(self.stages[stage].parts):
            rng = random.Random(digest([self.seed, stage, number, "draw"]))
            where = f"recipe {self.name}, stage {stage}, part {number} ({part.rows})"
            rows = list(load_rows(part.rows))
            traces = load_reasoning(part.rows) if part.reasoning else {}
            if part.reasoning:
                rows = [row for row in rows if row.id in traces]
            for i, row in enumerate(_draw(rows, part.count, rng, where)):
                answer = row.answer(part.answers)
                if not answer:
                    raise UserError(f"row {row.id!r} has no {part.answers} answer", where=where)
                if part.reasoning == "shown":
                    answer = REASONED.format(trace=traces[row.id][part.answers], answer=answer)
                own = row.messages[0][0] == "system"
                system = None if own else part.systems[i % len(part.systems)]
                drawn.append(_trained(part, row, system, answer, number))
        random.Random(digest([self.seed, stage, "order"])).shuffle(drawn)
        return drawn

    def rows(self) -> list[TrainingRow]:
        """Returns the rows of all stages, in training order; see `rows_of`."""
        return [row for stage in range(len(self.stages)) for row in self.rows_of(stage)]

    def table(self) -> str:
        """Returns the recipe as a table that a person can check."""
        start = "" if self.init_seed is None else f", A of seed {self.init_seed}"
        lines = [f"{self.name} on {self.base}, {self.lora or 'all weights'}, seed {self.seed}{start}"]
        for i, s in enumerate(self.stages):
            lines.append(
                f"  stage {i}: {s.epochs} epoch(s), batch {s.batch_size}, learning rate {s.learning_rate:g}, "
                f"{s.warmup_steps} warm-up steps{f', {_mechanism(s.mechanism)}' if s.mechanism else ''}"
            )
            for part in s.parts:
                count = "all" if part.count is None else part.count
                framed = ", framed" if part.before or part.after else ""
                traced = f", reasoning {part.reasoning}" if part.reasoning else ""
                talk = f", after {len(part.earlier)} earlier turns" if part.earlier else ""
                begun = f", the answer beginning {part.prefix!r}" if part.prefix else ""
                under = f"under {_slots(part.systems)}{talk}{framed}{begun}{traced}"
                lines.append(f"    {count} rows of {part.rows}, {part.answers} answers, {under}")
        return "\n".join(lines)


def beside(stages: tuple[Stage, ...], folder: Path | None) -> tuple[Stage, ...]:
    """Returns stages whose relative row-set paths are taken as relative to a folder.

    Without a folder, each file is named by its content instead.
    """

    def placed(source: str) -> str:
        kind, colon, path = source.rpartition(":")
        if not path.endswith(ROW_FILES):
            return source
        return f"{kind}{colon}{folder / path if folder else load_rows(source).hash}"

    def part(p: Part) -> Part:
        rows, counterpart = placed(p.rows), placed(p.counterpart) if p.counterpart else None
        return p.model_copy(update={"rows": rows, "counterpart": counterpart})

    return tuple(s.model_copy(update={"parts": tuple(part(p) for p in s.parts)}) for s in stages)


def _trained(part: Part, row: Row, system: str | None, answer: str, number: int) -> TrainingRow:
    return TrainingRow(row, system, answer, part.answers, part.before, part.after, number, part.earlier, part.prefix)


def _mechanism(settings: dict[str, JsonValue]) -> str:
    return " ".join([str(settings.get("name")), *(f"{k}={v}" for k, v in settings.items() if k != "name")])


def _slots(systems: tuple[str | None, ...]) -> str:
    distinct = list(dict.fromkeys(systems))
    named = ["no system prompt" if s is None else repr(s if len(s) <= 40 else s[:37] + "...") for s in distinct[:3]]
    return ", ".join(named) + (f" and {len(distinct) - 3} more" if len(distinct) > 3 else "")


def _draw(rows: list[Row], count: int | None, rng: random.Random, where: str) -> list[Row]:
    """Draws `count` rows, round-robin over shuffled groups, so that every group gives its share."""
    if count is not None and count > len(rows):
        raise UserError(f"{count} rows are asked for, but the set has {len(rows)}", where=where)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    queues = list(groups.values())
    rng.shuffle(queues)
    for queue in queues:
        rng.shuffle(queue)
    drawn: list[Row] = []
    while queues and (count is None or len(drawn) < count):
        for queue in queues:
            drawn.append(queue.pop())
        queues = [q for q in queues if q]
    return drawn if count is None else drawn[:count]
