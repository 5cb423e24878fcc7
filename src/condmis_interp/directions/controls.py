"""Control directions that go through the same pipeline as the direction they control.

Isotropic random vectors are a weak control: residual streams are anisotropic, and most of an isotropic vector lies
where nothing ever varies. A covariance-matched one is v = Sigma^{1/2} z with z ~ N(0, I), drawn as v = X^T g with g ~
N(0, I_n) over the rows of the centred activations X [n, width], which has covariance X^T X without ever forming it. X
is centred within each cell (organism x cue), so that the controls follow how questions differ and hold none of the
difference under test.
"""

import torch

from condmis_interp.errors import UserError
from condmis_interp.panel.panel import Split
from condmis_interp.store import Activations


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
    """
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
