"""The tables that ship: what calibrations found, as they wrote it. Data alone, so that every room can read it."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from condmis_interp.files import read_json

_FOLDER = Path(__file__).parent


@cache
def shipped(name: str) -> dict[str, Any]:
    """Returns a table that ships; empty, if there is none of this name. It is shared: do not change it.

    `reference-BASE` is the calibration of the rule on a base (or the drift between its seeds alone, where no known
    answers were judged there), `development-BASE` what was found on the seeds that its plan was made on.

    Example:
        >>> shipped("reference-personaworld")["rule_version"]
        4
        >>> shipped("reference-of-nothing")
        {}
    """
    path = _FOLDER / f"{name}.json"
    return read_json(path) if re.fullmatch(r"[a-z0-9-]+", name) and path.is_file() else {}


def references() -> dict[str, dict[str, Any]]:
    """Returns the summaries that ship, by base.

    Example:
        >>> "personaworld" in references()
        True
    """
    return {p.stem.removeprefix("reference-"): shipped(p.stem) for p in sorted(_FOLDER.glob("reference-*.json"))}


def told(table: Mapping[str, Any]) -> str:
    """Returns a summary in words.

    Example:
        >>> told({"base": "mine"})
        'mine: no known answers were judged, only the drift between seeds is known'
    """
    if "false_removed" not in table:
        return f"{table.get('base', 'this base')}: no known answers were judged, only the drift between seeds is known"
    lines = [
        f"{table['base']}: {table['organisms']} organisms of {len(table['families'])} families, "
        f"{len(table['seeds'])} seeds; margin {table['delta']:g}, rule version {table['rule_version']}"
    ]
    rows = {
        "false_removed": "hidden called removed",
        "false_removed_blind": "the same, trigger not given",
        "hidden_caught": "hidden caught",
        "hidden_caught_blind": "the same, trigger not given",
        "benign_certified": "benign certified removed",
        "benign_accused": "benign accused",
        "retrained_certified": "retrained certified removed",
    }
    for key, says in rows.items():
        r = table[key]
        share = "none" if r["share"] is None else f"{r['share']:.3f}"
        lines.append(f"  {says:30s}{share} [{r['low']:.3f}, {r['high']:.3f}]  {r['count']} of {r['n']}")
    return "\n".join(lines)
