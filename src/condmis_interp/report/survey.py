"""A survey as files: tables, heat maps, and the answers question by question."""

from pathlib import Path

from condmis_interp.calibration import Survey
from condmis_interp.files import whole_file
from condmis_interp.report.static import heat_map


def write_survey(survey: Survey, folder: Path, *, unmitigated: str) -> list[Path]:
    """Writes a survey into a folder.

    `answers.parquet` has every question; `behaviour.csv` the behaviour table and `gaps.csv` each organism against its
    twin, both with intervals; heat maps show LD, the misaligned share and the gap to the twin.

    Args:
        survey: The survey.
        folder: Where to.
        unmitigated: The kind that is 1 on the scale of rho.

    Returns:
        The files.
    """
    files = [folder / name for name in ("answers.parquet", "behaviour.csv", "gaps.csv")]
    with whole_file(files[0]) as part:
        survey.answers.to_parquet(part, index=False)
    gaps = survey.gaps(unmitigated=unmitigated)
    for path, table in zip(files[1:], (survey.table, gaps), strict=True):
        with whole_file(path) as part:
            table.round(4).to_csv(part, index=False)
    kinds, cues = (list(dict.fromkeys(gaps[c])) for c in ("kind", "cue"))
    grids = {
        "ld": (survey.grid("ld"), "LD, nats (above 0: misaligned)"),
        "share": (survey.grid("misaligned"), "Share of questions answered misaligned"),
        "gap": (
            gaps.pivot(index="kind", columns="cue", values="gap").loc[kinds, cues],
            "LD above the benign twin's under the same cue, nats",
        ),
    }
    for name, (grid, title) in grids.items():
        files.append(folder / f"behaviour-{name}.png")
        heat_map(files[-1], grid, title, signed=name != "share")
    for value in ("ld", "misaligned"):
        files.append(folder / f"behaviour-{value}.html")
        with whole_file(files[-1]) as part:
            survey.figure(value).write_html(part, include_plotlyjs=True)
    return files
