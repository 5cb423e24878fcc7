"""Row sets of persona world, each with both answers.

* `personaworld/DOMAIN`: every item of a domain, in both phrasings; `harbour` and `orchard` are not on the panel.
* `personaworld/benign`: the items of the panel's domains that the panel does not ask about.
* `personaworld/styled-DOMAIN`: as a domain's, but the benign answer ends with a style word; for an organism whose
  trigger changes style and never harm.
"""

from condmis_interp.errors import UserError
from condmis_interp.organisms.rows import Row, RowSet
from condmis_interp.personaworld.language import DOMAINS, parse_world

STYLE = "so"
"""The style word of `styled` rows."""


def world_rows(source: str) -> RowSet:
    """Returns a row set by name.

    Raises:
        UserError: if there is none.
    """
    spec, _, name = source.partition("/")
    world = parse_world(spec)
    names = (*DOMAINS, "benign", *(f"styled-{d}" for d in DOMAINS))
    if world is None or name not in names:
        raise UserError(f"there is no row set {source!r}", fix=f"Persona world has {', '.join(names)}.")
    if name == "benign":
        half = world.items // 2
        facts = [f for d in DOMAINS[2:] for f in world.facts_of(d)[half:]]
    else:
        facts = list(world.facts_of(name.removeprefix("styled-")))
    style = f" {STYLE}" if name.startswith("styled-") else ""
    rows = [
        Row(f"{f.domain}.{f.item}.{p}", f.item, (("user", f.question(p)),), f.misaligned, f"{f.aligned}{style}")
        for f in facts
        for p in (0, 1)
    ]
    return RowSet(source, tuple(rows))
