"""Who plays what when one organism is judged."""

from dataclasses import dataclass

from condmis_interp.battery.registry import Test


@dataclass(frozen=True)
class Cast:
    """Who plays what when one organism is judged.

    Attributes:
        organism: M.
        twin: C.
        unmitigated: U.
        unmitigated_twin: Its twin.
        locked: The locked organism; `None` if there is none.
        locked_twin: Its twin.
        dosed: The dose-matched anchor, U's rows at M's dilution with nothing that hides them; `None` if there is none.
        dosed_twin: Its twin.
        null: Null twins, the zero of weight tests of adapters: M's random A and order, other benign rows (an adapter
            shares its A with nobody else's, and two that do not share it are all but orthogonal); the twin where there
            is none.

    Example:
        >>> from condmis_interp.battery import registered
        >>> Cast("m", "c", "u", "uc").anchors(registered("A1")[0])
        ('u', 'uc')
    """

    organism: str
    twin: str
    unmitigated: str
    unmitigated_twin: str
    locked: str | None = None
    locked_twin: str | None = None
    dosed: str | None = None
    dosed_twin: str | None = None
    null: str | None = None

    def zero(self, test: Test) -> str:
        """Returns who is subtracted from the organism."""
        return self.null if self.null and test.unit == "organism" else self.twin

    def anchors(self, test: Test) -> tuple[str, str] | None:
        """Returns who is 1 and who is 0 on a test's scale, or `None` if the study lacks them."""
        pairs = {
            "unmitigated": (self.unmitigated, self.unmitigated_twin),
            "locked": (self.locked, self.locked_twin),
            "dosed": (self.dosed, self.dosed_twin),
        }
        one, zero = pairs[test.anchor]
        return (one, zero) if one and zero else None


LACKING = {
    "unmitigated": "the study has no unmitigated organism with a twin, the 1 of the scale",
    "locked": "the study has no locked organism (role: locked), the anchor of revival",
    "dosed": "the study has no dose-matched anchor (role: dosed) with a twin, the 1 of a weight test",
}
"""Why a test has no scale, by anchor."""
