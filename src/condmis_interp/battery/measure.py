"""Measuring: every test on every organism of a bench, resumable; a test that crashes stops none of the others."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from condmis_interp.battery.benches.bench import Bench
from condmis_interp.battery.evidence import Evidence
from condmis_interp.battery.judging import Cast, judge, missing
from condmis_interp.battery.registry import Readings, Reference, Test
from condmis_interp.errors import CondmisError
from condmis_interp.stats import Drift
from condmis_interp.store import Pieces


@dataclass(frozen=True)
class Battery:
    """What a battery measured on a bench.

    Attributes:
        readings: By test id.
        crashed: Why a test gave nothing, by test id.
        families: Family of each question of the panel.
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
        drifts: Mapping[str, Drift],
        rng: np.random.Generator,
        draws: int = 1000,
        rows: np.ndarray | None = None,
    ) -> list[Evidence]:
        """Returns every test's evidence about one organism.

        Args:
            cast: Who plays what.
            tests: Which tests; one that was not measured or crashed gives void evidence that says so.
            delta: Margin.
            drifts: Drift by test id, in units of rho.
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

    def _sample(self, test: Test, rows: np.ndarray | None, labels: Sequence[str]) -> tuple[Readings, list[str]]:
        readings = self.readings[test.id]
        where = np.full(len(self.families), -1)
        where[readings.rows] = np.arange(len(readings.rows))
        columns = np.full(0, -1) if rows is None else where[rows]
        drawn = columns[columns >= 0]
        if len(np.unique(drawn)) < 4:  # all, or too few of a search's questions were drawn
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
