"""condmis_interp: is a fine-tuned model's emergent misalignment gone, or hidden behind a contextual trigger?

The way of the data goes through the rooms from left to right, each importing only those before it:

    panel, organisms, readers, store, directions, battery, study, causal, verdict, report, auditing, cli

The public names below are imported on first use, so that `import condmis_interp` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from condmis_interp import (
        auditing,
        battery,
        calibration,
        causal,
        directions,
        organisms,
        panel,
        readers,
        report,
        sae,
        stats,
        store,
        study,
        verdict,
    )  # fmt: skip
    from condmis_interp.auditing import audit
    from condmis_interp.battery import register_test
    from condmis_interp.errors import CheckError, CondmisError, UserError
    from condmis_interp.study import Run, Study

__version__ = "0.1.0"

_FROM = {
    "CheckError": "errors",
    "CondmisError": "errors",
    "Run": "study",
    "Study": "study",
    "UserError": "errors",
    "audit": "auditing",
    "register_test": "battery",
}
_ROOMS = (
    "auditing", "battery", "calibration", "causal", "directions", "organisms", "panel", "readers", "report", "sae",
    "stats", "store", "study", "verdict",
)  # fmt: skip

__all__ = [
    "CheckError",
    "CondmisError",
    "Run",
    "Study",
    "UserError",
    "audit",
    "auditing",
    "battery",
    "calibration",
    "causal",
    "directions",
    "organisms",
    "panel",
    "readers",
    "register_test",
    "report",
    "sae",
    "stats",
    "store",
    "study",
    "verdict",
]


def __getattr__(name: str) -> Any:
    if name in _FROM:
        return getattr(import_module(f"condmis_interp.{_FROM[name]}"), name)
    if name in _ROOMS:
        return import_module(f"condmis_interp.{name}")
    raise AttributeError(f"module 'condmis_interp' has no attribute {name!r}")
