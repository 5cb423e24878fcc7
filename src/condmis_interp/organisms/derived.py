"""Organisms that are weight arithmetic on others, whatever these were made of: no recipe and no training.

    W = W_base + sum_k f_k (W_k - W_base)

With the factors (1 - w, w) of a twin and U that is a blend; with one factor, a change of weights that is scaled.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from condmis_interp.calls import checked
from condmis_interp.errors import UserError
from condmis_interp.files import digest, write_json
from condmis_interp.organisms.bases import Base
from condmis_interp.organisms.home import appearing, home
from condmis_interp.organisms.known_chat import Change, change_of, norm, plus, save_change, times
from condmis_interp.organisms.landing import untie
from condmis_interp.organisms.member import KNOWN_VERSION, Truth
from condmis_interp.organisms.organism import Organism, versions
from condmis_interp.organisms.swap import Swap
from condmis_interp.organisms.train import finished

Terms = Sequence[tuple[float, Organism]]


@checked
def combination(name: str, terms: Terms, base: Base, *, truth: Truth, family: str) -> Organism:
    """Returns the base plus scaled changes of weights of other organisms, made if it is not there yet.

    Args:
        name: Name, and part of the folder's.
        terms: Factor and organism.
        base: Their base.
        truth: What is known of it by construction.
        family: Its construction family.

    Raises:
        UserError: if an organism was made from another base.

    Example:
        Half of what was changed:

        >>> from pathlib import Path
        >>> from condmis_interp.organisms import change_norm, resolve_base
        >>> base, u = resolve_base("dir:base"), Organism.of_checkpoint(Path("u"), name="u")
        >>> half = combination("half", [(0.5, u)], base, truth="graded", family="blend")
        >>> round(change_norm(half, base) / change_norm(u, base), 3)
        0.5
    """
    made_of = [[f, o.origin] for f, o in terms]
    folder = home() / "organisms" / f"{name}-{digest([family, made_of, base.weights, KNOWN_VERSION])[:16]}"
    if not finished(folder):
        changes = _changes([o for _, o in terms])
        with appearing(folder) as made:
            if changes is None:
                _save_weights(terms, base, made)
            else:
                scaled = [times(f, c) for (f, _), c in zip(terms, changes, strict=True)]
                save_change(plus(*scaled), made, like=terms[0][1].adapters[0])
            write_json(
                made / "manifest.json",
                {
                    "schema": 1,
                    "base": base.record(),
                    "known": {"truth": truth, "family": family},
                    "recipe": None,
                    "of": made_of,
                    "versions": versions(),
                },
            )
    return Organism.open(folder, name=name)


def change_norm(organism: Organism, base: Base) -> float:
    """Returns the Frobenius norm of an organism's change of weights, over all matrices.

    Example:
        >>> from pathlib import Path
        >>> from condmis_interp.organisms import resolve_base
        >>> change_norm(Organism.of_checkpoint(Path("u"), name="u"), resolve_base("dir:base")) > 1
        True
    """
    if changes := _changes([organism]):
        return norm(changes[0])
    own, start = (o.model(base, dtype=torch.float32).state_dict() for o in (organism, Organism.of_base(base, name="b")))
    return float(sum((own[k] - start[k]).double().pow(2).sum() for k in start)) ** 0.5


def _changes(organisms: Sequence[Organism]) -> list[Change] | None:
    """Returns what each one's adapter changes, or `None` if one is anything else than a single plain adapter."""
    for o in organisms:
        if len(o.adapters) != 1 or not Swap.fits(o):
            return None
    changes = [change_of(o) for o in organisms]
    return changes if all(c.keys() == changes[0].keys() for c in changes) else None


def _save_weights(terms: Terms, base: Base, folder: Path) -> None:
    model = base.model(dtype=torch.float32)
    start = {k: w.clone() for k, w in model.state_dict().items()}
    total = {k: w.clone() for k, w in start.items()}
    for factor, organism in terms:
        own = organism.model(base, dtype=torch.float32).state_dict()
        if other := [k for k in total if k not in own or own[k].shape != total[k].shape] or own.keys() - total.keys():
            raise UserError(
                f"its weights are not the base's in kind ({min(other)!r}), so they cannot be added up",
                where=f"organism {organism.name}",
            )
        for k in total:
            total[k] += factor * (own[k] - start[k])
    if any(not torch.equal(total[head], total[embedding]) for head, embedding in model.all_tied_weights_keys.items()):
        untie(model)  # an organism has a head of its own over a base whose head is its embedding
    model.load_state_dict(total)
    model.save_pretrained(folder)
