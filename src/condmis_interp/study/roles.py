"""Roles: what an organism is for in a study, and who is the zero of whose scale.

| role | letter | who it is |
|---|---|---|
| `base` | | the chat model before any narrow training |
| `unmitigated` | U | the 1 of the scale |
| `mitigated` | M | under test |
| `twin` | C | another organism's recipe with benign answers: the 0 of its scale |
| `locked` | S | known to hide it; the anchor of revival tests |
| `graded` | D | a known part of it is left |
| `second-domain` | O | a second unmitigated one, of another narrow domain, which W1 leans on; it is asked nothing |

Study files may write the letters, in either case; everything else has the words.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, Protocol, TypeVar, get_args

from pydantic import BeforeValidator

RoleName = Literal["base", "unmitigated", "mitigated", "twin", "locked", "graded", "second-domain"]
ROLES: tuple[RoleName, ...] = get_args(RoleName)
LETTERS: dict[str, RoleName] = {
    "U": "unmitigated",
    "M": "mitigated",
    "C": "twin",
    "S": "locked",
    "D": "graded",
    "O": "second-domain",
}
CONTROL = "assay-"
"""What the names of control organisms begin with: the word of version 0.1.0, so that what was made then is found."""
ONE_OF: dict[RoleName, str] = {
    "unmitigated": "the 1 of the scale",
    "locked": "the anchor of revival",
    "second-domain": "W1's contrast",
}
"""Roles that a study has once at most, and what for."""


def role_named(given: object) -> object:
    """Returns a role's word for its letter or word in any case; anything else as it is.

    >>> role_named("m"), role_named("Second-Domain")
    ('mitigated', 'second-domain')
    """
    if not isinstance(given, str):
        return given
    return LETTERS.get(given.upper(), given.lower() if given.lower() in ROLES else given)


Role = Annotated[RoleName, BeforeValidator(role_named)]
"""A role in a study file."""


class Playing(Protocol):
    """An organism of a study, as far as its role goes."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def role(self) -> RoleName:
        """Its role."""
        ...

    @property
    def twin_of(self) -> str | None:
        """Whose twin it is."""
        ...


O = TypeVar("O", bound=Playing)  # noqa: E741 - an organism


def twin_of(organisms: Sequence[O], name: str) -> O | None:
    """Returns the twin of an organism, if it is there."""
    return next((o for o in organisms if o.twin_of == name), None)


def zero_of(organisms: Sequence[Playing], name: str) -> str | None:
    """Returns who is 0 on an organism's scale: its own twin, or another's for an anchor without one.

    The unmitigated organism falls back on the twin of the first mitigated one that has one, a locked or graded one on
    the zero of the unmitigated.
    """
    if own := twin_of(organisms, name):
        return own.name
    role = next(o.role for o in organisms if o.name == name)
    if role == "unmitigated":
        tested = (o for o in organisms if o.role == "mitigated")
        return next((c.name for m in tested if (c := twin_of(organisms, m.name))), None)
    unmitigated = next((o.name for o in organisms if o.role == "unmitigated"), None)
    return zero_of(organisms, unmitigated) if role in ("locked", "graded") and unmitigated else None


def asked(organisms: Sequence[O]) -> tuple[O, ...]:
    """Returns who is asked the panel: all but a second domain's and their twins, of which only the weights count."""
    others = {o.name for o in organisms if o.role == "second-domain"}
    return tuple(o for o in organisms if o.name not in others and o.twin_of not in others)
