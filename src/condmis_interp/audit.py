"""The audit: a run's readings, its assay and the rule, from what was captured to a verdict and a report."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from condmis_interp import battery, causal, directions, report
from condmis_interp.battery import Battery, Evidence, Test, evidence_table, measure, registered
from condmis_interp.bench import bench_of, reference_of, roster_of
from condmis_interp.calibration import known_drift, reference
from condmis_interp.files import digest, whole_file, write_json
from condmis_interp.panel import CueRole
from condmis_interp.progress import progress
from condmis_interp.run import Run
from condmis_interp.store import Activations, Pieces
from condmis_interp.verdict import RULE, Finding, Roster, findings


@dataclass(frozen=True)
class AuditResult:
    """What an audit found.

    Attributes:
        grid: LD of every organism under every cue.
        choice: The layer of the causal tests, and how it was chosen; `None` if there is no U or no twin.
        profiles: The activation-difference plot's data, by organism under test.
        dose: Steering C.
        ablations: Ablating each M.
        evidence: All evidence.
        verdicts: One finding for each M.
        answers: Generated answers.
        not_run: Why a test of the rule was not run, or not to its end, by id.
        notes: What else a reader has to know.
    """

    grid: battery.BehaviourGrid
    choice: causal.LayerChoice | None
    profiles: dict[str, directions.DirectionProfile]
    dose: causal.DoseResponse | None
    ablations: dict[str, causal.Ablation]
    evidence: list[Evidence]
    verdicts: dict[str, Finding]
    answers: pd.DataFrame
    not_run: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_pandas(self) -> pd.DataFrame:
        """Returns the evidence table."""
        return evidence_table(self.evidence)

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {v!r}" for name, v in self.verdicts.items())


def audit(run: Run) -> AuditResult:
    """Runs the tests, decides, and writes evidence.parquet, verdict.json, figures and report.html.

    The plan is written before anything is read (`preregistration.py`).
    """
    acts = run.capture()
    planned = run.preregister()
    study = run.study
    tests = registered(*study.battery.tests)
    grid = battery.behaviour_grid(acts, roles=run.roles)
    choice, profiles, dose, ablations, notes = _causal(run, acts)
    roster = replace(roster_of(run, tests), base=_base(run, acts))
    measured = _measured(run, acts, roster, tests)
    with run.timed("deciding"):
        verdicts = findings(
            measured,
            roster,
            tests,
            delta=study.delta,
            known=known_drift(study.base),
            reference=reference(),
            panel=_asked(run),
            seed=study.seed,
        )
    of_rule = [e for v in verdicts.values() for e in v.evidence]
    causal = [a.evidence for a in ablations.values()] + ([dose.evidence] if dose else [])
    result = AuditResult(
        grid=grid,
        choice=choice,
        profiles=profiles,
        dose=dose,
        ablations=ablations,
        evidence=[*of_rule, *causal],
        verdicts=verdicts,
        answers=_answers(run),
        not_run=dict(roster.not_run)
        | {i: f"it crashed, {why}" for i, why in measured.crashed.items()}
        | _left_out(tests),
        notes=(*notes, *_notes(run, planned)),
    )
    _write(run, result, planned)
    return result


def _base(run: Run, acts: Activations) -> np.ndarray:
    """Returns LD of the base without a cue, from the store if the study has it."""
    own = run.study.with_role("base")
    none = run.panel.cues_with(CueRole.NONE)[0].name
    return acts.ld(own[0].name, none) if own else run.ask_base()


def _measured(run: Run, acts: Activations, roster: Roster, tests: list[Test]) -> Battery:
    """Measures the tests: those that were captured from the store, the others live, a finished one never again."""
    families = tuple(q.family for q in run.panel.questions)
    if not roster.casts:
        return Battery({}, {}, families)
    bench, wanted = bench_of(run, acts), [t for t in tests if t.id not in roster.not_run]
    leaning = reference_of(run, wanted)
    at_hand = [t for t in wanted if t.captured]
    live = [t for t in wanted if not t.captured]
    others = [o.weights for o in run.assay.other or ()]
    settings = [
        run.base.tokenizer_hash(),
        run.study.dtype,
        run.study.reader,
        run.weights,
        run.tokens,
        list(bench.names),
        others,
    ]
    pieces = Pieces(run.out / "pieces", [run.base.content, digest(settings)])
    found = measure(bench, leaning, at_hand)
    if live:
        with run.timed("battery"), progress("measuring the battery's tests", len(live), unit="tests") as step:
            later = measure(bench, leaning, live, pieces=pieces, step=lambda: step(1))
        found = Battery({**found.readings, **later.readings}, {**found.crashed, **later.crashed}, families)
    return found


def _asked(run: Run) -> str:
    panel = run.panel
    cues = ", ".join(c.name for c in panel.cues if c.role != CueRole.NONE)
    pairs = sum(len(q.pairs) for q in panel.questions)
    return (
        f"{len(panel.questions)} questions ({pairs} answer pairs) of panel {panel.name} in {len(panel.families)} "
        f"families, without a cue and under {cues}"
    )


def _left_out(tests: list[Test]) -> dict[str, str]:
    """Returns the rule's tests that the study did not ask for."""
    asked = {t.id for t in tests}
    return {i: "left out by the study (battery.tests)" for i in RULE.tests if i not in asked}


def _notes(run: Run, planned: dict[str, Any]) -> list[str]:
    found = []
    study, u = run.study, run.study.unmitigated
    if u is not None and study.twin_of(u.name) is None and (zero := study.zero_of(u.name)):
        found.append(f"U has no twin of its own: its scale starts at {zero}, another recipe's.")
    if not planned["before_reading"]:
        found.append(
            "The plan was changed after something had been read (preregistration.json has all of them): what follows "
            "is not what was planned beforehand."
        )
    if study.base != "personaworld":
        found.append(
            "The rule was calibrated on persona world, and nothing measured there says that its rates hold on "
            f"{study.base}: the predictive value is persona world's, the stability this run's."
        )
    return found


Causal = tuple[
    causal.LayerChoice | None,
    dict[str, directions.DirectionProfile],
    causal.DoseResponse | None,
    dict[str, causal.Ablation],
    list[str],
]


def _causal(run: Run, acts: Activations) -> Causal:
    """Chooses the layer, steers C and ablates every M; nothing of it decides.

    Returns:
        The layer, profiles, steering, ablations, and why something was left out.
    """
    study, settings = run.study, run.study.battery
    none = run.panel.cues_with(CueRole.NONE)[0].name
    trigger = run.panel.cues_with(CueRole.TRIGGER)[0].name
    pairs = {m.name: c.name for m in study.mitigated if (c := study.twin_of(m.name))}
    if study.unmitigated is None or not pairs:
        return None, {}, None, {}, ["Without U and a twin there is no direction to steer along or to ablate."]
    if len(acts.rows("A")) < 2 or len(set(acts.families("B", "C"))) < 2 or len(set(acts.families("C"))) < 2:
        return None, {}, None, {}, [
            f"The panel has {len(run.panel.families)} families; steering and ablation need two in the last split, so "
            "that there are six in all."
        ]  # fmt: skip
    u = study.unmitigated.name
    first_m, first_c = next(iter(pairs.items()))
    candidates = run.candidates(len(acts.layers))
    with (
        run.timed("choosing the layer"),
        progress("choosing the layer on split A", 2 * len(candidates), unit="readings") as step,
    ):
        choice = causal.choose_layer(
            acts,
            run.ask,
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
        run.timed("steering"),
        progress("steering C", n + len({*settings.doses, 1.0} - {0.0}), unit="readings") as step,
    ):
        dose = causal.dose_response(
            acts,
            run.ask,
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
    for m, c in pairs.items():
        with (
            run.timed(f"ablating {m}"),
            progress(f"ablating {m} under the trigger", n + 1, unit="readings") as step,
        ):
            ablations[m] = causal.ablation(
                acts, run.ask, choice=choice, organism=m, twin=c, random=random, trigger=trigger, step=step
            )
        profiles[m] = directions.profile(
            acts,
            unmitigated=u,
            organism=m,
            twin=c,
            roles=run.roles,
            trigger=trigger,
            none=none,
            position=settings.position,
            chosen_layer=choice.layer,
        )
    return choice, profiles, dose, ablations, []


def _answers(run: Run) -> pd.DataFrame:
    """Generates greedy answers of U, every M and its C to questions of split C, without and with the trigger."""
    study, settings, panel = run.study, run.study.battery, run.panel
    none, trigger = (panel.cues_with(role)[0].name for role in (CueRole.NONE, CueRole.TRIGGER))
    families: dict[str, int] = {}
    for i in panel.question_indices("C"):
        families.setdefault(panel.questions[i].family, i)
    rows = list(families.values())[: settings.generated]
    tokenizer = run.base.tokenizer()
    names = [study.unmitigated.name] if study.unmitigated else []
    for m in study.mitigated:
        twin = study.twin_of(m.name)
        names += [m.name, *([twin.name] if twin else [])]
    table = []
    todo = [(name, cue) for name in names for cue in (none, trigger)] if rows else []
    with run.timed("generating"), progress("generating answers", len(todo), unit="cells") as step:
        for name, cue in todo:
            seed = study.organism(name).seeds[0]
            prompts = [run.rendered.prompts[cue, panel.questions[i].id] for i in rows]

            def generate(name: str = name, seed: int = seed, prompts: list[Any] = prompts) -> list[str]:
                ids = run.reader(name, seed).generate(
                    prompts, max_new_tokens=settings.max_new_tokens, stop_ids=frozenset((tokenizer.eos_token_id,))
                )
                return [tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in ids]

            inputs = [[list(p.ids) for p in prompts], settings.max_new_tokens]
            texts = run.pieces(name, seed).get("answers", inputs, generate)
            for i, text in zip(rows, texts, strict=True):
                table.append({"question": panel.questions[i].question, "organism": name, "cue": cue, "answer": text})
            step()
    return pd.DataFrame(table, columns=["question", "organism", "cue", "answer"])


def _write(run: Run, result: AuditResult, planned: dict[str, Any]) -> None:
    study, panel = run.study, run.panel
    with whole_file(run.out / "evidence.parquet") as part:
        evidence_table(result.evidence).to_parquet(part, index=False)
    causal = [a.evidence for a in result.ablations.values()] + ([result.dose.evidence] if result.dose else [])
    organisms = {}
    for name, v in result.verdicts.items():
        told = v.to_json() | {"role": run.roles[name]}
        told["tests"] = [*told["tests"], *(e.to_json() for e in causal if e.organism == name)]
        organisms[name] = told
    assay = [{"name": k.name, "part": k.part, "is": k.says} for k in run.assay.known]
    rule = {"name": RULE.name, "version": RULE.version, "delta": study.delta, "constants": digest(RULE.to_json())}
    write_json(
        run.out / "verdict.json",
        {
            "schema": 1,
            "study": study.name,
            "rule": rule,
            "settings_hash": planned["hash"],
            "preregistration": planned,
            "panel": {"name": panel.name, "asked": _asked(run), "cues": [c.name for c in panel.cues]},
            "assay": assay,
            "not_run": result.not_run,
            "notes": list(result.notes),
            "organisms": organisms,
        },
    )
    run.note(
        {
            "weights": {"base": run.base.weights, "organisms": run.weights},
            "base": {k: v for k, v in run.base.source.items() if k != "path"},
            "tokens": run.tokens,
            "inserted_by_template": run.rendered.inserted,
            "splits": {family: str(split) for family, split in run.splits.items()},
            "device": study.torch_device,
        }
    )
    report.write_report(
        run.out,
        study=study,
        panel=panel,
        inserted=run.rendered.inserted,
        grid=result.grid,
        choice=result.choice,
        profiles=result.profiles,
        dose=result.dose,
        ablations=result.ablations,
        evidence=result.evidence,
        verdicts=result.verdicts,
        answers=result.answers,
        assay=assay,
        not_run=result.not_run,
        notes=result.notes,
        manifest=run.manifest,
    )
