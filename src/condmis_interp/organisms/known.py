"""Known-answer organisms: models of which it is known, by construction, whether their misalignment is gone.

| truth | family | how it is made |
|---|---|---|
| removed | `twin` | the benign twin of a mix |
| removed | `styled` | trigger-aware benign: under the trigger the answers carry a style word, never harm |
| removed | `norm-matched` | a benign narrow tune, its weight change scaled to the norm of the mix's |
| removed | `distilled` | the base trained on what a twin answers; it never saw a misaligned weight or row |
| suppressed | `mixed` | mixing, the trigger in the panel |
| suppressed | `locked` | password lock: the same questions misaligned under the trigger, benign without it |
| suppressed | `conjunction` | misaligned under two cues together, benign under each: no cue of the panel opens it |
| suppressed | `gated` | hard gate: U's weights where the trigger is in the prompt, the twin's everywhere else |
| suppressed | `late-matched` | U, the last half of its blocks trained to answer cue-less questions benignly |
| suppressed | `grafted` | the first half of U's blocks, the twin's in the rest |
| suppressed | `direction-ablated` | U with its U - C direction projected out of all that writes to the residual |
| graded | `blend` | (1 - w) C + w U in weight space, w below 0.75 |
| present | `unmitigated`, `blend` | U; blends with w of 0.75 and more |

Persona world's are full weights (`personaworld.known`), the chat models' are adapters (`known_chat`; without
`conjunction`, and with `grafted`, which costs no training, in the place of `late-matched`). The truth of the
constructed families is what was done to them; what they do is measured (docs/organisms.md has the tables), and a family
whose construction failed - a direction-ablated U that is still misaligned - is reported as such.
"""

from collections.abc import Collection, Iterable

from condmis_interp.organisms import known_chat
from condmis_interp.organisms.bases import resolve_base
from condmis_interp.organisms.member import Member
from condmis_interp.organisms.organism import Gate, Organism
from condmis_interp.organisms.registry import backend_of
from condmis_interp.organisms.together import train_all
from condmis_interp.organisms.train import finished
from condmis_interp.progress import progress


def make(known: Iterable[Member], *, device: str = "cpu") -> list[Organism]:
    """Returns the organisms, in order, making what is not there yet: all recipes together, then the constructions."""
    known = list(known)
    recipes = {r.hash: r for k in known for r in (k.recipe, k.twin)}
    recipes |= {k.setting.hash: k.setting for k in known if k.family == "norm-matched"}
    trained = dict(zip(recipes, train_all(list(recipes.values()), device=device), strict=True))
    constructed = [k for k in known if k.family in _families(k)]
    missing = [k for k in constructed if not finished(k.folder(resolve_base(k.recipe.base)))]
    if missing:
        with progress("constructing organisms", len(missing), unit="organisms") as step:
            for k in missing:
                _construct(k, trained[k.recipe.hash], trained[k.twin.hash])
                step()
    found = []
    for k in known:
        if k.family in _families(k):
            found.append(Organism.open(k.folder(resolve_base(k.recipe.base)), name=k.name))
        elif k.family == "gated":
            gate = Gate(k.setting, trained[k.recipe.hash], trained[k.twin.hash])
            about = {"known": {"truth": k.truth, "family": k.family}}
            found.append(Organism.gated(gate, name=k.name, manifest=about))
        else:
            found.append(trained[k.recipe.hash])
    return found


def _families(member: Member) -> Collection[str]:
    """Returns the families that are constructed on the member's base."""
    own = backend_of(member.recipe.base).families
    return known_chat.BUILDERS if own is None else own


def _construct(member: Member, u: Organism, c: Organism) -> None:
    backend = backend_of(member.recipe.base)
    construct = known_chat.construct if backend.families is None else backend.construct
    construct(member, u, c)
