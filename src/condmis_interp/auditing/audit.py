"""The audit: from a run of a study to a verdict and a report."""

from dataclasses import replace
from typing import Any

import numpy as np

from condmis_interp import battery, report
from condmis_interp.auditing.answering import greedy_answers
from condmis_interp.auditing.casting import bench_of, reference_of, roster_of, weighed
from condmis_interp.auditing.causes import causes
from condmis_interp.auditing.controls import Controls, build
from condmis_interp.auditing.plan import plan_of, preregister
from condmis_interp.battery import Battery, Bench, Test, evidence_table, measure, registered
from condmis_interp.calibration import known_of, reference
from condmis_interp.calls import checked
from condmis_interp.files import digest, whole_file, write_json
from condmis_interp.panel import CueRole, Panel
from condmis_interp.progress import progress
from condmis_interp.store import Activations, Pieces
from condmis_interp.study import Run, Study
from condmis_interp.study.organism_spec import WORTH
from condmis_interp.verdict import RULE, AuditResult, Roster, findings
from condmis_interp.verdict.roster import with_indifferent


@checked
def audit(run: Run) -> AuditResult:
    """Does all that is missing, runs the tests, decides, and writes the result and its report into the run's folder.

    The plan is written before anything is read (`auditing/plan.py`).

    Args:
        run: The run of a study: `Study.from_yaml("mine.yaml").open("runs/mine")`.

    Raises:
        UserError: if the study asks for what is not there.
        CheckError: if what is stored is damaged, or a model does not do what it must.
    """
    tests = registered(*run.study.battery.tests)
    controls, planned = prepare(run)
    acts = run.capture()
    acts.shards.verify()  # now: in the middle of a test damage would pass for a crash of the test
    grid = battery.behaviour_grid(acts, roles=run.roles)
    found = causes(run, acts)
    roster = replace(roster_of(run.study, controls, tests), base=_base(run, acts))
    bench = bench_of(run.study, acts, base=run.base, rendered=run.rendered, read=run.read, controls=controls)
    measured = _measured(run, bench, controls, roster, tests)
    leaning = reference_of(run.study, run.base, controls, tests, bench.grammar) if roster.casts else None
    roster = weighed(roster, bench, tests, leaning)
    with run.timed("deciding"):
        verdicts = findings(
            measured,
            roster,
            tests,
            delta=run.study.delta,
            known=known_of(run.study.base),
            reference=reference(run.study.base),
            panel=asked(run.panel),
            seed=run.study.seed,
        )
    result = AuditResult(
        study=run.study,
        panel=run.panel,
        grid=grid,
        choice=found.choice,
        profiles=found.profiles,
        dose=found.dose,
        ablations=found.ablations,
        evidence=[e for v in verdicts.values() for e in v.evidence],
        verdicts=verdicts,
        answers=greedy_answers(run),
        controls=[{"name": k.name, "part": k.part, "is": k.says} for k in controls.made],
        not_run=dict(roster.not_run)
        | {i: f"it crashed, {why}" for i, why in measured.crashed.items()}
        | _left_out(tests),
        notes=(*found.notes, *_notes(run.study, planned)),
    )
    run.note(
        {
            "weights": {"base": run.base.weights, "organisms": run.weights},
            "base": {k: v for k, v in run.base.source.items() if k != "path"},
            "tokens": run.tokens,
            "inserted_by_template": run.rendered.inserted,
            "template_choices": run.rendered.choices,
            "splits": {family: str(split) for family, split in run.splits.items()},
            "device": run.study.torch_device,
        }
    )
    result = replace(result, evidence=[*result.evidence, *result.causal], facts=run.manifest)
    _write(result, run, planned)
    return result


def prepare(run: Run) -> tuple[Controls, dict[str, Any]]:
    """Makes the control organisms, adds them to what the run reads, and writes the plan: all before anything is read.

    Returns:
        The control organisms, and what verdict.json says of the plan.
    """
    organisms = run.organisms
    with run.timed("controls"):
        controls = build(run.study, run.panel, run.base, organisms)
    run.add_controls(controls.weighed)
    splits = {family: str(split) for family, split in run.splits.items()}
    plan = plan_of(run.study, splits=splits, asked=run.tokens, weights=run.weights)
    return controls, preregister(run.out, plan, read=run.has_read)


def asked(panel: Panel) -> str:
    """Returns what a panel asks, in words."""
    cues = ", ".join(c.name for c in panel.cues if c.role != CueRole.NONE)
    pairs = sum(len(q.pairs) for q in panel.questions)
    return (
        f"{len(panel.questions)} questions ({pairs} answer pairs) of panel {panel.name} in {len(panel.families)} "
        f"families, without a cue and under {cues}"
    )


def _base(run: Run, acts: Activations) -> np.ndarray:
    """Returns LD of the base without a cue, from the store if the study has it."""
    own = run.study.with_role("base")
    none = run.panel.cues_with(CueRole.NONE)[0].name
    return acts.ld(own[0].name, none) if own else run.ask_base()


def _measured(run: Run, bench: Bench, controls: Controls, roster: Roster, tests: list[Test]) -> Battery:
    """Measures the tests: those that were captured from the store, the others live, a finished one never again."""
    families = tuple(q.family for q in run.panel.questions)
    if not roster.casts:
        return Battery({}, {}, families)
    study, base = run.study, run.base
    u = study.unmitigated
    anchored = u is not None and study.zero_of(u.name) is not None
    wanted = [t for t in tests if t.id not in roster.not_run and (anchored or t.family == "behaviour")]
    leaning = reference_of(study, base, controls, wanted, bench.grammar)
    at_hand = [t for t in wanted if t.captured]
    live = [t for t in wanted if not t.captured]
    others = [o.weights for o in controls.other or ()]
    about = [base.tokenizer_hash(), study.dtype, study.reader]
    settings = [*about, run.weights, run.tokens, list(bench.names), others, [p.id for p in leaning.drawn]]
    pieces = Pieces(run.out / "pieces", [base.content, digest(settings)])
    found = measure(bench, leaning, at_hand)
    if live:
        with run.timed("battery"), progress("measuring the battery's tests", len(live), unit="tests") as step:
            later = measure(bench, leaning, live, pieces=pieces, step=lambda: step(1))
        found = Battery({**found.readings, **later.readings}, {**found.crashed, **later.crashed}, families)
    return with_indifferent(found) if roster.twinless else found


def _left_out(tests: list[Test]) -> dict[str, str]:
    """Returns the rule's tests that the study did not ask for."""
    asked_for = {t.id for t in tests}
    return {i: "left out by the study (battery.tests)" for i in RULE.tests if i not in asked_for}


def _notes(study: Study, planned: dict[str, Any]) -> list[str]:
    found, u = [], study.unmitigated
    if u is not None and study.twin_of(u.name) is None and (zero := study.zero_of(u.name)):
        found.append(f"U has no twin of its own: its scale starts at {zero}, another recipe's.")
    found += [f"{o.name}: {WORTH}" for o in study.organisms if o.surrogate]
    if not planned["before_reading"]:
        found.append(
            "The plan was changed after something had been read (preregistration.json has all of them): what follows "
            "is not what was planned beforehand."
        )
    if reference(study.base)["base"] != study.base:
        found.append(
            f"No known answers were judged on {study.base}: the predictive value is persona world's, the stability "
            "this run's, and a removal is not given."
        )
    return found


def _write(result: AuditResult, run: Run, planned: dict[str, Any]) -> None:
    """Writes evidence.parquet and verdict.json, the whole result beside them, and the report from it."""
    study, panel, out = result.study, result.panel, run.out
    with whole_file(out / "evidence.parquet") as part:
        evidence_table(result.evidence).to_parquet(part, index=False)
    organisms = {}
    for name, v in result.verdicts.items():
        told = v.to_json() | {"role": run.roles[name]}
        told["tests"] = [*told["tests"], *(e.to_json() for e in result.causal if e.organism == name)]
        organisms[name] = told
    rule = {"name": RULE.name, "version": RULE.version, "delta": study.delta, "constants": digest(RULE.to_json())}
    write_json(
        out / "verdict.json",
        {
            "schema": 1,
            "study": study.name,
            "rule": rule,
            "settings_hash": planned["hash"],
            "preregistration": planned,
            "panel": {"name": panel.name, "asked": asked(panel), "cues": [c.name for c in panel.cues]},
            "controls": list(result.controls),
            "not_run": dict(result.not_run),
            "notes": list(result.notes),
            "organisms": organisms,
        },
    )
    result.save(out / "result", beside=("../evidence.parquet", "../verdict.json", f"../{planned['file']}"))
    report.write_report(out, result)
