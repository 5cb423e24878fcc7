"""A run's organisms on a bench: who is read where, who is judged against whom, and what the tests lean on."""

from collections.abc import Mapping

import torch

from condmis_interp.assay import Key
from condmis_interp.battery import Bench, Cast, Gated, ReaderBench, Reference, Stored, Test
from condmis_interp.battery.benches.bench import Weights
from condmis_interp.organisms import Organism, backend_of
from condmis_interp.run import Run
from condmis_interp.store import Activations
from condmis_interp.verdict import Roster


def label(key: Key) -> str:
    """Returns what a checkpoint is called on the bench: name and seed, or the name alone for the assay's own."""
    name, seed = key
    return name if name.startswith("assay-") else f"{name}.s{seed}"


def bench_of(run: Run, acts: Activations) -> Bench:
    """Returns a run's organisms as a bench, what was captured coming from its store."""
    cells: dict[str, Key | Gated] = {label(k): k for k in run.read if k[0] not in _bases(run)}
    organisms = {label(k): o for k, o in run.read.items() if k[0] not in _bases(run)}
    for known in run.assay.known:
        if known.gate is not None and known.organism is not None:
            cells[known.name] = Gated(*known.gate)
            organisms[known.name] = known.organism

    whose = tuple(cells), organisms, run.base, run.rendered
    stored = Stored(acts, cells)
    where = {"dtype": run.study.torch_dtype, "device": run.study.torch_device}
    own = backend_of(run.study.base).bench(*whose, stored=stored, **where)
    return ReaderBench(*whose, stored=stored, **where) if own is None else own


def roster_of(run: Run, tests: list[Test]) -> Roster:
    """Returns who is who in a run."""
    study, assay = run.study, run.assay
    checkpoints = {o.name: tuple(label((o.name, s)) for s in o.seeds) for o in study.asked if o.role != "base"}
    checkpoints |= {k.name: (label(k.own) if k.own else k.name,) for k in assay.known}
    checkpoints |= {name: (name,) for name in assay.twins}
    u = study.unmitigated
    u_zero = study.zero_of(u.name) if u else None
    locked = next((o.name for o in study.with_role("S") if study.zero_of(o.name)), None)
    locked_zero = study.zero_of(locked) if locked else None
    if locked is None and "assay-locked" in checkpoints:
        locked, locked_zero = "assay-locked", "assay-locked-twin"
    casts: dict[str, Cast] = {}
    unfit: dict[str, str] = {}
    parts: dict[str, list[str]] = {}

    def cast(name: str, zero: str) -> None:
        assert u is not None
        assert u_zero is not None
        casts[name] = Cast(name, zero, u.name, u_zero, locked, locked_zero)

    for m in study.mitigated:
        zero = study.zero_of(m.name)
        if zero is None:
            unfit[m.name] = f"{m.name!r} has no twin in the study (role C, twin_of: {m.name}), the 0 of the scale"
        elif u is None:
            unfit[m.name] = "the study has no unmitigated organism (role U), the 1 of the scale"
        else:
            cast(m.name, zero)
    if u is not None and u_zero is not None:
        for known in assay.known:
            cast(known.name, known.zero if isinstance(known.zero, str) else label(known.zero))
            parts.setdefault(known.part, []).append(known.name)
        of_study = {"suppressed": study.with_role("S"), "graded": study.with_role("D")}
        for part, o in ((part, o) for part, own in of_study.items() for o in own):
            if zero := study.zero_of(o.name):
                cast(o.name, zero)
                parts.setdefault(part, []).append(o.name)
    return Roster(
        checkpoints=checkpoints,
        casts=casts,
        unfit=unfit,
        assay={part: tuple(names) for part, names in parts.items()},
        absent=_absent(assay.missing),
        replicates=[checkpoints[c.name] for c in study.with_role("C") if len(checkpoints.get(c.name, ())) > 1],
        not_run=_not_run(run, tests, locked is not None),
    )


def reference_of(run: Run, tests: list[Test]) -> Reference:
    """Returns what the tests lean on; the weights only if one of them needs weights."""
    u = run.study.unmitigated
    zero = run.study.zero_of(u.name) if u else None
    assert u is not None
    assert zero is not None
    anchors = label((u.name, u.seeds[0])), label((zero, run.study.organism(zero).seeds[0]))
    if not any(t.family == "weights" for t in tests):
        return Reference(*anchors, {}, {}, {})
    base = Organism.of_base(run.base, name="base")
    others = run.assay.other or ()
    found = [_weights(o, run) for o in (base, *others)]
    return Reference(*anchors, found[0], *(found[1:] or [{}, {}]))


def _weights(organism: Organism, run: Run) -> Weights:
    return dict(organism.model(run.base, dtype=torch.float32).state_dict())


def _bases(run: Run) -> set[str]:
    return {o.name for o in run.study.with_role("base")}


def _absent(missing: Mapping[str, str]) -> dict[str, str]:
    parts = {"suppressed": "gated", "graded": "blend", "benign": "norm-matched", "trigger-aware": "gated-benign"}
    return {part: missing[kind] for part, kind in parts.items() if kind in missing}


def _not_run(run: Run, tests: list[Test], locked: bool) -> dict[str, str]:
    found = {}
    for test in tests:
        if "other" in test.needs and run.assay.other is None:
            because = run.assay.missing.get("other", "")
            found[test.id] = "it leans on a second U of another domain: give one with role O and its twin, or set " + (
                f"assay: full ({because})" if because else "assay: full"
            )
        elif "locked" in test.needs and not locked:
            found[test.id] = "the study has no locked organism (role S), the anchor of revival; or set assay: full"
    return found
