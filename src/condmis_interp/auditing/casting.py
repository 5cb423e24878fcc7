"""Who plays what: a study's organisms and controls on a bench, who is judged against whom, what the tests lean on."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from condmis_interp.auditing.controls import Controls
from condmis_interp.battery import Bench, Cast, Gated, ReaderBench, Reference, Stored, Test, draw_prompts
from condmis_interp.battery.benches.bench import Weights
from condmis_interp.battery.coverage import Coverage, coverage, size_ratio
from condmis_interp.errors import CondmisError
from condmis_interp.organisms import Base, Organism, backend_of
from condmis_interp.panel import RenderedPanel
from condmis_interp.prompts import Grammar
from condmis_interp.store import Activations
from condmis_interp.study import Study
from condmis_interp.study.roles import CONTROL
from condmis_interp.study.run import Key
from condmis_interp.verdict import Roster
from condmis_interp.verdict.roster import BASE, INDIFFERENT

_MADE_AS = {"suppressed": "gated", "graded": "blend", "benign": "norm-matched", "trigger-aware": "gated-benign"}
"""The kind of control that a part is left without if it was not made."""


def label(key: Key) -> str:
    """Returns what a checkpoint is called on the bench: name and seed, or the name alone for a control organism."""
    name, seed = key
    return name if name.startswith(CONTROL) else f"{name}.s{seed}"


def bench_of(
    study: Study,
    acts: Activations,
    *,
    base: Base,
    rendered: RenderedPanel,
    read: Mapping[Key, Organism],
    controls: Controls,
) -> Bench:
    """Returns a study's organisms and controls as a bench, what was captured coming from the store.

    Args:
        study: The study.
        acts: What was captured.
        base: The study's base.
        rendered: Its panel as token ids.
        read: The organisms that were captured.
        controls: The control organisms; gated ones have the cells of the models they are made of.
    """
    bases = {o.name for o in study.with_role("base")}
    organisms = {label(k): o for k, o in read.items() if k[0] not in bases}
    cells: dict[str, Key | Gated] = {label(k): k for k in read if k[0] not in bases}
    for control in controls.made:
        if control.gate is not None and control.organism is not None:
            cells[control.name] = Gated(*control.gate)
            organisms[control.name] = control.organism
    names = tuple(cells)
    if study.twinless:
        names, organisms[BASE] = (*names, BASE), Organism.of_base(base, name=BASE)
        cells |= dict.fromkeys((BASE,), k) if (k := next((k for k in read if k[0] in bases), None)) else {}
    whose = names, organisms, base, rendered
    settings: dict[str, Any] = {"stored": Stored(acts, cells)}
    settings |= {"dtype": study.torch_dtype, "device": study.torch_device}
    own = backend_of(study.base).bench(*whose, **settings)
    return ReaderBench(*whose, **settings) if own is None else own


def roster_of(study: Study, controls: Controls, tests: Sequence[Test]) -> Roster:
    """Returns who is who among a study's organisms and its controls."""
    checkpoints = {o.name: tuple(label((o.name, s)) for s in o.seeds) for o in study.asked if o.role != "base"}
    checkpoints |= {k.name: (label(k.own) if k.own else k.name,) for k in controls.made}
    checkpoints |= {name: (name,) for name in controls.twins}
    u = study.unmitigated
    u_zero = study.zero_of(u.name) if u else None
    locked = next((o.name for o in study.with_role("locked") if study.zero_of(o.name)), None)
    locked_zero = study.zero_of(locked) if locked else None
    if locked is None and "assay-locked" in checkpoints:
        locked, locked_zero = "assay-locked", "assay-locked-twin"
    casts: dict[str, Cast] = {}
    parts: dict[str, list[str]] = {}

    def cast(name: str, zero: str) -> None:
        assert u is not None
        assert u_zero is not None
        own = set(checkpoints[name])
        if own & set(checkpoints.get(zero, ())):  # a replicate of the twin is judged against the others of its recipe
            zero, fellows = f"{zero} but {name}", tuple(c for c in checkpoints[zero] if c not in own)
            checkpoints[zero] = fellows
        casts[name] = Cast(name, zero, u.name, u_zero, locked, locked_zero, *(controls.dosed or (None, None)))

    twinless: dict[str, str] = {}
    for m in study.mitigated:
        zero = study.zero_of(m.name)
        if m.name not in study.twinless:
            assert zero is not None
            cast(m.name, zero)
            continue
        lacking = [
            f"a twin (role: twin, twin_of: {m.name}; four seeds for a claim of absence)" if zero is None else "",
            "an unmitigated organism (role: unmitigated)" if u is None else "",
        ]
        twinless[m.name] = f"the study has not {' nor '.join(filter(None, lacking))}, so it is measured from the base"
        casts[m.name] = Cast(m.name, BASE, INDIFFERENT, BASE)
    if u is not None and u_zero is not None:
        for control in controls.made:
            cast(control.name, control.zero if isinstance(control.zero, str) else label(control.zero))
            parts.setdefault(control.part, []).append(control.name)
        of_study = {"suppressed": study.with_role("locked"), "graded": study.with_role("graded")}
        for part, o in ((part, o) for part, own in of_study.items() for o in own):
            if zero := study.zero_of(o.name):
                cast(o.name, zero)
                parts.setdefault(part, []).append(o.name)
    return Roster(
        checkpoints=checkpoints,
        casts=casts,
        twinless=twinless,
        controls={part: tuple(names) for part, names in parts.items()},
        absent={part: controls.missing[kind] for part, kind in _MADE_AS.items() if kind in controls.missing},
        replicates=[checkpoints[c.name] for c in study.with_role("twin") if len(checkpoints.get(c.name, ())) > 1],
        not_run=_not_run(controls, tests, locked is not None),
    )


def weighed(roster: Roster, bench: Bench, tests: Sequence[Test], reference: Reference | None) -> Roster:
    """Returns the roster with what the weights say of each organism under test: which regions changed, and how much.

    Where that cannot be read (quantised weights, say) it stays unknown, and a removal is not given.
    """
    covered, sizes = {}, {}
    inside = [t for t in tests if t.blocks and t.certifies and t.id not in roster.not_run]
    of_known_answer = {n for names in roster.controls.values() for n in names}
    for name, cast in roster.casts.items():
        if name in of_known_answer:
            continue
        own = roster.checkpoints[name]
        with suppress(CondmisError):
            covered[name] = _together([coverage(bench, n, inside, reference) for n in own])
        if name in roster.twinless:
            continue  # there is nothing to compare its size with
        with suppress(CondmisError):
            twins = roster.checkpoints[cast.twin]
            sizes[name] = max(max(size_ratio(bench, n, twins).values()) for n in own)
    return replace(roster, coverage=covered, sizes=sizes)


def _together(found: Sequence[Coverage]) -> Coverage:
    """Returns the coverage of an organism of several seeds: what any of them changed, and what is read of all."""
    regions = dict.fromkeys(r for c in found for r in c.changed)
    changed = {r: max(c.changed.get(r, 0.0) for c in found) for r in regions}
    read = {t: tuple(r for r in of if all(r in c.read[t] for c in found)) for t, of in found[0].read.items()}
    return Coverage(changed, read)


def reference_of(study: Study, base: Base, controls: Controls, tests: Sequence[Test], grammar: Grammar) -> Reference:
    """Returns what the tests lean on; the weights only if one of them needs weights."""
    drawn = draw_prompts(grammar, study.seed)
    u = study.unmitigated
    zero = study.zero_of(u.name) if u else None
    if u is None or zero is None:  # tests of behaviour lean on nothing
        return Reference("", "", {}, {}, {}, drawn=drawn)
    anchors = label((u.name, u.seeds[0])), label((zero, study.organism(zero).seeds[0]))
    if not any(t.family == "weights" for t in tests):
        return Reference(*anchors, {}, {}, {}, drawn=drawn)
    of = (Organism.of_base(base, name="base"), *(controls.other or ()))
    found = [_Weights(o, base) for o in of]
    return Reference(*anchors, found[0], *(found[1:] or [{}, {}]), pair=controls.other, drawn=drawn)


class _Weights(Mapping[str, torch.Tensor]):
    """An organism's state dict, loaded when it is first looked into: most tests never do."""

    def __init__(self, organism: Organism, base: Base) -> None:
        self._organism, self._base = organism, base

    @cached_property
    def _own(self) -> Weights:
        return dict(self._organism.model(self._base, dtype=torch.float32).state_dict())

    def __getitem__(self, key: str) -> torch.Tensor:
        return self._own[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)


def _not_run(controls: Controls, tests: Sequence[Test], locked: bool) -> dict[str, str]:
    found = {}
    for test in tests:
        if "other" in test.needs and controls.other is None:
            because = controls.missing.get("other", "")
            found[test.id] = (
                "it leans on an unmitigated organism of another domain: give one (role: second-domain) and its twin, "
                f"or set controls: full{f' ({because})' if because else ''}"
            )
        elif test.anchor == "dosed" and controls.dosed is None:
            because = controls.missing.get("dosed", "")
            found[test.id] = f"it has no dose-matched anchor: set controls: full{f' ({because})' if because else ''}"
        elif "locked" in test.needs and not locked:
            found[test.id] = (
                "the study has no locked organism (role: locked), the anchor of revival; or set controls: full"
            )
    return found
