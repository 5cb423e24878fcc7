"""Control directions that go through the same pipeline as the direction they control.

Isotropic random vectors are a weak control: residual streams are anisotropic, and most of an isotropic vector lies
where nothing ever varies. A covariance-matched one is v = Sigma^{1/2} z with z ~ N(0, I), drawn as v = X^T g with g ~
N(0, I_n) over the rows of the centred activations X [n, width], which has covariance X^T X without ever forming it. X
is centred within each cell (organism x cue), so that the controls follow how questions differ and hold none of the
difference under test.

A random difference is h(x) - h(y) of two questions of one cell, at random: a vector that occurs in the model, is as
large as questions make it, and has nothing to do with the contrast under test.
"""

import torch

from condmis_interp.calls import checked
from condmis_interp.errors import UserError
from condmis_interp.panel.panel import Split
from condmis_interp.store import Activations


@checked
def covariance_matched(
    acts: Activations,
    *,
    organisms: tuple[str, ...],
    cues: tuple[str, ...],
    layer: int,
    position: str,
    count: int,
    generator: torch.Generator,
    splits: tuple[Split, ...] = ("A",),
) -> torch.Tensor:
    """Returns `count` unit vectors [count, width] matched to the within-cell covariance.

    Args:
        acts: The run's activations.
        organisms: Organisms whose cells are pooled.
        cues: Cues whose cells are pooled.
        layer: 0-based layer.
        position: `last_template` or `answer_mean`.
        count: How many.
        generator: Source of randomness.
        splits: Splits the covariance is taken from.

    Raises:
        UserError: if the cells hold fewer than two questions.

    Example:
        Rows that vary in their first dimension alone give controls that lie along it:

        >>> from types import SimpleNamespace
        >>> def at(organism, cue, *splits, layer, position): return torch.tensor([[1.0, 5.0], [3.0, 5.0], [4.0, 5.0]])
        >>> own = {"layer": 0, "position": "answer_mean", "generator": torch.Generator().manual_seed(0)}
        >>> v = covariance_matched(SimpleNamespace(at=at), organisms=("M", "C"), cues=("none",), count=2, **own)
        >>> v.abs()
        tensor([[1., 0.],
                [1., 0.]])
    """
    _check_count(count)
    rows = []
    for organism in organisms:
        for cue in cues:
            h = acts.at(organism, cue, *splits, layer=layer, position=position).double()
            if len(h) < 2:
                raise UserError(f"{len(h)} question in split(s) {splits} has no covariance", where=f"{organism}, {cue}")
            rows.append(h - h.mean(0))
    x = torch.cat(rows)
    v = torch.randn(count, len(x), generator=generator, dtype=torch.float64) @ x
    return (v / v.norm(dim=1, keepdim=True)).float()


@checked
def random_differences(
    acts: Activations,
    *,
    organisms: tuple[str, ...],
    cues: tuple[str, ...],
    layer: int,
    position: str,
    count: int,
    generator: torch.Generator,
    splits: tuple[Split, ...] = ("A",),
) -> torch.Tensor:
    """Returns `count` unit vectors [count, width], each the difference of two random questions of one random cell.

    Args:
        acts: The run's activations.
        organisms: Organisms whose cells are drawn from.
        cues: Cues whose cells are drawn from.
        layer: 0-based layer.
        position: `last_template` or `answer_mean`.
        count: How many.
        generator: Source of randomness.
        splits: Splits the questions are from.

    Raises:
        UserError: if a cell holds fewer than two questions, or its questions do not differ.

    Example:
        >>> from types import SimpleNamespace
        >>> def at(organism, cue, *splits, layer, position): return torch.tensor([[1.0, 5.0], [3.0, 5.0], [4.0, 5.0]])
        >>> own = {"layer": 0, "position": "answer_mean", "generator": torch.Generator().manual_seed(0)}
        >>> v = random_differences(SimpleNamespace(at=at), organisms=("M", "C"), cues=("none",), count=2, **own)
        >>> v.abs()
        tensor([[1., 0.],
                [1., 0.]])
    """
    _check_count(count)
    cells = [acts.at(o, c, *splits, layer=layer, position=position).double() for o in organisms for c in cues]
    if any(len(h) < 2 or not bool((h != h[0]).any()) for h in cells):
        raise UserError(f"a cell has fewer than two different questions in split(s) {splits}")
    out: list[torch.Tensor] = []
    while len(out) < count:
        h = cells[int(torch.randint(len(cells), (), generator=generator))]
        x, y = torch.randperm(len(h), generator=generator)[:2].tolist()
        v = h[x] - h[y]
        if float(v.norm()) > 0:
            out.append(v / v.norm())
    return torch.stack(out).float()


def _check_count(count: int) -> None:
    if count < 1:
        raise UserError(f"there is nothing to draw: count={count}", fix="Ask for 1 or more.")
