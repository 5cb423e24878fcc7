"""Measuring: every test on every organism of a bench, resumable; a test that crashes stops none of the others."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from condmis_interp.battery.benches.bench import Bench
from condmis_interp.battery.evidence import Evidence
from condmis_interp.battery.judging import Cast, Drifts, judge, missing, replicate_drift
from condmis_interp.battery.registry import Readings, Reference, Test
from condmis_interp.errors import CondmisError
from condmis_interp.stats import Drift
from condmis_interp.store import Pieces

FEWEST = 4
"""Questions below which a subset says nothing of a test; then all that it was asked are used."""


@dataclass(frozen=True)
class Battery:
    """What a battery measured on a bench.

    Attributes:
        readings: By test id.
        crashed: Why a test gave nothing, by test id.
        families: Family of each question of the panel.

    Example:
        >>> battery = Battery(readings={}, crashed={"T": "it ran out of memory"}, families=("f", "g"))
        >>> battery.crashed["T"]
        'it ran out of memory'
    """

    readings: Mapping[str, Readings]
    crashed: Mapping[str, str]
    families: tuple[str, ...]

    def evidence(
        self,
        cast: Cast,
        tests: Sequence[Test],
        *,
        delta: float,
        drifts: Drifts,
        rng: np.random.Generator,
        draws: int = 1000,
        rows: np.ndarray | None = None,
    ) -> list[Evidence]:
        """Returns every test's evidence about one organism.

        Args:
            cast: Who plays what.
            tests: Which tests; one that was not measured or crashed gives void evidence that says so.
            delta: Margin.
            drifts: What seeds add to the error of M - C.
            rng: Source of randomness for max-T.
            draws: Its sign flips.
            rows: Questions of the panel to use, with repeats for a bootstrap; all by default.
        """
        labels = self.families if rows is None else _clusters(self.families, rows)
        found = []
        for test in tests:
            if test.id in self.crashed:
                found.append(missing(test, cast, f"it crashed: {self.crashed[test.id]}"))
            elif test.id not in self.readings:
                found.append(missing(test, cast, "it was not run"))
            else:
                readings, families = self._sample(test, rows, labels)
                found.append(
                    judge(test, readings, cast, families=families, delta=delta, drifts=drifts, rng=rng, draws=draws)
                )
        return found

    def drifts(self, cast: Cast, tests: Sequence[Test], groups: Sequence[Sequence[str]]) -> dict[str, Drift]:
        """Returns the drift of every test, and of every rise, between replicate twins, in units of rho.

        A twin that a test was not run on tells it nothing; a test without readings or anchors is left out.

        Args:
            cast: Whose anchors make the scale.
            tests: Which tests.
            groups: Replicate twins: those of a group differ in their seed alone.
        """
        found: dict[str, Drift] = {}
        for test in tests:
            anchors, readings = cast.anchors(test), self.readings.get(test.id)
            if anchors is not None and readings is not None and {*anchors} <= {*readings.names}:
                there = [[n for n in group if n in readings.names] for group in groups]
                found |= replicate_drift(test, readings, there, anchors)
        return found

    def asked(self, rows: np.ndarray) -> "Battery":
        """Returns the battery as if only some of the panel's questions had been asked, each once."""
        kept = {}
        for name, r in self.readings.items():
            there = np.isin(r.rows, rows)
            kept[name] = replace(r, values=r.values[:, :, there], rows=r.rows[there]) if there.sum() >= FEWEST else r
        return replace(self, readings=kept)

    def _sample(self, test: Test, rows: np.ndarray | None, labels: Sequence[str]) -> tuple[Readings, list[str]]:
        readings = self.readings[test.id]
        where = np.full(len(self.families), -1)
        where[readings.rows] = np.arange(len(readings.rows))
        columns = np.full(0, -1) if rows is None else where[rows]
        drawn = columns[columns >= 0]
        if len(np.unique(drawn)) < FEWEST:  # all, or too few of a search's questions were drawn
            return readings, [self.families[i] for i in readings.rows]
        sampled = replace(readings, values=readings.values[:, :, drawn], rows=readings.rows[drawn])
        return sampled, [f for f, k in zip(labels, columns, strict=True) if k >= 0]


def _clusters(families: Sequence[str], rows: np.ndarray) -> list[str]:
    """Returns the cluster of each drawn question: its family, one that is drawn twice counting as two."""
    seen: Counter[int] = Counter()
    labels = []
    for r in map(int, rows):
        labels.append(f"{families[r]} #{seen[r]}")
        seen[r] += 1
    return labels


def measure(
    bench: Bench,
    reference: Reference,
    tests: Sequence[Test],
    *,
    pieces: Pieces | None = None,
    step: Callable[[], None] = lambda: None,
) -> Battery:
    """Measures every test on every organism.

    Args:
        bench: The organisms.
        reference: What the tests lean on.
        tests: Which tests.
        pieces: Where finished readings are kept; a run that was killed goes on from there.
        step: Called after each test.

    Example:
        >>> from pathlib import Path
        >>> from condmis_interp.battery import ReaderBench, registered
        >>> from condmis_interp.organisms import Organism, resolve_base
        >>> from condmis_interp.panel import load_panel, render_panel
        >>> base = resolve_base("dir:base")
        >>> organisms = {name: Organism.of_checkpoint(Path(name), name=name) for name in ("u", "m", "c")}
        >>> asked = render_panel(base.tokenizer(), load_panel("panel.yaml").subset(pairs=1))
        >>> bench = ReaderBench(("u", "m", "c"), organisms, base, asked)
        >>> found = measure(bench, Reference("u", "c", {}, {}, {}), registered("A1", "A2"))
        >>> found.readings["A2"].values.shape  # organisms, cues, questions
        (3, 5, 12)
    """
    readings, crashed = {}, {}
    for test in tests:
        try:
            if pieces is None:
                readings[test.id] = test.measure(bench, reference)
            else:
                stored = pieces.get(test.id, [test.version], lambda t=test: t.measure(bench, reference).to_json())
                readings[test.id] = Readings.from_json(stored)
        except (CondmisError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as e:
            crashed[test.id] = f"{type(e).__name__}: {e}"
        step()
    return Battery(readings, crashed, bench.families)
