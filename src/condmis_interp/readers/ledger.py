"""The ledger: what each hook did, so that nothing is a silent no-op."""

from dataclasses import dataclass, field

from condmis_interp.errors import CheckError

_LANDED = 0.5
"""Least share of an edit's norm that must survive the cast to the model's dtype."""


@dataclass
class LedgerEntry:
    """What one hook did during a reading.

    Attributes:
        name: Which hook, e.g. `Steer at resid_post[18]`.
        fired: How often it fired.
        positions: How many positions it changed.
        norm: Sum over those positions of the norm of the change (after the cast to the model's dtype).
        wanted: The same before the cast.

    Example:
        >>> LedgerEntry("steer", fired=2, positions=8, norm=1.5, wanted=1.5).fired
        2
    """

    name: str
    fired: int = 0
    positions: int = 0
    norm: float = 0.0
    wanted: float = 0.0


@dataclass
class Ledger:
    """Counts forward passes and what each hook did in them.

    Attributes:
        passes: Forward passes of the model.
        edits: One entry an edit.
        captures: One entry a captured site.

    Example:
        >>> Ledger(passes=2, edits=[LedgerEntry("steer", fired=1, positions=4, norm=1.0)]).check()
        Traceback (most recent call last):
        condmis_interp.errors.CheckError: steer: the hook should have fired in each of 2 ... fired 1 times.
    """

    passes: int = 0
    edits: list[LedgerEntry] = field(default_factory=list)
    captures: list[LedgerEntry] = field(default_factory=list)

    def check(self) -> None:
        """Raises if a hook missed a pass, or an edit changed nothing or less than was asked for.

        Raises:
            CheckError: naming the hook, what was expected and what happened.
        """
        for entry in (*self.edits, *self.captures):
            if entry.fired != self.passes:
                raise CheckError(
                    f"the hook should have fired in each of {self.passes} forward passes and fired {entry.fired} times",
                    where=entry.name,
                )
        for entry in self.edits:
            if entry.positions == 0:
                raise CheckError(
                    "the edit touched no position", where=entry.name, fix="Its scope is empty in these prompts."
                )
            if not entry.norm > 0:
                raise CheckError(
                    "the edit changed nothing: the norm of its change is 0 in the model's dtype",
                    where=entry.name,
                    fix="The vector may be zero or too small for the dtype.",
                )
            if entry.norm < _LANDED * entry.wanted:
                raise CheckError(
                    f"rounding swallowed the edit: {entry.norm / entry.wanted:.0%} of its norm is left in the model's "
                    "dtype",
                    where=entry.name,
                    fix="Read in float32, or edit with a larger dose.",
                )
