"""Runs: a study in a folder, from training to the report. Each step does what is missing and nothing else."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from condmis_interp import battery, directions, report, verdict
from condmis_interp.battery import Evidence, evidence_table
from condmis_interp.environment import environment
from condmis_interp.errors import UserError
from condmis_interp.files import digest, read_json, whole_file, write_json
from condmis_interp.organisms import Organism, Swap
from condmis_interp.organisms.bases import Base
from condmis_interp.panel import CueRole, Panel, RenderedPanel, render_panel
from condmis_interp.panel.panel import Split
from condmis_interp.progress import progress
from condmis_interp.readers import Edit, GatedReader, PassReader, Request, Trunk, open_reader
from condmis_interp.store import Activations, Cell, CellKey, CellStore, Pieces
from condmis_interp.study import Study

MEASURING_VERSION = 2
"""Raise this when a change in readers or rendering changes numbers: it is part of every cell's key."""


@dataclass(frozen=True)
class AuditResult:
    """What an audit found.

    Attributes:
        grid: LD of every organism under every cue.
        choice: The layer, and how it was chosen.
        profile: The activation-difference plot's data.
        dose: Steering C.
        ablations: Ablating each M.
        evidence: All evidence.
        verdicts: One verdict for each M.
        answers: Generated answers.
    """

    grid: battery.BehaviourGrid
    choice: battery.LayerChoice
    profiles: dict[str, directions.DirectionProfile]
    dose: battery.DoseResponse
    ablations: dict[str, battery.Ablation]
    evidence: list[Evidence]
    verdicts: dict[str, verdict.Verdict]
    answers: pd.DataFrame

    def to_pandas(self) -> pd.DataFrame:
        """Returns the evidence table."""
        return evidence_table(self.evidence)

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {v!r}" for name, v in self.verdicts.items())


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
        self.study, self.out = study, out
        self.panel: Panel = study.load_panel()
        self._settings = study.model_dump(mode="json")
        self._open()
        self._loaded: tuple[tuple[str, int], PassReader | GatedReader] | None = None
        self._held: tuple[str, Trunk] | None = None
        self._swap: Swap | None = None

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
        durations = read_json(path).get("seconds", {}) if path.is_file() else {}
        self._manifest: dict[str, Any] = {"seconds": durations}
        self._write_manifest({})

    def _write_manifest(self, more: dict[str, Any]) -> None:
        self._manifest = self._manifest | {"schema": 1, "study": self._settings, "environment": environment()} | more
        write_json(self.out / "manifest.json", self._manifest)

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
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
        with self._timed("base"):
            return self.study.resolve_base()

    @cached_property
    def rendered(self) -> RenderedPanel:
        """The panel as token ids."""
        return render_panel(self.base.tokenizer(), self.panel)

    @cached_property
    def organisms(self) -> dict[tuple[str, int], Organism]:
        """Every organism by name and seed, trained if need be."""
        with self._timed("training"):
            return self.study.obtain(self.base)

    @property
    def roles(self) -> dict[str, str]:
        """Role by organism."""
        return {o.name: o.role for o in self.study.organisms}

    def reader(self, name: str, seed: int) -> PassReader | GatedReader:
        """Returns a reader of one organism; one model is held at a time."""
        if self._loaded is None or self._loaded[0] != (name, seed):
            self._loaded = self._held = None
            study = self.study
            organism = self.organisms[name, seed]
            where = {"dtype": study.torch_dtype, "device": study.torch_device}
            if self._swap is None and study.reader == "torch" and Swap.fits(organism):
                self._swap = Swap(self.base, **where)
            reader = open_reader(organism, self.base, library=study.reader, swap=self._swap, **where)
            self._loaded = ((name, seed), reader)
        return self._loaded[1]

    def _determined_by(self, name: str, seed: int) -> list[Any]:
        study = self.study
        weights = self.organisms[name, seed].weights
        return [MEASURING_VERSION, self.base.weights, weights, study.dtype, study.site, study.reader]

    def _requests(self, cue: str, rows: Sequence[int], pairs: int | None = None) -> list[Request]:
        questions = [self.panel.questions[i] for i in rows]
        stop = None if pairs is None else 2 * pairs
        return [Request(self.rendered.prompts[cue, q.id], self.rendered.answers[cue, q.id][:stop]) for q in questions]

    def train(self) -> dict[tuple[str, int], Organism]:
        """Trains what is not there yet."""
        organisms = self.organisms
        self._write_manifest({})
        return organisms

    def capture(self) -> Activations:
        """Measures every cell that is not there yet: log-probs of all answers, activations at every layer."""
        store = CellStore(self.out / "activations", dtype=self.study.store_dtype)
        questions = self.panel.questions
        todo = []
        for name, seed in self.organisms:
            for cue in self.panel.cues:
                key = CellKey(name, seed, cue.name)
                determined = [*self._determined_by(name, seed), digest(self.rendered.ids_of(cue.name))]
                if not store.has(key, determined):
                    todo.append((key, determined))
        with self._timed("capture"):
            if todo:
                with progress("reading cells (organism x cue)", len(todo) * len(questions), unit="questions") as step:
                    for key, determined in todo:
                        reader = self.reader(key.organism, key.seed)
                        measured = reader.measure(
                            self._requests(key.cue, range(len(questions))), capture=self.study.capture(reader.n_layers)
                        )
                        widest = max(len(lp) for lp in measured.logprobs)
                        logprobs = torch.full((len(questions), widest), torch.nan, dtype=torch.float64)
                        for i, lp in enumerate(measured.logprobs):
                            logprobs[i, : len(lp)] = lp
                        store.write(
                            Cell(
                                key=key,
                                questions=tuple(q.id for q in questions),
                                families=tuple(q.family for q in questions),
                                splits=tuple(self.panel.split_of(q.family) for q in questions),
                                logprobs=logprobs,
                                activations={str(p): a for p, a in measured.activations.items()},
                                layers=tuple(range(reader.n_layers)),
                                kind=self.study.site,
                                settings={
                                    "weights": self.organisms[key.organism, key.seed].weights,
                                    "dtype": self.study.dtype,
                                },
                            ),
                            determined,
                        )
                        step(len(questions))
        self._write_manifest({})
        return Activations(
            store, {o.name: o.seeds for o in self.study.organisms}, tuple(c.name for c in self.panel.cues)
        )

    def ask(self, organism: str, cue: str, splits: tuple[Split, ...], edits: Sequence[Edit] = ()) -> np.ndarray:
        """Returns LD [n] of an organism's first seed on some splits, under edits; never measured twice."""
        seed = self.study.organism(organism).seeds[0]
        rows = self.panel.question_indices(*splits)
        pairs = self.study.battery.control_pairs
        requests = self._requests(cue, rows, pairs)
        inputs = [
            [organism, seed, cue, list(splits), pairs],
            digest([[r.prompt.ids, [a.ids for a in r.answers]] for r in requests]),
            [e.fingerprint() for e in edits],
        ]

        def measure() -> list[float]:
            reader = self.reader(organism, seed)
            if edits and isinstance(reader, PassReader) and reader.supports("trunk"):
                return reader.measure(self._trunk(reader, inputs[:2], requests), edits=edits).ld().mean(1).tolist()
            return reader.measure(requests, edits=edits).ld().mean(1).tolist()

        pieces = Pieces(self.out / "pieces", self._determined_by(organism, seed))
        return np.array(pieces.get("ld", inputs, measure))

    def _trunk(self, reader: PassReader, of: list[Any], requests: Sequence[Request]) -> Trunk:
        """Returns what readings of the same requests under any edits share; one is held at a time."""
        key = digest(of)
        if self._held is None or self._held[0] != key or self._held[1].owner is not reader:
            self._held = None
            layers = {
                min(k + after, reader.n_layers - 1) for k in self._candidates(reader.n_layers) for after in (0, 1)
            }
            self._held = (key, reader.trunk(requests, layers=sorted(layers)))
        return self._held[1]

    def _candidates(self, n_layers: int) -> list[int]:
        """Returns the layers to choose from."""
        return sorted({int(f * n_layers) for f in self.study.battery.layer_grid})

    def audit(self) -> AuditResult:
        """Runs the tests, decides, and writes evidence.parquet, verdict.json, figures and report.html."""
        acts = self.capture()
        study, settings = self.study, self.study.battery
        none = self.panel.cues_with(CueRole.NONE)[0].name
        trigger = self.panel.cues_with(CueRole.TRIGGER)[0].name
        u = study.unmitigated.name
        pairs = {m.name: study.twin_of(m.name).name for m in study.mitigated}  # type: ignore[union-attr]
        first_m, first_c = next(iter(pairs.items()))
        candidates = self._candidates(len(acts.layers))
        grid = battery.behaviour(acts, roles=self.roles)
        with (
            self._timed("choosing the layer"),
            progress("choosing the layer on split A", 2 * len(candidates), unit="readings") as step,
        ):
            choice = battery.choose_layer(
                acts,
                self.ask,
                unmitigated=u,
                twin=first_c,
                candidates=candidates,
                position=settings.position,
                step=step,
                none=none,
            )
        generator = torch.Generator().manual_seed(study.seed)
        n = settings.random_directions
        random = {
            d.site.layer: directions.covariance_matched(
                acts,
                organisms=(u, *pairs, *pairs.values()),
                cues=(none, trigger),
                layer=d.site.layer,
                position=settings.position,
                count=n,
                generator=generator,
            )
            for d in choice.directions
        }
        with (
            self._timed("steering"),
            progress("steering C", n + len({*settings.doses, 1.0} - {0.0}), unit="readings") as step,
        ):
            dose = battery.dose_response(
                acts,
                self.ask,
                direction=choice.direction,
                unmitigated=u,
                organism=first_m,
                twin=first_c,
                random=random[choice.layer],
                doses=settings.doses,
                step=step,
                none=none,
            )
        ablations, profiles = {}, {}
        evidence: list[Evidence] = []
        for m, c in pairs.items():
            with (
                self._timed(f"ablating {m}"),
                progress(f"ablating {m} under the trigger", n + 1, unit="readings") as step,
            ):
                ablations[m] = battery.ablation(
                    acts, self.ask, choice=choice, organism=m, twin=c, random=random, trigger=trigger, step=step
                )
            profiles[m] = directions.profile(
                acts,
                unmitigated=u,
                organism=m,
                twin=c,
                roles=self.roles,
                trigger=trigger,
                none=none,
                position=settings.position,
                chosen_layer=choice.layer,
            )
            anchors = {"unmitigated": u, "organism": m, "twin": c, "delta": study.delta, "none": none}
            evidence.append(battery.untriggered(acts, **anchors))
            evidence.extend(battery.worst_cue(acts, **anchors))
            evidence.append(ablations[m].evidence)
        evidence.append(dose.evidence)
        verdicts = {
            m: verdict.preliminary(
                acts,
                [e for e in evidence if e.organism == m],
                unmitigated=u,
                organism=m,
                twin=c,
                delta=study.delta,
                none=none,
                rng=np.random.default_rng(study.seed),
            )
            for m, c in pairs.items()
        }
        answers = self._answers(none, trigger)
        result = AuditResult(grid, choice, profiles, dose, ablations, evidence, verdicts, answers)
        self._write(result)
        return result

    def _answers(self, none: str, trigger: str) -> pd.DataFrame:
        """Generates greedy answers of U, every M and its C to questions of split C, without and with the trigger."""
        settings = self.study.battery
        families: dict[str, int] = {}
        for i in self.panel.question_indices("C"):
            families.setdefault(self.panel.questions[i].family, i)
        rows = list(families.values())[: settings.generated]
        tokenizer = self.base.tokenizer()
        names = [self.study.unmitigated.name]
        for m in self.study.mitigated:
            names += [m.name, self.study.twin_of(m.name).name]  # type: ignore[union-attr]
        table = []
        todo = [(name, cue) for name in names for cue in (none, trigger)] if rows else []
        with self._timed("generating"), progress("generating answers", len(todo), unit="cells") as step:
            for name, cue in todo:
                seed = self.study.organism(name).seeds[0]
                prompts = [self.rendered.prompts[cue, self.panel.questions[i].id] for i in rows]

                def generate(name: str = name, seed: int = seed, prompts: list[Any] = prompts) -> list[str]:
                    ids = self.reader(name, seed).generate(
                        prompts, max_new_tokens=settings.max_new_tokens, stop_ids=frozenset((tokenizer.eos_token_id,))
                    )
                    return [tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in ids]

                pieces = Pieces(self.out / "pieces", self._determined_by(name, seed))
                texts = pieces.get("answers", [[list(p.ids) for p in prompts], settings.max_new_tokens], generate)
                for i, text in zip(rows, texts, strict=True):
                    table.append(
                        {"question": self.panel.questions[i].question, "organism": name, "cue": cue, "answer": text}
                    )
                step()
        return pd.DataFrame(table, columns=["question", "organism", "cue", "answer"])

    def _write(self, result: AuditResult) -> None:
        with whole_file(self.out / "evidence.parquet") as part:
            evidence_table(result.evidence).to_parquet(part, index=False)
        organisms = {
            name: v.to_json()
            | {"role": self.roles[name], "tests": [e.to_json() for e in result.evidence if e.organism == name]}
            for name, v in result.verdicts.items()
        }
        write_json(
            self.out / "verdict.json",
            {"schema": 1, "study": self.study.name, "rule": verdict.RULE, "organisms": organisms},
        )
        hashes = {f"{name}.s{seed}": o.weights for (name, seed), o in self.organisms.items()}
        tokens = {c.name: digest(self.rendered.ids_of(c.name)) for c in self.panel.cues}
        self._write_manifest(
            {
                "weights": {"base": self.base.weights, "organisms": hashes},
                "base": {k: v for k, v in self.base.source.items() if k != "path"},
                "tokens": tokens,
                "inserted_by_template": self.rendered.inserted,
                "splits": {f: self.panel.split_of(f) for f in self.panel.families},
                "device": self.study.torch_device,
            }
        )
        report.write_report(
            self.out,
            study=self.study,
            panel=self.panel,
            inserted=self.rendered.inserted,
            grid=result.grid,
            choice=result.choice,
            profiles=result.profiles,
            dose=result.dose,
            ablations=result.ablations,
            evidence=result.evidence,
            verdicts=result.verdicts,
            answers=result.answers,
            manifest=self._manifest,
        )
