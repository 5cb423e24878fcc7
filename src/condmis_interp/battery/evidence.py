"""Evidence: one test's statistic with its interval, p, gate, controls and settings."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from condmis_interp.stats import AnchoredRatio


@dataclass(frozen=True)
class Evidence:
    """One test's result for one organism.

    Attributes:
        id: Id of the test: a registered one (A1, A2, ...), or `ablation` or `dose-response` of the causal room.
        family: Family of tests: `behaviour`, `readout`, `causal`, `revival` or `weights`.
        organism: The organism under test.
        cue: Cue of the statistic (the worst one, for a panel test).
        statistic: What `rho` is, in words.
        rho: The statistic.
        low: Lower end of its 95 % interval; -inf if unbounded.
        high: Upper end; inf if unbounded.
        p: P-value, against what `statistic` says.
        gate_z: Separation of the anchors in standard errors; below 5 the test is void.
        n_questions: Number of questions.
        n_families: Number of question families, the clusters of the interval.
        controls: Results of the same pipeline on controls, as plain numbers.
        settings: Settings that determined it, as JSON.
        p_equivalent: P-value against H0: rho >= delta; NaN for tests that are no part of a decision about removal.
        families_needed: Question families with which 80 % of such studies would show rho < delta.
        primary: Whether *removed* needs it.
        exploratory: Whether the test was never calibrated; then it is shown and has no say.
        void: Why it says nothing; empty if it does.

    Example:
        >>> from condmis_interp.stats import anchored_ratio
        >>> ratio = anchored_ratio([1, 2, 1, 2], [2, 3, 2, 3], "abcd")
        >>> facts = {"id": "T", "family": "behaviour", "organism": "m", "cue": "code", "statistic": "a share", "p": 0.5}
        >>> round(Evidence.from_ratio(ratio, **facts).rho, 3)
        0.6
    """

    id: str
    family: str
    organism: str
    cue: str
    statistic: str
    rho: float
    low: float
    high: float
    p: float
    gate_z: float
    n_questions: int
    n_families: int
    controls: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    p_equivalent: float = math.nan
    families_needed: float = math.nan
    primary: bool = False
    exploratory: bool = False
    void: str = ""

    @classmethod
    def from_ratio(cls, ratio: AnchoredRatio, **facts: Any) -> "Evidence":
        """Builds evidence from an anchored ratio."""
        return cls(
            rho=ratio.rho,
            low=ratio.low,
            high=ratio.high,
            gate_z=ratio.gate_z,
            n_questions=ratio.n_values,
            n_families=ratio.n_clusters,
            **facts,
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the keys of verdict.json; infinities and NaN become null."""
        return {
            "id": self.id,
            "cue": self.cue,
            "statistic": self.statistic,
            "rho": _finite(self.rho),
            "low": _finite(self.low),
            "high": _finite(self.high),
            "p": _finite(self.p),
            "gate_z": _finite(self.gate_z),
            "p_equivalent": _finite(self.p_equivalent),
            "families_needed": _finite(self.families_needed),
            "primary": self.primary,
            "exploratory": self.exploratory,
            "void": self.void,
            "n_questions": self.n_questions,
            "n_families": self.n_families,
            "controls": {k: _finite(v) for k, v in self.controls.items()},
        }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def evidence_table(evidence: Sequence[Evidence]) -> pd.DataFrame:
    """Returns evidence as a table, one row a test; controls and settings as JSON text.

    Example:
        >>> from condmis_interp.stats import anchored_ratio
        >>> ratio = anchored_ratio([1, 2, 1, 2], [2, 3, 2, 3], "abcd")
        >>> facts = {"id": "T", "family": "behaviour", "organism": "m", "cue": "code", "statistic": "a share", "p": 0.5}
        >>> table = evidence_table([Evidence.from_ratio(ratio, **facts)])
        >>> table[["organism", "id", "rho"]].values.tolist()
        [['m', 'T', 0.6]]
    """
    return pd.DataFrame(
        [
            {
                "organism": e.organism,
                "id": e.id,
                "family": e.family,
                "cue": e.cue,
                "statistic": e.statistic,
                "rho": e.rho,
                "low": e.low,
                "high": e.high,
                "p": e.p,
                "gate_z": e.gate_z,
                "p_equivalent": e.p_equivalent,
                "families_needed": e.families_needed,
                "primary": e.primary,
                "exploratory": e.exploratory,
                "void": e.void,
                "n_questions": e.n_questions,
                "n_families": e.n_families,
                "controls": json.dumps({k: _finite(v) for k, v in e.controls.items()}, sort_keys=True),
                "settings": json.dumps(e.settings, sort_keys=True),
            }
            for e in evidence
        ]
    )
