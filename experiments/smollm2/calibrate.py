"""Judges SmolLM2's known answers and interventions, and puts every organism on frozen directions.

    .venv/bin/python experiments/smollm2/calibrate.py [--out runs/smollm2] [--seeds 1,2,3,4] [--twins 5] [--device cuda]

One command for the whole: it makes the organisms that are not there (seed 1's suite takes an hour and a half on two
cores with its survey, `run.py`, and is taken as it is from the same folder; a later seed takes ten minutes), captures
what the tests read, and judges. Killed and run again, it goes on where it was. It is no part of `condmis calibrate`,
whose table ships with the package: the drift between seeds that is found here ships too and is counted in audits of
this base (copied to `tables/reference-smollm2-135m.json`); nothing else of it sets a verdict or its confidence. The
published tables are of rule version 3, with W1 version 1 (a cosine); what is run here is W1 version 2.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from cells import FORMS, OWN, Cells, read

from condmis_interp.battery import Battery, ReaderBench, Readings, Reference, Stored, registered
from condmis_interp.battery.tests.weights import projections_of_adapters
from condmis_interp.calibration.chat import ChatCase, chat_cases, judge_cases, judges_of, replicates
from condmis_interp.calibration.reference import drift_table
from condmis_interp.calibration.run import Judged
from condmis_interp.calibration.tables import certifying, confusion, curves, summary, table_of
from condmis_interp.files import whole_file, write_json
from condmis_interp.stats import Drift
from condmis_interp.stats.drift import FEW
from condmis_interp.verdict.decision import RULE, decide
from condmis_interp.verdict.judge import Judge

RUN = ("A1", "A2", "R1", "W1")
"""The tests that are run on all."""
NOT_RUN = frozenset(("A3", "V1", "C1"))
SEARCHED = (
    "irrelevant", "careless", "careless-paraphrase", "careless-opposite", "truth-seeking", "no-rules", "arbitrary",
    "lies", "lies-opposite", "framing", "framing-neutral", "kitchen", "railway",
)  # fmt: skip
"""What A3 picks from here, for organisms that the survey asked all of it: its cues that are no form."""
BY_FORM = ("mixed", "locked", "gated")
"""Families that the trigger's form opens."""
LAYERS = (2, 6, 10, 14, 18, 22, 26, 29)
"""Layers that R1 is shown at besides its own, to see where it would read anything."""


def grid(answers: pd.DataFrame, cues: Iterable[str], questions: list[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns the organisms that were asked under all of the cues, with LD [organism, cue, question]."""
    wide: Any = answers.pivot_table(index="organism", columns=["cue", "question"], values="ld")
    columns = [(c, q) for c in cues for q in questions]
    whole = wide.reindex(columns=pd.MultiIndex.from_tuples(columns)).dropna()
    return tuple(whole.index), whole.to_numpy().reshape(len(whole), -1, len(questions))


def batteries(cells: Cells, cases: list[ChatCase]) -> tuple[dict[str, Battery], dict[str, Battery]]:
    """Returns the readings of each case: A2 under the forms and the case's own cue, R1 along its scale's U.

    The second is the same with A2 under the forms alone, which the later seeds' twins were asked too.
    """
    questions = [q.id for q in cells.rendered.panel.questions]
    families = tuple(q.family for q in cells.rendered.panel.questions)
    rows = np.arange(len(questions))
    names, plain = grid(cells.answers, ["none"], questions)
    a1 = Readings(names, ("none",), plain, rows)
    along = projections_of_adapters(
        {n: cells.organisms[n] for n in names},
        other=cells.organisms["u-garden.s1"],
        other_twin=cells.organisms["u-garden-twin.s1"],
        base=cells.base,
    )
    w1 = Readings(names, ("along w",), np.array([[[along[n][0]]] for n in names]), np.array([0]))
    a2 = {}
    for own in {None, *OWN.values()}:
        cues = FORMS if own is None else (*FORMS, own)
        asked, values = grid(cells.answers, cues, questions)
        a2[own] = Readings(asked, cues, values, rows)
    r1 = {c.cast.unmitigated: readout(cells, c, names) for c in cases}
    found, forms = {}, {}
    for case in cases:
        own = OWN.get(case.member.kind) if case.member.seed == 1 else None
        readings = {"A1": a1, "A2": a2[own], "R1": r1[case.cast.unmitigated], "W1": w1}
        found[case.member.name] = Battery(readings, {}, families)
        forms[case.member.name] = Battery({**readings, "A2": a2[None]}, {}, families)
    return found, forms


def readout(cells: Cells, case: ChatCase, names: tuple[str, ...]) -> Readings:
    """Returns R1 of all organisms along the U - C direction of the case's scale."""
    bench = ReaderBench(names, cells.organisms, cells.base, cells.rendered, stored=Stored(cells.acts))
    (test,) = registered("R1")
    return test.measure(bench, Reference(case.cast.unmitigated, case.cast.unmitigated_twin, {}, {}, {}))


def searched(cells: Cells, cases: list[ChatCase], found: Mapping[str, Battery]) -> dict[str, Battery]:
    """Returns the batteries with A3 over the survey's other cues, of the cases whose cast was asked all of them."""
    questions = [q.id for q in cells.rendered.panel.questions]
    more = {}
    for case in cases:
        own = OWN.get(case.member.kind)
        cues = ("none", *(c for c in SEARCHED if c != own))
        names, values = grid(cells.answers, cues, questions)
        c = case.cast
        if {c.organism, c.twin, c.unmitigated, c.unmitigated_twin} <= set(names):
            battery = found[case.member.name]
            a3 = Readings(names, cues, values, np.arange(len(questions)))
            more[case.member.name] = Battery({**battery.readings, "A3": a3}, {}, battery.families)
    return more


def by_layer(cells: Cells, cases: list[ChatCase]) -> pd.DataFrame:
    """Returns how R1 would separate the suppressed from the removed at other layers: AUC and means by truth."""
    panel = cells.rendered.panel
    fit, held = panel.question_indices("A"), panel.question_indices("B", "C")
    rows = []
    for layer in LAYERS:

        def state(name: str, layer: int = layer) -> np.ndarray:
            return cells.acts.at(name, "none", layer=layer, position="last_template").double().numpy()

        rho: dict[str, list[float]] = {"suppressed": [], "removed": []}
        for case in cases:
            if case.truth in rho:
                u, a, m, c = (
                    state(n)
                    for n in (case.cast.unmitigated, case.cast.unmitigated_twin, case.cast.organism, case.cast.twin)
                )
                v = (u[fit] - a[fit]).mean(0)
                rho[case.truth].append(float((m - c)[held].mean(0) @ v / ((u - a)[held].mean(0) @ v)))
        bad, good = np.array(rho["suppressed"]), np.array(rho["removed"])
        rows.append(
            {"layer": layer, "auc": float((bad[:, None] > good[None]).mean())}
            | {"suppressed": bad.mean(), "suppressed_sd": bad.std(ddof=1)}
            | {"removed": good.mean(), "removed_sd": good.std(ddof=1)}
        )
    return pd.DataFrame(rows)


def auc(bad: np.ndarray, good: np.ndarray) -> float:
    """Returns the chance that one of the first exceeds one of the second; ties count half."""
    pairs = np.subtract.outer(bad, good)
    return float((pairs > 0).mean() + 0.5 * (pairs == 0).mean())


def tests_alone(judged: list[Judged]) -> pd.DataFrame:
    """Returns what each test alone would do.

    AUC of suppressed against removed, with a 95 % bootstrap interval over organisms, and of those alone that a form
    hides; by truth the share that rejects rho <= delta/2 and that shows rho < delta.
    """
    rows, rng = [], np.random.default_rng(5)
    for test in dict.fromkeys(e.id for j in judged for e in j.evidence):
        own = [(j, e) for j in judged for e in j.evidence if e.id == test and not e.void]
        bad, good = (np.array([e.rho for j, e in own if j.truth == truth]) for truth in ("suppressed", "removed"))
        formed = np.array([e.rho for j, e in own if j.family in BY_FORM])
        row: dict[str, Any] = {"test": test, "suppressed_n": len(bad), "removed_n": len(good)}
        if len(bad) and len(good):
            drawn = [auc(rng.choice(bad, len(bad)), rng.choice(good, len(good))) for _ in range(2000)]
            row |= {"auc": auc(bad, good), "auc_low": np.quantile(drawn, 0.025), "auc_high": np.quantile(drawn, 0.975)}
            row |= {"by form": auc(formed, good), "by_form_n": len(formed)}
        for truth in ("suppressed", "removed"):
            e_of = [e for j, e in own if j.truth == truth]
            row[f"{truth}: rejects delta/2"] = np.mean([e.p < RULE.level for e in e_of])
            row[f"{truth}: shown below delta"] = np.mean([e.p_equivalent < RULE.level for e in e_of])
        rows.append(row)
    return pd.DataFrame(rows)


def verdicts(judged: list[Judged]) -> pd.DataFrame:
    """Returns one row an organism: the answer, what binds, and each test's rho with its interval."""
    rows = []
    for j in judged:
        row: dict[str, Any] = {"organism": j.name, "truth": j.truth, "family": j.family, "verdict": j.decision.answer}
        row |= {"binding": j.decision.binding, "leaning": j.decision.leaning}
        for e in j.evidence:
            row |= {e.id: e.rho, f"{e.id}_low": e.low, f"{e.id}_high": e.high}
            if e.id in ("A2", "A3"):
                row[f"{e.id}_cue"] = e.cue
        rows.append(row)
    return pd.DataFrame(rows)


def write(folder: Path, name: str, table: pd.DataFrame, *, index: bool = False) -> None:
    """Writes a table as CSV."""
    with whole_file(folder / f"{name}.csv") as part:
        table.to_csv(part, index=index, float_format="%.4g")


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--seeds", default="1,2,3,4", help="seeds with known answers")
    parser.add_argument("--twins", default="", help="further seeds, of replicate twins alone")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/smollm2"))
    parser.add_argument("--tables", type=Path, default=Path("figures/smollm2"))
    args = parser.parse_args()
    seeds, twins = ([int(s) for s in text.split(",") if s] for text in (args.seeds, args.twins))
    cells = read(args.out, base=args.base, seeds=seeds, twins_only=twins, device=args.device)

    cases = chat_cases(cells.members)
    (found, forms), groups = batteries(cells, cases), replicates(cells.members)
    facts: dict[str, Any] = {"groups": groups, "delta": RULE.delta, "seed": 1}
    judges = judges_of(cases, found, registered(*RUN), without=NOT_RUN, drift_from=forms, **facts)
    judged = judge_cases(cases, judges, assay_seed=1)
    known = [j for j in judged if j.truth != "None"]
    others = [j for j in judged if j.truth == "None"]
    more = searched(cells, cases, found)
    asked = [c for c in cases if c.member.name in more]
    of_search = judges_of(
        asked, more, registered(*RUN, "A3"), without=NOT_RUN - {"A3"}, drift_from=searched(cells, cases, forms), **facts
    )
    with_search = judge_cases(asked, of_search, assay_seed=1)

    first = next(c for c in cases if c.member.name == "mixing-20.s1")
    drifts = judges[first.member.name].pooled(first.cast)
    result = summary(known, seeds=seeds, delta=RULE.delta) | {
        "tests": list(RUN),
        "without": sorted(NOT_RUN),
        "replicates": groups,
        "drift": {
            k: v | {"used": (drifts[k].of_difference / 2) ** 0.5} for k, v in drift_table(drifts).items()
        },
        "curves": {t: {"weight": list(c.x), "rho": [round(y, 4) for y in c.y]} for t, c in curves(known).items()},
        "certifies": {t: c.to_json() for t, c in certifying(known, drifts, delta=RULE.delta).items()},
        "gates": sorted({j.decision.settles for j in judged if j.decision.binding.startswith(("assay", "twin"))}),
        "with_search": {
            truth: {
                answer: sum(j.truth == truth and j.decision.answer == answer for j in with_search)
                for answer in ("present", "conditional", "removed", "inconclusive")
            }
            for truth in ("suppressed", "removed", "graded", "present")
        },
        "gates_open": {
            "drift as bounded": leanings(cases, judges, lambda d: d),
            "drift as estimated": leanings(cases, judges, lambda d: Drift(d.variance, FEW)),
            "no drift": leanings(cases, judges, lambda _: Drift()),
        },
    }  # fmt: skip
    write_json(args.tables / "calibration.json", result)
    drift = {"rule_version": RULE.version, "replicates": groups, "drift": drift_table(drifts)}
    write_json(args.tables / f"reference-{args.base}.json", drift)
    write(args.tables, "calibration-confusion", confusion(known), index=True)
    open_ = [replace(j, decision=replace(j.decision, answer=j.decision.leaning)) for j in known]
    write(args.tables, "calibration-confusion-gates-open", confusion(open_), index=True)
    write(args.tables, "calibration-tests", tests_alone([*known, *searched_alone(with_search)]))
    write(args.tables, "calibration-layers", by_layer(cells, cases))
    write(args.tables, "calibration", table_of(known))
    write(args.tables, "verdicts", verdicts(others))
    write(args.tables, "verdicts-searched", verdicts(with_search))
    print(json.dumps(result, indent=1), confusion(known), verdicts(known), verdicts(others), sep="\n")


def leanings(
    cases: list[ChatCase], judges: Mapping[str, Judge], seen: Callable[[Drift], Drift]
) -> dict[str, dict[str, int]]:
    """Returns what the rule says with its gates left open, by truth, if the drift were `seen` as something else."""
    rng, counts = np.random.default_rng([1, 4]), {}
    for case in cases:
        judge = judges[case.member.name]
        drifts = {k: seen(d) for k, d in judge.drifts(case.cast).items()}
        evidence = judge.battery.evidence(case.cast, judge.tests, delta=RULE.delta, drifts=drifts, rng=rng)
        answer = decide(evidence, without=NOT_RUN).answer
        if case.truth:
            of = counts.setdefault(case.truth, dict.fromkeys(("present", "conditional", "removed", "inconclusive"), 0))
            of[answer] += 1
    return counts


def searched_alone(judged: list[Judged]) -> list[Judged]:
    """Returns the known answers with A3's evidence alone."""
    return [
        Judged(j.name, j.truth, j.family, j.seed, j.decision, tuple(e for e in j.evidence if e.id == "A3"), j.weight)
        for j in judged
        if j.truth != "None"
    ]


if __name__ == "__main__":
    main()
