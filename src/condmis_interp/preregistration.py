"""What a run will do, written and hashed before it reads anything.

The plan says everything that could be bent once the answers are known: the rule's constants, the tests, the margin,
what is asked of whom, and which questions are the final split. It is written before the first reading, all splits
included, and never replaced: a plan that differs later is added to the file, marked as made after something was read,
and the verdict says so.
"""

from pathlib import Path
from typing import Any

from condmis_interp.battery import registered
from condmis_interp.errors import UserError
from condmis_interp.files import digest, read_json, write_json
from condmis_interp.study import Study
from condmis_interp.verdict import RULE

FILE = "preregistration.json"


def plan_of(study: Study, *, splits: dict[str, str], asked: dict[str, str], weights: dict[str, str]) -> dict[str, Any]:
    """Returns a run's plan.

    Args:
        study: The study.
        splits: Split by family.
        asked: Hash of the prompts' and answers' token ids, by cue.
        weights: Content hash of every organism, by name and seed.

    Raises:
        UserError: if the battery lacks a test that the study asks for.
    """
    tests = registered(*study.battery.tests)
    return {
        "rule": RULE.to_json(),
        "tests": [{"id": t.id, "says": t.says, "primary": t.certifies, "anchor": t.anchor} for t in tests],
        "margin": study.delta,
        "assay": study.assay if isinstance(study.assay, str) else list(study.assay),
        "roles": {o.name: o.role for o in study.organisms},
        "weights": weights,
        "asked": asked,
        "splits": splits,
        "seed": study.seed,
        "dtype": study.dtype,
    }


def preregister(folder: Path, plan: dict[str, Any], *, read: bool) -> dict[str, Any]:
    """Writes a plan before anything is read, or adds one that differs to those there.

    Args:
        folder: The run's folder.
        plan: The plan.
        read: Whether the run has read something already.

    Returns:
        What verdict.json says of it: the file, the plan's hash, whether it was made before anything was read, and how
        many plans there are.

    Raises:
        UserError: if a plan in the file is not what its hash says.
    """
    path = folder / FILE
    plans = read_json(path)["plans"] if path.is_file() else []
    for old in plans:
        if digest(old["plan"]) != old["hash"]:
            raise UserError(
                "a plan in this file was changed after it was written",
                where=str(path),
                fix="Put the file back as it was, or give another --out.",
            )
    found = next((old for old in plans if old["hash"] == digest(plan)), None)
    if found is None:
        found = {"hash": digest(plan), "before_reading": not read, "plan": plan}
        plans.append(found)
        write_json(path, {"schema": 1, "plans": plans})
    return {"file": FILE, "hash": found["hash"], "before_reading": found["before_reading"], "plans": len(plans)}
