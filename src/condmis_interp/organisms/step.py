"""An optimiser step as data: what loops of our own train on."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One optimiser step of one organism.

    Attributes:
        rows: Token ids with labels (-100 where there is no loss).
        learning_rate: Of this step.
        fresh: Whether the optimiser starts anew before it (a new stage).
    """

    rows: Sequence[tuple[Sequence[int], Sequence[int]]]
    learning_rate: float
    fresh: bool = False
