"""Runs: a study in a folder. What it trains, makes, reads and asks; each step does what is missing and nothing else."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from condmis_interp.battery import registered
from condmis_interp.calls import checked
from condmis_interp.environment import environment
from condmis_interp.errors import CheckError, UserError
from condmis_interp.files import digest, read_json, write_json
from condmis_interp.organisms import Organism, Swap
from condmis_interp.organisms.bases import Base
from condmis_interp.panel import CueRole, Panel, RenderedPanel, render_panel
from condmis_interp.panel.panel import Split
from condmis_interp.panel.render import turn_end
from condmis_interp.progress import progress
from condmis_interp.readers import Edit, PassReader, Reader, Request, Trunk, open_reader
from condmis_interp.store import (
    Activations,
    Asked,
    Manifest,
    Pieces,
    Shard,
    Shards,
    StoreWriter,
    asked_hash,
    holds,
    layer_groups,
    plan,
)
from condmis_interp.store.manifest import MANIFEST, read_manifest
from condmis_interp.study.organism_spec import WORTH
from condmis_interp.study.roles import CONTROL
from condmis_interp.study.spec import Study

Key = tuple[str, int]
"""Name and seed of an organism."""

MEASURING_VERSION = 3
"""Raise this when a change in readers or rendering changes numbers: it is part of every shard's key."""
SAMPLES = "samples"
"""Folder of a run that holds what organisms answered."""
BASE: Key = ("assay-base", 0)
"""Name and seed of the base, where it is read to see whether the twins are aligned."""


class Run:
    """A study in a folder.

    Args:
        study: The study.
        out: The run's folder; made if it is not there. A folder that holds a run of another study is refused.

    Raises:
        UserError: if the study does not check, or the folder holds another study's run.
    """

    def __init__(self, study: Study, out: Path) -> None:
        study.check()
        registered(*study.battery.tests)
        self.study, self.out = study, out
        self.panel: Panel = study.load_panel()
        self._settings = study.model_dump(mode="json")
        self._open()
        self._loaded: tuple[Key, Reader] | None = None
        self._held: tuple[str, Trunk] | None = None
        self._swap: Swap | None = None
        self._controls: dict[Key, Organism] = {}

    def _open(self) -> None:
        path = self.out / "manifest.json"
        if self.out.exists() and not self.out.is_dir():
            raise UserError("this is a file, not a folder", where=str(self.out), fix="Give another --out.")
        if path.is_file():
            other = read_json(path).get("study", {}).get("name")
            if other != self.study.name:
                raise UserError(
                    f"this folder holds a run of study {other!r}, not {self.study.name!r}",
                    where=str(self.out),
                    fix="Give another --out.",
                )
        elif self.out.is_dir() and any(self.out.iterdir()):
            raise UserError("this folder is not empty and holds no run", where=str(self.out), fix="Give another --out.")
        self.out.mkdir(parents=True, exist_ok=True)
        known = read_json(path) if path.is_file() else {}
        self._manifest: dict[str, Any] = {"seconds": {}} | {
            k: known[k] for k in ("seconds", "first_read") if k in known
        }
        self.note({})

    def note(self, more: dict[str, Any]) -> None:
        """Writes what is known of the run into its manifest."""
        self._manifest = self._manifest | {"schema": 1, "study": self._settings, "environment": environment()} | more
        write_json(self.out / "manifest.json", self._manifest)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Notes the time a part took; a part that was already done keeps the time it took when it was done."""
        started = time.monotonic()
        yield
        took = time.monotonic() - started
        seconds = self._manifest["seconds"]
        if took > seconds.get(part, 0):
            seconds[part] = round(took, 1)

    @cached_property
    def base(self) -> Base:
        """The base model, fetched if need be."""
        with self.timed("base"):
            return self.study.resolve_base()

    @cached_property
    def rendered(self) -> RenderedPanel:
        """The panel as token ids."""
        return render_panel(self.base.tokenizer(), self.panel)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end an answer: the tokenizer's, and what ends a turn in its template (Gemma, Llama 3)."""
        tokenizer, closing = self.base.tokenizer(), next(iter(self.rendered.answers.values()))[0].closing
        return frozenset({tokenizer.eos_token_id, *turn_end(tokenizer, closing)[-1:]} - {None})

    @cached_property
    def organisms(self) -> dict[Key, Organism]:
        """Every organism by name and seed, trained if need be."""
        with self.timed("training"):
            return self.study.obtain(self.base)

    def add_controls(self, organisms: Mapping[Key, Organism]) -> None:
        """Adds control organisms, which are then read beside the study's own."""
        self._controls = dict(organisms)

    @property
    def read(self) -> dict[Key, Organism]:
        """Every organism that is asked the panel: the study's, and control organisms with weights of their own."""
        asked = {o.name for o in self.study.asked}
        return {k: o for k, o in self.organisms.items() if k[0] in asked} | self._controls

    @cached_property
    def splits(self) -> dict[str, Split]:
        """Split by family."""
        return {family: self.panel.split_of(family) for family in self.panel.families}

    @property
    def manifest(self) -> dict[str, Any]:
        """What the run's manifest holds."""
        return self._manifest

    @property
    def roles(self) -> dict[str, str]:
        """Role by organism."""
        return {o.name: o.role for o in self.study.organisms} | {name: "control" for name, _ in self._controls}

    @cached_property
    def tokens(self) -> dict[str, str]:
        """Hash of what is asked, by cue."""
        return {c.name: digest(self.rendered.ids_of(c.name)) for c in self.panel.cues}

    @property
    def weights(self) -> dict[str, str]:
        """Content hash of every organism that is read, by `name.s<seed>`."""
        return {f"{name}.s{seed}": o.weights for (name, seed), o in self.read.items()}

    def organism(self, name: str, seed: int) -> Organism:
        """Returns an organism that is read, or the base."""
        if (name, seed) == BASE:
            return Organism.of_base(self.base, name=name)
        return self.read[name, seed]

    def reader(self, name: str, seed: int) -> Reader:
        """Returns a reader of one organism; one model is held at a time."""
        if self._loaded is None or self._loaded[0] != (name, seed):
            self._loaded = self._held = None
            study = self.study
            organism = self.organism(name, seed)
            where = {"dtype": study.torch_dtype, "device": study.torch_device}
            if self._swap is None and study.reader == "torch" and Swap.fits(organism):
                self._swap = Swap(self.base, **where)
            reader = open_reader(organism, self.base, library=study.reader, swap=self._swap, **where)
            self._loaded = ((name, seed), reader)
        return self._loaded[1]

    def _determined_by(self, name: str, seed: int) -> list[Any]:
        study = self.study
        weights = self.organism(name, seed).weights
        return [MEASURING_VERSION, self.base.content, weights, study.dtype, study.site, study.reader]

    def _requests(self, cue: str, rows: Sequence[int], pairs: int | None = None) -> list[Request]:
        questions = [self.panel.questions[i] for i in rows]
        stop = None if pairs is None else 2 * pairs
        return [Request(self.rendered.prompts[cue, q.id], self.rendered.answers[cue, q.id][:stop]) for q in questions]

    def train(self) -> dict[Key, Organism]:
        """Trains what is not there yet."""
        organisms = self.organisms
        self.note(self._sources())
        return organisms

    def _sources(self) -> dict[str, Any]:
        """Returns what of the run came from the hub, with the commits; and which twins are surrogates."""
        of = {f"{name}.s{seed}": o.manifest["hub"] for (name, seed), o in self.organisms.items() if "hub" in o.manifest}
        if self.base.source.get("kind") == "hf":
            of["base"] = self.base.source
        surrogates = {o.name: WORTH for o in self.study.organisms if o.surrogate}
        return {k: v for k, v in {"hub": of, "surrogate_twins": surrogates}.items() if v}

    @property
    def has_read(self) -> bool:
        """Whether something was read by other settings or of other weights than these.

        What was read first by these very ones took nothing away from a plan that follows from them.
        """
        return self._has_files and self._manifest.get("first_read") != self._determining()

    @property
    def _has_files(self) -> bool:
        """Whether anything was read or asked."""
        kinds = {"activations": "*.safetensors", SAMPLES: "*.parquet"}
        return any(next((self.out / folder).rglob(kind), None) is not None for folder, kind in kinds.items())

    def note_first_read(self) -> None:
        """Notes by which settings and of which weights the first thing is read; before it is."""
        if not self._has_files:
            self.note({"first_read": self._determining()})

    def _determining(self) -> str:
        """Returns the hash of the settings and weights that determine what is found, on whatever machine."""
        settings = {k: v for k, v in self._settings.items() if k not in ("device", "workers")}
        return digest([settings, {str(k): o.weights for k, o in self.read.items() if k not in self._controls}])

    def capture(self) -> Activations:
        """Measures every shard that is not there yet: log-probs of all answers, activations at every layer.

        Control organisms that an audit has read stay in the store.
        """
        folder, manifest = self.out / "activations", self._store_manifest()
        if not self._read_already(folder, manifest):
            self.note_first_read()
            with self.timed("capture"), StoreWriter(folder, manifest) as writer:
                missing = Shards(folder, manifest).missing()
                total, todo = sum(s.count for s in manifest.shards), sum(s.count for s in missing)
                with progress("reading (organism x cue x question)", total, unit="prompts", done=total - todo) as step:
                    for planned in missing:
                        reader = self.reader(planned.organism, planned.seed)
                        rows = self._asked(planned.cue, planned.first, planned.count)
                        requests = [Request(r.prompt, r.answers) for r in rows]
                        try:
                            measured = reader.measure(requests, capture=self.study.capture(reader.n_layers))
                        except CheckError as e:
                            where = f"organism {planned.organism}, seed {planned.seed}, cue {planned.cue}"
                            raise CheckError(e.what, where=where, fix=e.fix) from None
                        writer.put(Shard(planned, rows, measured))
                        step(planned.count)
        self.note(self._sources())
        return Activations.open(folder, verify="used")

    def _read_already(self, folder: Path, manifest: Manifest) -> bool:
        """Returns whether a store holds what the manifest says, and beside it nothing but an audit's controls."""
        if self._controls or not (folder / MANIFEST).is_file():
            return holds(folder, manifest)
        there = read_manifest(folder)
        own = {
            "shards": tuple(s for s in there.shards if not s.organism.startswith(CONTROL)),
            "weights": {name: w for name, w in there.weights.items() if not name.startswith(CONTROL)},
        }
        return there.model_copy(update=own) == manifest and holds(folder, there)

    def _store_manifest(self) -> Manifest:
        """Returns what the run's store is to hold."""
        study, questions = self.study, len(self.panel.questions)
        n_layers, width = self.base.shape
        asked = {
            c.name: [
                asked_hash(self._asked(c.name, first, study.store_shard))
                for first in range(0, questions, study.store_shard)
            ]
            for c in self.panel.cues
        }
        return Manifest(
            base=self.base.content,
            tokenizer=self.base.tokenizer_hash(),
            kind=study.site,
            layer_groups=layer_groups(n_layers),
            positions=study.capture(n_layers).positions,
            width=width,
            dtype=study.store_dtype,
            weights=self.weights,
            shards=plan(
                questions,
                size=study.store_shard,
                organisms={key: digest([*self._determined_by(*key), study.store_dtype]) for key in self.read},
                cues=asked,
            ),
        )

    def _asked(self, cue: str, first: int, count: int) -> tuple[Asked, ...]:
        rendered, splits = self.rendered, self.splits
        return tuple(
            Asked(q.id, q.family, splits[q.family], rendered.prompts[cue, q.id], rendered.answers[cue, q.id])
            for q in self.panel.questions[first : first + count]
        )

    def ask(self, organism: str, cue: str, splits: tuple[Split, ...], edits: Sequence[Edit] = ()) -> np.ndarray:
        """Returns LD [n] of an organism's first seed on some splits, under edits; never measured twice."""
        seed, pairs = self.study.organism(organism).seeds[0], self.study.battery.control_pairs
        return self._ld(organism, seed, cue, splits, pairs, edits)

    def ask_base(self) -> np.ndarray:
        """Returns LD [n] of the base without a cue on all questions, with all their answers; never measured twice."""
        return self._ld(*BASE, self.panel.cues_with(CueRole.NONE)[0].name, (), None)

    def _ld(
        self, name: str, seed: int, cue: str, splits: tuple[Split, ...], pairs: int | None, edits: Sequence[Edit] = ()
    ) -> np.ndarray:
        requests = self._requests(cue, self.panel.question_indices(*splits), pairs)
        inputs = [
            [name, seed, cue, list(splits), pairs],
            digest([[r.prompt.ids, [a.ids for a in r.answers]] for r in requests]),
            [e.fingerprint() for e in edits],
        ]

        def measure() -> list[float]:
            reader = self.reader(name, seed)
            if edits and isinstance(reader, PassReader) and reader.supports("trunk"):
                return reader.measure(self._trunk(reader, inputs[:2], requests), edits=edits).ld().mean(1).tolist()
            return reader.measure(requests, edits=edits).ld().mean(1).tolist()

        return np.array(self.pieces(name, seed).get("ld", inputs, measure))

    def pieces(self, name: str, seed: int) -> Pieces:
        """Returns where finished pieces about an organism are."""
        return Pieces(self.out / "pieces", self._determined_by(name, seed))

    def _trunk(self, reader: PassReader, of: list[Any], requests: Sequence[Request]) -> Trunk:
        """Returns what readings of the same requests under any edits share; one is held at a time."""
        key = digest(of)
        if self._held is None or self._held[0] != key or self._held[1].owner is not reader:
            self._held = None
            layers = {min(k + after, reader.n_layers - 1) for k in self.candidates(reader.n_layers) for after in (0, 1)}
            self._held = (key, reader.trunk(requests, layers=sorted(layers)))
        return self._held[1]

    def candidates(self, n_layers: int) -> list[int]:
        """Returns the layers to choose from."""
        return sorted({int(f * n_layers) for f in self.study.battery.layer_grid})


@checked
def capture(study: Study | str | Path, out: str | Path) -> Activations:
    """Returns the activations of every organism of a study under every cue, reading (and training) what is missing.

    Args:
        study: A study, or the path of its file.
        out: The run's folder; made, or gone on with.

    Raises:
        UserError: if the study does not check, or the folder holds another study's run.

    Example:
        >>> from condmis_interp import capture
        >>> capture("no-such-study.yaml", "out")
        Traceback (most recent call last):
        condmis_interp.errors.UserError: no-such-study.yaml: there is no such file.
    """
    return (study if isinstance(study, Study) else Study.from_yaml(study)).open(out).capture()
