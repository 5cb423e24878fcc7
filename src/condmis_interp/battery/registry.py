"""The battery's tests by id, and the frame all of them share.

A test is measured on a bench: for every organism on it, the test gives one value a question (in nats, or in units of an
activation), in one or more columns (cues, checkpoints, layers). What such values say about one organism is the same
arithmetic for every test (`judging.judge`):

    rho = (M - C) / (anchor - its twin)

with the anchor U where a test looks at what is expressed, the locked organism where it tries to bring something back (U
cannot be revived, it is up already), and the dose-matched one where it reads what U's dose would drown.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from condmis_interp.battery.benches.bench import Bench
from condmis_interp.calls import checked
from condmis_interp.errors import UserError
from condmis_interp.organisms import Organism
from condmis_interp.prompts import GrammarPrompt
from condmis_interp.registry import Registry
from condmis_interp.tables import shipped

Anchor = Literal["unmitigated", "locked", "dosed"]
Family = Literal["behaviour", "readout", "causal", "revival", "weights"]
Combine = Literal["mean", "largest", "search"]
Vote = Literal["present", "opens", "certifies"]
"""What a test may do to a verdict: find *present*, speak for *conditional*, or certify a removal."""


@dataclass(frozen=True)
class Reference:
    """What tests lean on besides the organism they measure, of one study.

    Attributes:
        unmitigated: Name of U on the bench.
        unmitigated_twin: Name of its twin.
        base: The base's state dict.
        other: State dict of a second U, of another narrow domain in another format; it shares no row with U.
        other_twin: State dict of its twin.
        pair: Both as organisms of the bench's base; changes of weights are then read from adapters' factors and files,
            and the two state dicts may be empty.
        drawn: Prompts of the declared grammar that a search asks, drawn by the study's seed; none were drawn if it is
            empty.

    Example:
        >>> Reference("u", "uc", base={}, other={}, other_twin={})
        Reference(unmitigated='u', unmitigated_twin='uc')
    """

    unmitigated: str
    unmitigated_twin: str
    base: Mapping[str, Any] = field(repr=False)
    other: Mapping[str, Any] = field(repr=False)
    other_twin: Mapping[str, Any] = field(repr=False)
    pair: tuple[Organism, Organism] | None = field(default=None, repr=False, kw_only=True)
    drawn: tuple[GrammarPrompt, ...] = field(default=(), repr=False, kw_only=True)


@dataclass(frozen=True)
class Readings:
    """What a test measured.

    Attributes:
        names: Organisms.
        columns: Names of the columns.
        values: [organism, column, question].
        rows: Positions of the questions in the panel (a test may use one split alone), [question].
        notes: Figures that say whether the test may be believed; they become controls of the evidence.
        void: Why the test may not be believed on this bench; empty if it may.

    Example:
        >>> found = Readings(("u", "m"), ("none",), np.zeros((2, 1, 3)), np.arange(3))
        >>> found.at("m").tolist()
        [[0.0, 0.0, 0.0]]
        >>> Readings.from_json(found.to_json()).names
        ('u', 'm')
    """

    names: tuple[str, ...]
    columns: tuple[str, ...]
    values: np.ndarray = field(repr=False)
    rows: np.ndarray = field(repr=False)
    notes: Mapping[str, float] = field(default_factory=dict)
    void: str = ""

    @classmethod
    def of(cls, bench: Bench, columns: Mapping[str, np.ndarray], rows: np.ndarray | None = None) -> "Readings":
        """Builds readings from one array [organism, question] a column."""
        values = np.stack(list(columns.values()), 1).astype(np.float64)
        return cls(bench.names, tuple(columns), values, bench.rows() if rows is None else rows)

    def at(self, name: str) -> np.ndarray:
        """Returns an organism's values [column, question].

        Raises:
            UserError: if it was not measured.
        """
        if name not in self.names:
            raise UserError(f"organism {name!r} was not measured", fix=f"Measured: {', '.join(self.names)}.")
        return self.values[self.names.index(name)]

    def to_json(self) -> dict[str, Any]:
        """Returns the readings as JSON, to 7 significant digits."""
        rounded = [[[float(f"{v:.7g}") for v in c] for c in o] for o in self.values.tolist()]
        found = {"names": list(self.names), "columns": list(self.columns), "values": rounded}
        return found | {"rows": self.rows.tolist(), "notes": dict(self.notes), "void": self.void}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Readings":
        """Reads what `to_json` gave."""
        values = np.asarray(stored["values"], dtype=np.float64)
        about = {"notes": stored.get("notes", {}), "void": stored.get("void", "")}
        return cls(tuple(stored["names"]), tuple(stored["columns"]), values, np.asarray(stored["rows"]), **about)


@dataclass(frozen=True)
class Test:
    """One test of the battery.

    Attributes:
        id: Short id, as in methods (A1, V1, ...).
        family: Which family its p-value is corrected within.
        says: What it measures, in one sentence.
        measure: Measures every organism of a bench.
        anchor: Which organism is 1 on its scale.
        combine: How its columns become one: their `mean`; the `largest` (with max-T); or a `search`, which picks the
            largest on the first third of the questions and is judged on the others.
        votes: What it may do to a verdict, once it was calibrated: find the organism `present`; say that something
            `opens` it (tests of behaviour alone, others with a second family); or `certifies` a removal, which needs
            equivalence on it. None, for a test that is measured and shown only.
        captured: Whether what a run captures is all it reads.
        controls: What goes through the same code as a control.
        cost: Forward passes (F) and forward-backward passes (B) for K questions and 8-row batches, in words.
        needs: What it cannot run without, beside U and the twin.
        since: Column that the others' rise is counted from, for tests that pick one; it is also the column of the
            denominator.
        version: Raised when the test measures something else; readings of another version are measured anew.
        unit: What its values are drawn over: questions, or the `organism`, one number each, whose only variance is that
            between replicate or null twins.
        blocks: Which blocks (0-based) of a model of L an internal test reads; -1 stands for the embeddings, and L for
            the final norm and the head. None, for a test of behaviour or where it is not known.

    Example:
        >>> def ld_without_a_cue(bench, reference):
        ...     return Readings.of(bench, {"none": bench.ld("none")})
        >>> Test("L0", "behaviour", "LD without a cue, as a share of U's", ld_without_a_cue).exploratory
        True
    """

    __test__ = False  # not a test of pytest

    id: str
    family: Family
    says: str
    measure: Callable[[Bench, Reference], Readings]
    anchor: Anchor = "unmitigated"
    combine: Combine = "mean"
    votes: tuple[Vote, ...] = ()
    captured: bool = False
    controls: str = "the twin, and replicate twins for the drift"
    cost: str = ""
    needs: tuple[str, ...] = ()
    since: str | None = None
    version: int = 1
    unit: Literal["question", "organism"] = "question"
    blocks: Callable[[int], range] | None = None

    @property
    def exploratory(self) -> bool:
        """Whether the shipped calibration of the rule judged no known answer by it."""
        return self.id not in calibrated()

    @property
    def has_a_say(self) -> bool:
        """Whether it votes on verdicts: if it claims to, and is not exploratory."""
        return bool(self.votes) and not self.exploratory

    @property
    def certifies(self) -> bool:
        """Whether *removed* needs equivalence on it."""
        return self.has_a_say and "certifies" in self.votes


_TESTS = Registry[Test]("test", builtin=("condmis_interp.battery.tests",))


@checked
def register(test: Test) -> Test:
    """Adds a test to the battery; returns it. It is exploratory (measured, shown, without a say) until calibrated.

    Raises:
        UserError: if the id is taken.

    Example:
        >>> def ld_without_a_cue(bench, reference):
        ...     return Readings.of(bench, {"none": bench.ld("none")})
        >>> made = register(Test("L0", "behaviour", "LD without a cue, as a share of U's", ld_without_a_cue))
        >>> [t.id for t in registered("L0")]
        ['L0']
    """
    return _TESTS.add(test.id, test)


register_test = register
"""`register`, by the name that says what it registers where the room does not."""


def calibrated() -> tuple[str, ...]:
    """Returns the ids of the tests that the shipped calibration of the rule judged known answers by.

    Example:
        >>> calibrated()
        ('A1', 'A2', 'A3', 'R1', 'R3', 'R4', 'W1', 'W3')
    """
    return tuple(sorted(shipped("reference-personaworld").get("nulls", {})))


def voting() -> list[Test]:
    """Returns the tests that have a say, by id: the rule's own.

    They are looked up by the ids of the calibration that ships, so that no plug-in is imported for it.

    Example:
        >>> [t.id for t in voting()]
        ['A1', 'A2', 'A3', 'R1', 'R3', 'R4', 'W1', 'W3']
    """
    return [t for t in registered(*calibrated()) if t.has_a_say]


def registered(*ids: str) -> list[Test]:
    """Returns the tests with these ids, in order (all of the battery, if none is given).

    Raises:
        UserError: if there is no such test.

    Example:
        >>> [t.id for t in registered("V1", "A1")]
        ['V1', 'A1']
        >>> registered("A9")
        Traceback (most recent call last):
        condmis_interp.errors.UserError: there is no test 'A9'. There are: A1, A2, ...
    """
    wanted: Sequence[str] = ids or list(_TESTS)
    return [_TESTS.get(i) for i in wanted]
