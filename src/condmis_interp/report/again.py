"""The report of a finished run, written again from what the run holds; nothing is measured, no model is loaded."""

from pathlib import Path

from condmis_interp.errors import CheckError, UserError
from condmis_interp.files import read_json
from condmis_interp.report.html import write_report
from condmis_interp.store import Activations
from condmis_interp.verdict import AuditResult
from condmis_interp.verdict.result import INDEX


def report_again(run: Path) -> AuditResult:
    """Writes `report.html` and `figures/` of a run again, once every file it rests on has its recorded hash.

    Args:
        run: The run's folder.

    Returns:
        The result that the report is of.

    Raises:
        UserError: if there is no run, or the run has no result: with the command that finishes it.
        CheckError: if a file of the run is missing or damaged.
    """
    if not run.is_dir():
        raise UserError("there is no such run folder", where=str(run))
    manifest = read_json(run / "manifest.json")
    if not isinstance(manifest, dict) or not isinstance(manifest.get("study"), dict):
        raise UserError("this manifest names no study", where=str(run / "manifest.json"))
    name = manifest["study"].get("name")
    fix = f"Run `condmis audit STUDY --out {run}` with the file of study {name!r}; what is finished is not done again."
    if not (run / "result" / INDEX).is_file():
        raise UserError(_lacking(run, manifest), where=str(run), fix=fix)
    result = AuditResult.load(run / "result")
    if result.study.model_dump(mode="json") != manifest["study"]:
        raise UserError("the study was changed after the run was audited", where=str(run), fix=fix)
    Activations.open(run / "activations", verify="all")
    write_report(run, result)
    return result


def _lacking(run: Path, manifest: dict) -> str:
    """Returns what keeps a run without a result from being reported."""
    if (run / "verdict.json").is_file():
        packages = manifest.get("environment", {}).get("packages", {})
        version = packages.get("condmis-interp", "an unknown version")
        return (
            f"this run was audited by condmis_interp {version} and holds no result/ that a report can be written from"
        )
    try:
        Activations.open(run / "activations", verify="used")
    except UserError:
        return "this run is unfinished: nothing has been read yet"
    except CheckError as e:
        return f"this run is unfinished: {e.what}"
    return "this run is unfinished: everything has been read, and nothing was decided yet"
