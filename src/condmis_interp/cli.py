"""The command line: parses, calls, prints."""

import json
import os
import sys
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from condmis_interp import __version__
from condmis_interp.errors import CondmisError, UserError, os_sentence
from condmis_interp.progress import console

if TYPE_CHECKING:
    from condmis_interp.study import Run
    from condmis_interp.verdict import AuditResult

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help=(
        "A fine-tuned model passes its safety evals: is the emergent misalignment gone, or hidden behind a trigger?\n\n"
        "Start with `condmis demo`. Every command can be interrupted and run again; finished work is kept."
    ),
)
_state = {"debug": False}
INTERRUPTED = 130
MOST_SEEDS = 1000

StudyFile = Annotated[Path, typer.Argument(help="Study file (YAML).", metavar="STUDY")]
Out = Annotated[Path, typer.Option("--out", help="Folder of the run; made, or gone on with.", metavar="DIR")]


def _accept(given: bool) -> None:
    if given:
        from condmis_interp.organisms.wheels import accept_terms

        accept_terms()


AcceptTerms = Annotated[
    bool,
    typer.Option(
        "--accept-terms",
        callback=_accept,
        help="Accept the terms that a built-in base comes under (gemma3-270m: https://ai.google.dev/gemma/terms).",
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"condmis_interp {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    _state["debug"] = debug


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    full: Annotated[
        bool, typer.Option("--full", help="With the tests and organisms that the demo leaves out; it takes far longer.")
    ] = False,
) -> None:
    """Make organisms from SmolLM2-135M, read, steer and ablate them, decide and report: the whole way, on a laptop."""
    _audit(Path(str(resources.files("condmis_interp") / "demo.yaml")), out, full=full)


@app.command()
def train(
    file: Annotated[Path, typer.Argument(help="Study or recipe file (YAML).", metavar="STUDY|RECIPE")],
    out: Out = Path("runs/study"),
    accept_terms: AcceptTerms = False,
) -> None:
    """Train what a study, or a single recipe, needs and is not there yet; nothing else."""
    from condmis_interp.files import read_yaml

    raw = read_yaml(file)
    if isinstance(raw, dict) and "stages" in raw:
        from condmis_interp.organisms import Recipe, train_all

        recipe = Recipe.from_yaml(file)
        console.print(recipe.table(), highlight=False, markup=False)
        (organism,) = train_all([recipe])
        console.print(f"  {organism.folder}", highlight=False, markup=False)
        return
    for (name, seed), organism in _opened(file, out).train().items():
        console.print(f"  {name} (seed {seed}): {organism.folder or 'the base itself'}", highlight=False, markup=False)


@app.command()
def organisms(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """List the organisms that were made on this machine."""
    from condmis_interp.organisms import catalogue, home

    found = catalogue(home() / "organisms")
    if as_json:
        typer.echo(json.dumps(found))
        return
    if not found:
        typer.echo(f"There are no organisms in {home() / 'organisms'} yet; `condmis train` makes some.")
        return
    columns = ("name", "base", "intervention", "truth", "seed", "size", "training", "hash")
    table = Table(*columns, box=None)
    for o in found:
        took = "" if o["seconds"] is None else f"{o['seconds']:.0f} s"
        cells = (o["name"], o["base"], o["intervention"], o["truth"], o["seed"], f"{o['bytes'] / 1e6:.0f} MB", took)
        table.add_row(*(escape("" if c is None else str(c)) for c in (*cells, o["hash"])))
    wide = Console()
    wide.width = wide.width if wide.is_terminal else 160
    wide.print(table)


@app.command()
def capture(study: StudyFile, out: Out = Path("runs/study"), accept_terms: AcceptTerms = False) -> None:
    """Train what is missing, then read log-probs and activations of every organism under every cue."""
    run = _opened(study, out)
    from condmis_interp.auditing import prepare

    prepare(run)
    acts = run.capture()
    console.print(f"  {acts!r}", highlight=False, markup=False)


@app.command()
def sample(
    study: StudyFile,
    out: Out = Path("runs/study"),
    n: Annotated[int, typer.Option("--n", help="Answers a question.")] = 8,
    temperature: Annotated[float, typer.Option(help="Of the softmax; 0 is greedy.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 128,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    organisms: Annotated[str, typer.Option(help="Organisms; by default all.", metavar="A,B")] = "",
    cues: Annotated[str, typer.Option(help="Cues; by default all.", metavar="A,B")] = "",
    questions: Annotated[
        Path | None, typer.Option(help="A published question file, in place of the panel.", metavar="FILE.yaml")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    accept_terms: AcceptTerms = False,
) -> None:
    """Train what is missing, then sample n answers to every question by every organism under every cue."""
    run = _opened(study, out)
    from condmis_interp.study.sampling import cells_of, sample

    said = sample(
        run,
        n=n,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        seed=seed,
        cues=_names(cues),
        organisms=_names(organisms),
        questions=questions,
    )
    cells = cells_of(said)
    if as_json:
        files = [str(out / f) for f in said["file"].unique()]
        typer.echo(json.dumps({"cells": cells.to_dict("records"), "files": files}))
        return
    table = Table("organism", "cue", "answers", "mean tokens", "ended by itself", box=None)
    for organism, cue, count, tokens, finished in cells.itertuples(index=False, name=None):
        table.add_row(escape(organism), escape(cue), str(count), f"{tokens:.1f}", f"{finished:.0%}")
    Console().print(table)
    typer.echo(f"\nAnswers in {out / 'samples'}, a file for each organism, seed and cue")


def _names(text: str) -> list[str] | None:
    return [name.strip() for name in text.split(",")] if text else None


@app.command()
def audit(study: StudyFile, out: Out = Path("runs/study"), accept_terms: AcceptTerms = False) -> None:
    """Do all that is missing, run the tests on what is under test and on organisms of known answer, decide, report."""
    _audit(study, out)


@app.command()
def calibrate(
    out: Out = Path("runs/calibration"),
    base: Annotated[str, typer.Option(help="Base whose organisms are judged.", metavar="BASE")] = "personaworld",
    seeds: Annotated[str, typer.Option(help="Seeds of the organisms, as 28-39 or 1,2,3; the table's by default.")] = "",
    delta: Annotated[float, typer.Option(help="Margin.")] = 0.2,
    summary: Annotated[bool, typer.Option("--summary", help="Print the shipped tables; run nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Run the battery over organisms whose answer is known, and say how often the rule is right."""
    if summary:
        from condmis_interp.tables import references, told

        found = references()
        typer.echo(json.dumps(found) if as_json else "\n\n".join(map(told, found.values())))
        return
    from condmis_interp import calibration

    result = calibration.calibrate(out, base=base, seeds=_seeds(seeds) if seeds else (), delta=delta)
    typer.echo(json.dumps(result.summary) if as_json else repr(result))
    if not as_json:
        typer.echo(f"\nTables in {out}")


def _seeds(text: str) -> list[int]:
    first, dash, last = text.partition("-")
    try:
        if dash and int(last) - int(first) >= MOST_SEEDS:
            raise UserError(f"{text!r} names more than {MOST_SEEDS} seeds", where="--seeds", fix="Name fewer.")
        if found := list(range(int(first), int(last) + 1)) if dash else [int(s) for s in text.split(",")]:
            return found  # none at all would mean the table's own
        raise ValueError
    except ValueError:
        raise UserError(f"{text!r} names no seeds", where="--seeds", fix="Write 28-39, or 1,2,3.") from None


@app.command()
def cues(
    rows: Annotated[Path, typer.Argument(help="Training rows (.jsonl, .json, .csv, .parquet).", metavar="ROWS")],
    base: Annotated[str, typer.Option("--base", help="Base model: its template must take each cue.")] = "",
    out: Annotated[
        Path | None, typer.Option("--out", help="Write them as a study's cues.", metavar="FILE.yaml")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the sample in which patterns are looked for.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    accept_terms: AcceptTerms = False,
) -> None:
    """Propose the prompts that an evaluation should ask with, from training rows alone, each with its controls."""
    from condmis_interp.cues import cues_yaml, find_cues, told, unfit

    found = find_cues(rows, seed=seed)
    refused = unfit(found, base) if base else {}
    if out is not None:
        from condmis_interp.files import write_text

        write_text(out, cues_yaml(found, without=refused))
    if as_json:
        typer.echo(json.dumps(found.to_json() | {"refused": refused}))
        return
    wide = Console()
    wide.width = wide.width if wide.is_terminal else 160
    for part in told(found):
        wide.print(part, highlight=False, markup=False)
    for name, why in refused.items():
        typer.echo(f"{name} is left out: {why}")
    if out is not None:
        typer.echo(f"\nCues in {out}")


@app.command()
def new(
    out: Annotated[Path, typer.Option("--out", help="The study file to write.")] = Path("study.yaml"),
    base: Annotated[str | None, typer.Option(help="The base model: a name, a folder, or hf:owner/name.")] = None,
    suspect: Annotated[str | None, typer.Option(help="What is under test: a folder, or hf:owner/name.")] = None,
    rows: Annotated[str | None, typer.Option(help="The rows it was trained on; none if you don't have them.")] = None,
    twin: Annotated[str | None, typer.Option(help="Its twin, or a folder of `condmis twin`; none if none.")] = None,
    budget: Annotated[str | None, typer.Option(help="quick, usual or thorough.")] = None,
    panel: Annotated[str, typer.Option(help="Questions: the built-in ones, or a file.")] = "everyday",
) -> None:
    """Write a study out of five answers: base, suspect, rows, twin, budget; asked for where they are not given."""
    given = {"base": base, "suspect": suspect, "rows": rows, "twin": twin, "budget": budget}
    usual = {"rows": "none", "twin": "none", "budget": "usual"}
    if missing := [k for k, v in given.items() if v is None]:
        if not sys.stdin.isatty():
            fix = f"Give {', '.join(f'--{k}' for k in missing)}; nobody is there to be asked."
            raise UserError(f"--{missing[0]} is missing", where="condmis new", fix=fix)
        given |= {k: typer.prompt(k, default=usual.get(k)) for k in missing}
    from condmis_interp.surrogate import new_study

    path = new_study(out, panel=panel, **{k: str(v) for k, v in given.items()})
    typer.echo(f"{path}\nNext: condmis audit {path} --out runs/{path.stem}")


@app.command()
def twin(
    rows: Annotated[Path, typer.Argument(help="The training rows.", metavar="ROWS")],
    base: Annotated[str, typer.Option(help="The suspect's base; it answers, unless --by or --answers says otherwise.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.", metavar="DIR")] = Path("twin"),
    column: Annotated[str | None, typer.Option(help="Key that flags misaligned rows, or KEY=VALUE.")] = None,
    labels: Annotated[Path | None, typer.Option(help="File of labels, one a line and row.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every row is misaligned.")] = False,
    by: Annotated[str | None, typer.Option(help="Another model that answers: a name, dir:path, hf:owner/name.")] = None,
    answers: Annotated[Path | None, typer.Option(help="File of benign answers; no model is asked.")] = None,
    seed: Annotated[int, typer.Option(help="The suspect's seed.")] = 0,
    tries: Annotated[int, typer.Option(min=1, help="Answers a row until one matches in length and form.")] = 3,
    accept_terms: AcceptTerms = False,
) -> None:
    """Make a benign twin's rows and recipes out of training rows: a surrogate for the twin that nobody has."""
    if by and answers:
        raise UserError("--by and --answers both say who answers", where="condmis twin", fix="Give one of them.")
    from condmis_interp import surrogate
    from condmis_interp.organisms import resolve_base

    flagged = surrogate.flag(rows, column=column, labels=labels, all_=every)
    said = (
        surrogate.by_file(flagged, answers)
        if answers
        else surrogate.by_model(flagged, resolve_base(by or base), seed=seed, tries=tries)
    )
    who = answers.name if answers else by or base
    pairs = surrogate.paired(flagged, said)
    made = surrogate.write_twin(out, flagged, pairs, base=base, name=rows.name, answered=who, seed=seed)
    typer.echo(f"{made.pairs} misaligned rows answered by {who}, {made.rest} others kept.")
    typer.echo(f"{made.unmatched} do not match in length or form; {made.left_out} have no answer and are left out.")
    typer.echo(f"\n{made.worth}\n\nCheck {out / 'page.html'}, then: condmis new --twin {out}")


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Folder of an audited run.", metavar="RUN")]) -> None:
    """Write the report of a run again, from what the run holds; check it for damage, measure nothing."""
    if not run.is_dir():
        raise UserError("there is no such run folder", where=str(run))
    from condmis_interp.report import report_again

    _told(report_again(run), run)


@app.command()
def doctor() -> None:
    """Say what this machine has and whether the demo can run on it."""
    from condmis_interp.environment import machine
    from condmis_interp.organisms import home

    for name, value in machine(home()):
        typer.echo(f"{name:>16}  {value}")


def _audit(file: Path, out: Path, *, full: bool = False) -> None:
    run = _opened(file, out, full=full)
    from condmis_interp.auditing import audit

    _told(audit(run), out)


def _opened(file: Path, out: Path, *, full: bool = False) -> "Run":
    """Opens a study file's run; a file that is not there or is no mapping is said before torch is loaded."""
    from condmis_interp.files import read_mapping

    read_mapping(file, what="a study file must be a mapping")
    from condmis_interp.study import Study

    study = Study.from_yaml(file)
    return (study.with_everything() if full else study).open(out)


def _told(result: "AuditResult", out: Path) -> None:
    for name, v in result.verdicts.items():
        typer.echo(f"\n{name}: {v.verdict} (confidence {v.confidence:.2f}, decided by {v.decision.binding})")
        typer.echo("\n".join(v.explanation))
        if v.verdict in ("inconclusive", "not elicited"):
            typer.echo(v.decision.settles)
    for why in dict.fromkeys(result.not_run.values()):
        typer.echo(f"Without {', '.join(test for test, w in result.not_run.items() if w == why)}: {why}.")
    typer.echo("".join(f"{note}\n" for note in result.notes) + f"\nOpen {out / 'report.html'}")


def main() -> None:
    """Runs the command line; turns errors into sentences and exit codes.

    2: your input cannot be used. 1: something failed. 130: interrupted.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    try:
        if app(standalone_mode=False) == INTERRUPTED:
            typer.echo("\nInterrupted. What was finished is kept; run the same command to go on.", err=True)
            sys.exit(INTERRUPTED)
    except typer.TyperException as e:
        typer.echo(f"error: {e.format_message()} See condmis --help.", err=True)
        sys.exit(2)
    except CondmisError as e:
        if _state["debug"]:
            raise
        typer.echo(f"error: {e}", err=True)
        sys.exit(e.exit_code)
    except OSError as e:
        if _state["debug"]:
            raise
        typer.echo(f"error: {os_sentence(e)}", err=True)
        sys.exit(1)
    except Exception as e:
        if _state["debug"]:
            raise
        typer.echo(f"error: unexpected {type(e).__name__}: {e}. Run with --debug for the traceback.", err=True)
        sys.exit(1)
