"""The tables that ship: what calibrations found, as they wrote it. Data alone, so that every room can read it."""

import re
from functools import cache
from pathlib import Path
from typing import Any

from condmis_interp.files import read_json

_FOLDER = Path(__file__).parent


@cache
def shipped(name: str) -> dict[str, Any]:
    """Returns a table that ships; empty, if there is none of this name. It is shared: do not change it.

    `reference` is the calibration of the rule on persona world, `development` what was found on the seeds that the
    rule was chosen on, and `reference-BASE` the drift between seeds of another base.

    Example:
        >>> shipped("reference")["rule_version"]
        3
        >>> shipped("reference-of-nothing")
        {}
    """
    path = _FOLDER / f"{name}.json"
    return read_json(path) if re.fullmatch(r"[a-z0-9-]+", name) and path.is_file() else {}
