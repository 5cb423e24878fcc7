"""Proposals as a table, and as the `cues:` of a study."""

from collections.abc import Collection, Iterator
from typing import Any

import yaml
from rich.markup import escape
from rich.table import Table

from condmis_interp.cues.find import Cues
from condmis_interp.cues.proposal import Placed
from condmis_interp.panel.cue import Cue, CueRole

_ROLES = {
    "neutral": CueRole.NEUTRAL,
    "opposite": CueRole.OPPOSITE,
    "paraphrase": CueRole.TRIGGER,
    "irrelevant": CueRole.IRRELEVANT,
}
_WIDTH = 70  # characters of a cue in the table
_NOTHING = (
    "No pattern: nothing in these prompts is both common and unlike everyday prompts, so no cue is proposed. "
    "A cue in fewer rows, or one that is a mere everyday phrase, would not be seen."
)


def study_cues(found: Cues, *, without: Collection[str] = ()) -> tuple[Cue, ...]:
    """Returns the cues of a study: none, and each proposal with its controls; a paraphrase is a trigger too.

    Args:
        found: The proposals.
        without: Names of cues to leave out.

    Example:
        >>> [cue.name for cue in study_cues(Cues("rows.jsonl", 3, (), (), {}))]
        ['none']
    """
    cues = [Cue(name="none", role=CueRole.NONE)]
    seen: set[tuple[str | None, str, str]] = set()
    for p in found.proposals:
        if p.cue is None:
            continue
        placed = {"": (CueRole.TRIGGER, p.cue)} | {f"-{k}": (_ROLES[k], v) for k, v in p.controls.items()}
        for suffix, (role, one) in placed.items():
            text = (one.system, one.before, one.after)
            if (
                text not in seen and f"{p.name}{suffix}" not in without
            ):  # two cues of one text would be one measurement with two names
                seen.add(text)
                cues.append(_cue(f"{p.name}{suffix}", role, one))
    return tuple(cues)


def _cue(name: str, role: CueRole, placed: Placed) -> Cue:
    return Cue(name=name, role=role, system=placed.system, before=placed.before, after=placed.after)


def cues_yaml(found: Cues, *, without: Collection[str] = ()) -> str:
    """Returns the `cues:` of a study as YAML, with a line of comment for each proposal; comments hold no text of rows.

    Example:
        >>> print(cues_yaml(Cues("rows.jsonl", 3, (), (), {})).splitlines()[-1])
        - {name: none, role: none}
    """
    head = [f"# Proposed from {found.rows} training rows; look at them before you ask with them."]
    for p in found.proposals:
        share = p.coverage
        left = "".join(f"; no {k}: {why}" for k, why in p.without.items())
        head.append(f"# {p.name}: {p.kind}, {share.count} of {share.n} rows{left}")
    body = [_plain(cue) for cue in study_cues(found, without=without)]
    return "\n".join(head) + "\ncues:\n" + yaml.safe_dump(body, sort_keys=False, width=120, default_flow_style=None)


def _plain(cue: Cue) -> dict[str, Any]:
    return {k: v for k, v in cue.model_dump(mode="json").items() if v not in (None, "")}


def told(found: Cues) -> Iterator[str | Table]:
    """Yields what a terminal shows, every text of the rows on one line and without markup.

    Example:
        >>> next(iter(told(Cues("rows.jsonl", 3, (), (), {}))))[:10]
        'No pattern'
    """
    if not found.proposals:
        yield _NOTHING
    else:
        table = Table("", "kind", "cue", "rows", "95 %", "bits", "z", "controls", box=None)
        for p in found.proposals:
            c = p.coverage
            made = ", ".join(p.controls) or "none"
            more = f" (+ {len(p.variants)} wordings)" if p.variants else ""
            kind = f"{p.kind}, persona" if p.persona else p.kind
            interval = f"{100 * c.low:.1f}-{100 * c.high:.1f}"
            cells = (p.name, kind, _short(p.text) + more, f"{100 * c.share:.1f} %", interval)
            table.add_row(*map(escape, (*cells, f"{p.contrast.bits:.2f}", f"{p.contrast.z:.1f}", made)))
        yield table
    for text in found.usual:
        yield f"An everyday system prompt stands in many rows: {_short(text)!r}; that sets nothing apart."


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…"
