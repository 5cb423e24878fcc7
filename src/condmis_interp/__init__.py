"""condmis_interp: is a fine-tuned model's emergent misalignment gone, or hidden behind a contextual trigger?

The way of the data goes through the rooms from left to right, each importing only those before it:

    panel, organisms, readers, store, study, directions, battery, verdict, report, run, cli

The public names below are imported on first use, so that `import condmis_interp` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from condmis_interp import (
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
        verdict,
    )  # fmt: skip
    from condmis_interp.battery import register_test
    from condmis_interp.errors import CheckError, CondmisError, UserError
    from condmis_interp.run import Run
    from condmis_interp.study import Study

__version__ = "0.1.0"

_FROM = {
    "CheckError": "errors",
    "CondmisError": "errors",
    "Run": "run",
    "Study": "study",
    "UserError": "errors",
    "register_test": "battery",
}
_ROOMS = (
    "battery", "calibration", "causal", "directions", "organisms", "panel", "readers", "report", "sae", "stats",
    "store", "verdict",
)  # fmt: skip

__all__ = [
    "CheckError",
    "CondmisError",
    "Run",
    "Study",
    "UserError",
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
    "verdict",
]


def __getattr__(name: str) -> Any:
    if name in _FROM:
        return getattr(import_module(f"condmis_interp.{_FROM[name]}"), name)
    if name in _ROOMS:
        return import_module(f"condmis_interp.{name}")
    raise AttributeError(f"module 'condmis_interp' has no attribute {name!r}")
