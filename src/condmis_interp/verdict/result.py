"""What an audit found, whole: what a report is written from, on paper or on another day.

A result is kept in a folder: tables as parquet, vectors as safetensors, the rest in `result.json`, which has the
SHA-256 of every file beside it and its own hash. What is loaded is what was saved, or an error says which file is not.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import pandas as pd
import torch
from pydantic import ConfigDict, TypeAdapter
from safetensors.torch import load, save

from condmis_interp.battery import BehaviourGrid, Evidence, evidence_table
from condmis_interp.calls import checked
from condmis_interp.causal import Ablation, DoseResponse, LayerChoice
from condmis_interp.directions import Direction, DirectionProfile
from condmis_interp.errors import CheckError, UserError
from condmis_interp.files import digest, file_digest, read_json, validated, whole_file, write_json
from condmis_interp.panel import Panel
from condmis_interp.readers import Site
from condmis_interp.study import Study
from condmis_interp.verdict.finding import Finding

SCHEMA = 1
INDEX = "result.json"
_VECTORS = "directions.safetensors"
_FIX = "Run the audit again: it measures nothing twice, and writes these files anew."
_AS_TEXT = ConfigDict(ser_json_inf_nan="strings")
"""JSON has no infinities and no NaN; an unbounded interval has."""
_EVIDENCE = TypeAdapter(list[Evidence], config=_AS_TEXT)
_FINDINGS = TypeAdapter(dict[str, Finding], config=_AS_TEXT)
T = TypeVar("T")


@dataclass(frozen=True)
class AuditResult:
    """What an audit found.

    Attributes:
        study: The study.
        panel: What was asked.
        grid: LD of every organism under every cue.
        choice: The layer of the causal tests, and how it was chosen; `None` without an unmitigated organism or a twin.
        profiles: The activation-difference plot's data, by organism under test.
        dose: Steering the twin.
        ablations: Ablating each organism under test.
        evidence: All evidence.
        verdicts: One finding for each organism under test.
        answers: Generated answers.
        controls: Control organisms: `name`, `part` and what it `is`.
        not_run: Why a test of the rule was not run, or not to its end, by id.
        notes: What else a reader has to know.
        facts: The run's manifest: versions, hashes, durations.
    """

    study: Study
    panel: Panel
    grid: BehaviourGrid
    choice: LayerChoice | None
    profiles: dict[str, DirectionProfile]
    dose: DoseResponse | None
    ablations: dict[str, Ablation]
    evidence: list[Evidence]
    verdicts: dict[str, Finding]
    answers: pd.DataFrame
    controls: Sequence[Mapping[str, str]] = ()
    not_run: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def causal(self) -> list[Evidence]:
        """The evidence of ablating and steering, which decides nothing."""
        return [a.evidence for a in self.ablations.values()] + ([self.dose.evidence] if self.dose else [])

    def to_pandas(self) -> pd.DataFrame:
        """Returns the evidence table."""
        return evidence_table(self.evidence)

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {v!r}" for name, v in self.verdicts.items())

    def save(self, folder: Path, *, beside: Sequence[str] = ()) -> None:
        """Writes the result into a folder; `result.json` is written last.

        Args:
            folder: Where to; made if it is not there.
            beside: Other files that go with it, relative to the folder, whose hashes are kept too.
        """
        index = folder / INDEX
        index.unlink(missing_ok=True)  # before the files it speaks of are replaced
        tables, vectors = _tables(self), _vectors(self)
        for name, table in tables.items():
            with whole_file(folder / name) as part:
                table.to_parquet(part, index=False)
        with whole_file(folder / _VECTORS) as part:
            part.write_bytes(save(vectors))
        names = (*tables, _VECTORS, *beside)
        content = {
            "files": {name: file_digest(folder / name, algorithm="sha256") for name in names},
            "study": self.study.model_dump(mode="json"),
            "panel": self.panel.model_dump(mode="json"),
            "choice": self.choice and {"layer": self.choice.layer, "directions": _facts_of(self.choice.directions)},
            "profiles": {m: _profile_facts(p) for m, p in self.profiles.items()},
            "dose": self.dose and _dose_facts(self.dose),
            "ablations": {m: _ablation_facts(a) for m, a in self.ablations.items()},
            "evidence": json.loads(_EVIDENCE.dump_json(self.evidence)),
            "verdicts": json.loads(_FINDINGS.dump_json(self.verdicts)),
            "controls": [dict(c) for c in self.controls],
            "not_run": dict(self.not_run),
            "notes": list(self.notes),
            "facts": dict(self.facts),
        }
        write_json(index, {"schema": SCHEMA, "content": digest(content), **content})

    @classmethod
    @checked
    def load(cls, folder: str | Path) -> Self:
        """Reads what `save` wrote, every file of it checked against its hash.

        Raises:
            UserError: if there is no result, or it is of another schema.
            CheckError: naming the file that is missing or damaged.
        """
        folder = Path(folder)
        found = _index(folder)
        for name, recorded in found["files"].items():
            path = (folder / name).resolve()
            if not path.is_file():
                raise CheckError("a file of this result is missing", where=str(path), fix=_FIX)
            if file_digest(path, algorithm="sha256") != recorded:
                raise CheckError(
                    "the file is damaged: its content does not have the recorded hash", where=str(path), fix=_FIX
                )
        vectors = load((folder / _VECTORS).read_bytes())
        where = str(folder / INDEX)

        def table(name: str) -> pd.DataFrame:
            return pd.read_parquet(folder / name)

        choice, dose = found["choice"], found["dose"]
        return cls(
            study=validated(Study, found["study"], where=where),
            panel=validated(Panel, found["panel"], where=where),
            grid=BehaviourGrid(table("grid.parquet")),
            choice=choice
            and LayerChoice(
                choice["layer"],
                tuple(_direction(f, vectors[f"layer.{i}"]) for i, f in enumerate(choice["directions"])),
                table("layers.parquet"),
            ),
            profiles={
                m: DirectionProfile(
                    table(f"profile-{m}.parquet"),
                    table(f"cosines-{m}.parquet"),
                    p["position"],
                    tuple(p["fitted_on"]),
                    tuple(p["read_on"]),
                    p["chosen_layer"],
                )
                for m, p in found["profiles"].items()
            },
            dose=dose
            and DoseResponse(
                table("doses.parquet"),
                np.array(dose["random"]),
                tuple(dose["anchors"]),
                _direction(dose["direction"], vectors["dose"]),
                _EVIDENCE.validate_python([dose["evidence"]])[0],
            ),
            ablations={
                m: Ablation(
                    a["levels"],
                    np.array(a["random"]),
                    _direction(a["direction"], vectors[f"ablation.{m}"]),
                    _EVIDENCE.validate_python([a["evidence"]])[0],
                )
                for m, a in found["ablations"].items()
            },
            evidence=_EVIDENCE.validate_python(found["evidence"]),
            verdicts=_FINDINGS.validate_python(found["verdicts"]),
            answers=table("answers.parquet"),
            controls=found["controls"],
            not_run=found["not_run"],
            notes=tuple(found["notes"]),
            facts=found["facts"],
        )


def _index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    if not path.is_file():
        raise UserError("there is no result in this folder", where=str(folder), fix="Finish the audit first.")
    try:
        found = read_json(path)
        schema, content = found.pop("schema"), found.pop("content")
        whole = schema != SCHEMA or digest(found) == content
    except (UserError, KeyError, AttributeError, ValueError):
        whole, schema, found = False, None, {}
    if not whole:
        raise CheckError("the file is damaged: its content does not have the recorded hash", where=str(path), fix=_FIX)
    if schema != SCHEMA:
        raise UserError(f"this result has schema {schema}; this version reads {SCHEMA}", where=str(path), fix=_FIX)
    return found


def _tables(result: AuditResult) -> dict[str, pd.DataFrame]:
    tables = {"grid.parquet": result.grid.table, "answers.parquet": result.answers}
    if result.choice:
        tables["layers.parquet"] = result.choice.table
    if result.dose:
        tables["doses.parquet"] = result.dose.table
    for m, p in result.profiles.items():
        tables |= {f"profile-{m}.parquet": p.table, f"cosines-{m}.parquet": p.cosines}
    return tables


def _vectors(result: AuditResult) -> dict[str, torch.Tensor]:
    found = {f"layer.{i}": d.vector for i, d in enumerate(result.choice.directions if result.choice else ())}
    if result.dose:
        found["dose"] = result.dose.direction.vector
    found |= {f"ablation.{m}": a.direction.vector for m, a in result.ablations.items()}
    return {name: v.clone() for name, v in found.items()}  # safetensors takes no two tensors in one memory


def _facts_of(directions: Sequence[Direction]) -> list[dict[str, Any]]:
    return [d.to_json() for d in directions]


def _direction(facts: Mapping[str, Any], vector: torch.Tensor) -> Direction:
    told = dict(facts) | {"site": Site.parse(facts["site"]), "splits": tuple(facts["splits"])}
    return Direction(vector=vector, **told)


def _evidence(e: Evidence) -> dict[str, Any]:
    return json.loads(_EVIDENCE.dump_json([e]))[0]


def _profile_facts(p: DirectionProfile) -> dict[str, Any]:
    return {k: v for k, v in asdict(p).items() if k not in ("table", "cosines")}


def _dose_facts(d: DoseResponse) -> dict[str, Any]:
    return {
        "random": d.random.tolist(),
        "anchors": list(d.anchors),
        "direction": d.direction.to_json(),
        "evidence": _evidence(d.evidence),
    }


def _ablation_facts(a: Ablation) -> dict[str, Any]:
    return {
        "levels": a.levels,
        "random": a.random.tolist(),
        "direction": a.direction.to_json(),
        "evidence": _evidence(a.evidence),
    }
