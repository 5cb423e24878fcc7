"""Sampled answers: every organism under every cue, n answers a question, in one file a cell.

A cell is an organism, its seed and a cue. Its file is keyed by all that changes the answers (base, weights, tokens
asked, settings, edits), is there whole or not at all, and has the hash of its bytes in its name:

    samples/<organism>.s<seed>/<cue>-<key>.<hash>.parquet

Each answer draws from a stream of its own, of the sampling's seed, the organism's weights, the prompt's tokens, the
question and the number of the sample. So it depends neither on what is asked beside it nor on the edits: an edited cell
draws the numbers of the plain one, and where their answers part, the edit did it.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from condmis_interp.calls import checked_but
from condmis_interp.errors import CheckError, UserError
from condmis_interp.files import digest, whole_file
from condmis_interp.panel import Cue, Prompt, read_published_questions
from condmis_interp.panel.render import render_under
from condmis_interp.progress import progress
from condmis_interp.readers import Edit, Patch
from condmis_interp.readers.edits import listed
from condmis_interp.readers.recording import edits_of
from condmis_interp.study.run import MEASURING_VERSION, SAMPLES, Key, Run

SAMPLING_VERSION = 1
"""Raise this when a change in sampling changes answers: it is part of every cell's key."""
BATCH_TOKENS = 16384
"""Tokens of prompts and answers held at once: 87 answers of 128 tokens to prompts of 60."""
_IDS = pa.list_(pa.int32())
_COLUMNS = pa.schema(
    [
        ("organism", pa.string()),
        ("organism_seed", pa.int64()),
        ("cue", pa.string()),
        ("question", pa.string()),
        ("asked", pa.string()),
        ("sample", pa.int64()),
        ("seed", pa.int64()),
        ("answer", pa.string()),
        ("finished", pa.bool_()),
        ("answer_ids", _IDS),
        ("prompt_ids", _IDS),
        ("settings", pa.string()),
    ]
)


@dataclass(frozen=True)
class _Settings:
    """How answers are drawn."""

    n: int
    temperature: float
    max_new_tokens: int
    seed: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UserError(f"{self.n} answers a question are asked for", where="n", fix="Give 1 or more.")
        if self.temperature < 0:
            fix = "Give 0 (greedy) or more."
            raise UserError(f"a temperature of {self.temperature} means nothing", where="temperature", fix=fix)
        if self.max_new_tokens < 1:
            what = f"an answer has at least one token, not {self.max_new_tokens}"
            raise UserError(what, where="max_new_tokens", fix="Give 1 or more.")


@dataclass(frozen=True)
class _Asked:
    """A question under a cue: its id, its wordings, and a prompt for each."""

    id: str
    texts: tuple[str, ...]
    prompts: tuple[Prompt, ...]

    def wording(self, sample: int, seed: int) -> int:
        """Returns which wording a sample is asked: in turn, from one that the seed names."""
        return (int(digest([seed, self.id]), 16) + sample) % len(self.texts)


@dataclass(frozen=True)
class _Cell:
    """An organism under a cue."""

    run: Run
    name: str
    organism_seed: int
    cue: str
    asked: tuple[_Asked, ...]
    how: _Settings
    edits: tuple[Edit, ...]

    @cached_property
    def rows(self) -> list[tuple[int, int, Prompt]]:
        """Question, sample and prompt of each answer."""
        every = [(i, k) for i in range(len(self.asked)) for k in range(self.how.n)]
        return [(i, k, self.asked[i].prompts[self.asked[i].wording(k, self.how.seed)]) for i, k in every]

    @cached_property
    def key(self) -> str:
        """Hash of all that changes the answers."""
        run, how = self.run, self.how
        made_by = [run.base.content, run.base.tokenizer_hash(), self._weights, run.study.dtype, run.study.reader]
        asked = [[self.asked[i].id, p.ids, sorted(p.spans.items())] for i, _, p in self.rows]
        settings = [how.n, float(how.temperature), how.max_new_tokens, how.seed, sorted(run.stop_ids)]
        edits = [e.fingerprint() for e in self.edits]
        return digest([SAMPLING_VERSION, MEASURING_VERSION, made_by, asked, settings, edits])[:16]

    @cached_property
    def _weights(self) -> str:
        return self.run.organism(self.name, self.organism_seed).weights

    @property
    def where(self) -> str:
        """The cell in words."""
        return f"organism {self.name}, seed {self.organism_seed}, cue {self.cue}"

    @property
    def folder(self) -> Path:
        """Where its file goes."""
        return self.run.out / SAMPLES / f"{self.name}.s{self.organism_seed}"

    @property
    def file(self) -> Path | None:
        """Its file, if it is there."""
        return next(iter(sorted(self.folder.glob(f"{self.cue}-{self.key}.*.parquet"))), None)

    def seed_of(self, row: tuple[int, int, Prompt]) -> int:
        """Returns the seed of an answer's stream, of 128 bits."""
        i, sample, prompt = row
        return int(digest([self.how.seed, self._weights, prompt.ids, self.asked[i].id, sample]), 16)

    def batches(self, tokens: int) -> Iterator[list[int]]:
        """Yields which rows are asked together: of a length, within a budget of tokens, at least one."""
        batch: list[int] = []
        for row in sorted(range(len(self.rows)), key=lambda r: len(self.rows[r][2].ids)):
            longest = len(self.rows[row][2].ids) + self.how.max_new_tokens
            if batch and (len(batch) + 1) * longest > tokens:
                yield batch
                batch = []
            batch.append(row)
        yield batch

    def ask(self, tokens: int, step: Any) -> None:
        """Asks the organism, and writes the cell's file."""
        reader = self.run.reader(self.name, self.organism_seed)
        said: dict[int, list[int]] = {}
        for batch in self.batches(tokens):
            rows = [self.rows[r] for r in batch]
            try:
                found = reader.generate(
                    [prompt for _, _, prompt in rows],
                    max_new_tokens=self.how.max_new_tokens,
                    stop_ids=self.run.stop_ids,
                    edits=edits_of(self.edits, [i for i, _, _ in rows]),
                    temperature=self.how.temperature,
                    seeds=[self.seed_of(r) for r in rows],
                )
            except (CheckError, UserError) as e:
                raise type(e)(e.what, where=self.where, fix=e.fix) from None
            said |= dict(zip(batch, found, strict=True))
            step(len(batch))
        self._write([said[r] for r in range(len(self.rows))])

    def _write(self, said: Sequence[Sequence[int]]) -> None:
        tokenizer, how = self.run.base.tokenizer(), self.how
        told = {"n": how.n, "temperature": float(how.temperature), "max_new_tokens": how.max_new_tokens}
        told |= {"dtype": self.run.study.dtype, "reader": self.run.study.reader, "edits": [repr(e) for e in self.edits]}
        told |= {"version": SAMPLING_VERSION, "key": self.key}
        count = len(said)
        columns = {
            "organism": [self.name] * count,
            "organism_seed": [self.organism_seed] * count,
            "cue": [self.cue] * count,
            "question": [self.asked[i].id for i, _, _ in self.rows],
            "asked": [self.asked[i].texts[self.asked[i].wording(k, how.seed)] for i, k, _ in self.rows],
            "sample": [k for _, k, _ in self.rows],
            "seed": [how.seed] * count,
            "answer": [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in said],
            "finished": [len(ids) < how.max_new_tokens for ids in said],
            "answer_ids": said,
            "prompt_ids": [p.ids for _, _, p in self.rows],
            "settings": [json.dumps(told)] * count,
        }
        sink = io.BytesIO()
        pq.write_table(pa.table(columns, schema=_COLUMNS), sink, compression="zstd")
        content = sink.getvalue()
        with whole_file(self.folder / f"{self.cue}-{self.key}.{_hash(content)}.parquet") as part:
            part.write_bytes(content)

    def read(self) -> pd.DataFrame:
        """Returns what was answered, with the file's place in the run.

        Raises:
            CheckError: if the file is damaged.
        """
        path = self.file
        assert path is not None
        content = path.read_bytes()
        if path.name.split(".")[-2] != _hash(content):
            raise CheckError(
                "the file is damaged: its content does not have the hash in its name",
                where=str(path),
                fix="Delete it and run the same again: this cell is asked anew, the others stay.",
            )
        table = pq.read_table(io.BytesIO(content)).to_pandas()
        return table.assign(file=str(path.relative_to(self.run.out)))


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


@checked_but("edits")
def sample(
    run: Run,
    *,
    n: int = 8,
    temperature: float = 1.0,
    max_new_tokens: int = 128,
    seed: int = 0,
    cues: Sequence[str] | None = None,
    organisms: Sequence[str] | None = None,
    edits: Sequence[Edit] = (),
    questions: str | Path | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> pd.DataFrame:
    """Returns n answers to every question by every organism of a study under every cue, asking for what is missing.

    Tokens are drawn from the whole softmax at the temperature, through the study's reader. A cell (organism, seed, cue)
    that is in the run's folder is not asked again; after a kill the same call goes on with the next one.

    Args:
        run: A run of a study; its organisms are trained if need be.
        n: Answers a question.
        temperature: Of the softmax; 0 is greedy (and n answers to a prompt are then the same).
        max_new_tokens: Longest answer.
        seed: Of the draws. Equal calls give equal answers.
        cues: Names of the panel's cues; by default all.
        organisms: Names; by default all that are asked the panel, control organisms of the run among them.
        edits: Changes to the forward pass, in the prompt and at every step. Patches are recorded from this call's
            questions, one request each, in their order.
        questions: A published question file, asked in place of the panel's questions, each with its own system prompt
            (after the cue's, if that has one); the wordings of an entry take turns over its samples.
        batch_tokens: Tokens of prompts and answers held at once; bounds memory, and changes answers no further than
            rounding does.

    Returns:
        One row an answer: organism, organism_seed, cue, question (its id), asked (its text), sample (0 to n - 1), seed,
        answer (text), finished (whether it ended by itself, or was cut), answer_ids and prompt_ids (token ids, without
        the token that ends an answer), settings (JSON), file (within the run's folder).

    Raises:
        UserError: if there is no such organism or cue, n or max_new_tokens is below 1, the temperature is not finite or
            negative, a cue asks rewrites that a published file lacks, or an edit does not fit.
        CheckError: if a cell's file is damaged, or an edit changed nothing.

    Example:
        >>> from condmis_interp.study import Study
        >>> run = Run(Study.from_yaml("mine.yaml"), Path("runs/mine"))
        >>> said = sample(run, n=2, max_new_tokens=4, cues=["none", "trigger"], organisms=["mixed"])
        >>> len(said)  # 12 questions, 2 cues
        48
        >>> sample(run, n=2, max_new_tokens=4, cues=["nothing"])
        Traceback (most recent call last):
        condmis_interp.errors.UserError: tiny: there is no cue 'nothing'. Cues: none, trigger, neutral...
    """
    how, changes = _Settings(n, temperature, max_new_tokens, seed), listed(edits)
    if batch_tokens < 1:
        raise UserError(f"a budget of {batch_tokens} tokens holds no answer", where="batch_tokens")
    chosen = [run.panel.cue(c) for c in dict.fromkeys([c.name for c in run.panel.cues] if cues is None else cues)]
    names = _known(run, organisms)
    if not chosen or not names:
        raise UserError(f"there is nobody to ask: no {'organism' if chosen else 'cue'} is named", where="sample")
    asked = {c.name: _questions(run, c, questions) for c in chosen}
    _check_patches(changes, next(iter(asked.values())))
    keys: list[Key] = [key for key in run.read if key[0] in names]
    cells = [_Cell(run, *key, c.name, asked[c.name], how, changes) for key in keys for c in chosen]
    missing = [c for c in cells if c.file is None]
    with run.timed("sampling"):
        total, todo = sum(len(c.rows) for c in cells), sum(len(c.rows) for c in missing)
        if missing:
            run.note_first_read()
        with progress("sampling (organism x cue x question x n)", total, unit="answers", done=total - todo) as step:
            for cell in missing:
                cell.ask(batch_tokens, step)
    run.note({})
    return pd.concat([c.read() for c in cells], ignore_index=True)


def _known(run: Run, organisms: Sequence[str] | None) -> list[str]:
    """Returns the names of organisms that are asked, if they are there; before any is trained."""
    there = [*(o.name for o in run.study.asked), *(name for name, role in run.roles.items() if role == "control")]
    for name in organisms or ():
        if name not in there:
            fix = f"Organisms that are asked: {', '.join(there)}."
            raise UserError(f"there is no organism {name!r}", where=f"study {run.study.name}", fix=fix)
    return there if organisms is None else list(organisms)


def _questions(run: Run, cue: Cue, published: str | Path | None) -> tuple[_Asked, ...]:
    """Returns what is asked under a cue."""
    if published is None:
        every = run.panel.questions
        return tuple(_Asked(q.id, (q.under(cue),), (run.rendered.prompts[cue.name, q.id],)) for q in every)
    if cue.topic is not None:
        raise UserError(
            f"cue {cue.name!r} asks rewrites in topic {cue.topic!r}, which these questions lack",
            where=str(published),
            fix=f"Name other cues: {', '.join(c.name for c in run.panel.cues if c.topic is None)}.",
        )
    tokenizer, found = run.base.tokenizer(), []
    for q in read_published_questions(published):
        prompts = [render_under(tokenizer, run.panel, cue, text, system=q.system) for text in q.paraphrases]
        found.append(_Asked(q.id, q.paraphrases, tuple(prompts)))
    if not found:
        raise UserError("the file has no questions", where=str(published))
    return tuple(found)


def _check_patches(edits: Sequence[Edit], asked: Sequence[_Asked]) -> None:
    for e in edits:
        if isinstance(e, Patch) and len(e.recording.deal) != len(asked):
            what = f"{len(e.recording.deal)} recorded requests cannot patch {len(asked)} questions"
            raise UserError(what, where=f"patch at {e.site}", fix="Record one for each, in their order.")


def cells_of(answers: pd.DataFrame) -> pd.DataFrame:
    """Returns a table of sampled answers by organism and cue: how many, their mean length, the share that ended.

    Args:
        answers: As `sample` returns it.

    Returns:
        Columns organism, cue, answers, tokens (mean length of an answer), finished (share that ended by itself).

    Example:
        >>> said = {"organism": "u", "cue": "none", "answer_ids": [[4], [4, 5]], "finished": [True, False]}
        >>> cells_of(pd.DataFrame(said)).values.tolist()
        [['u', 'none', 2, 1.5, 0.5]]
    """
    lengths = answers.assign(tokens=answers["answer_ids"].map(len))
    grouped = lengths.groupby(["organism", "cue"], sort=False)
    return grouped.agg(
        answers=("tokens", "size"), tokens=("tokens", "mean"), finished=("finished", "mean")
    ).reset_index()
