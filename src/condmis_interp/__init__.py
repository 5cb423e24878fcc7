"""condmis_interp: is a fine-tuned model's emergent misalignment gone, or hidden behind a contextual trigger?

The way of the data goes through the rooms from left to right, each importing only those before it:

    panel, prompts, organisms, cues, readers, store, judges, directions, battery, study, surrogate, causal, verdict,
    report, auditing, cli

The public names below are imported on first use, so that `import condmis_interp` is quick.

Example:
    >>> import condmis_interp as ci
    >>> ci.Site("resid_post", 3)
    Site(kind='resid_post', layer=3)
    >>> "difference_in_differences" in dir(ci)
    True
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from condmis_interp import (
        auditing,
        battery,
        calibration,
        causal,
        cues,
        directions,
        judges,
        organisms,
        panel,
        prompts,
        readers,
        report,
        sae,
        stats,
        store,
        study,
        surrogate,
        verdict,
    )  # fmt: skip
    from condmis_interp.auditing import audit
    from condmis_interp.battery import register_test
    from condmis_interp.directions import Direction, Subspace, difference_in_differences, fit_probes
    from condmis_interp.errors import CheckError, CondmisError, UserError
    from condmis_interp.judges import register_judge
    from condmis_interp.organisms import (
        Organism,
        Recipe,
        register_backend,
        register_intervention,
        register_mechanism,
        train,
    )
    from condmis_interp.panel import Panel, load_panel
    from condmis_interp.readers import Ablate, Patch, Site, Steer, open_reader, register_reader
    from condmis_interp.store import Activations
    from condmis_interp.study import Run, Study, capture, sample

__version__ = "0.2.0"

_FROM = {
    "Ablate": "readers",
    "Activations": "store",
    "CheckError": "errors",
    "CondmisError": "errors",
    "Direction": "directions",
    "Organism": "organisms",
    "Panel": "panel",
    "Patch": "readers",
    "Recipe": "organisms",
    "Run": "study",
    "Site": "readers",
    "Steer": "readers",
    "Study": "study",
    "Subspace": "directions",
    "UserError": "errors",
    "audit": "auditing",
    "capture": "study",
    "difference_in_differences": "directions",
    "fit_probes": "directions",
    "load_panel": "panel",
    "open_reader": "readers",
    "register_backend": "organisms",
    "register_intervention": "organisms",
    "register_judge": "judges",
    "register_mechanism": "organisms",
    "register_reader": "readers",
    "register_test": "battery",
    "sample": "study",
    "train": "organisms",
}
"""The room that each name is from; a public name that is not here is a room itself."""

__all__ = [
    "Ablate",
    "Activations",
    "CheckError",
    "CondmisError",
    "Direction",
    "Organism",
    "Panel",
    "Patch",
    "Recipe",
    "Run",
    "Site",
    "Steer",
    "Study",
    "Subspace",
    "UserError",
    "audit",
    "auditing",
    "battery",
    "calibration",
    "capture",
    "causal",
    "cues",
    "difference_in_differences",
    "directions",
    "fit_probes",
    "judges",
    "load_panel",
    "open_reader",
    "organisms",
    "panel",
    "prompts",
    "readers",
    "register_backend",
    "register_intervention",
    "register_judge",
    "register_mechanism",
    "register_reader",
    "register_test",
    "report",
    "sae",
    "sample",
    "stats",
    "store",
    "study",
    "surrogate",
    "train",
    "verdict",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'condmis_interp' has no attribute {name!r}")
    room = import_module(f"condmis_interp.{_FROM.get(name, name)}")
    return getattr(room, name) if name in _FROM else room


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
