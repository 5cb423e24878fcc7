"""A positive control: the run's own activations with a known vector added in some cells.

Whether a method finds what is there can be asked only where it is known what is there. A planted vector is found among
the real thing's nuisances: questions that differ, seeds that differ, cues that do something to any model. At the site
it is what a steer edit adds there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from condmis_interp.directions.rows import CellName, Rows
from condmis_interp.panel.panel import Split
from condmis_interp.store import Activations


def planted_rows(
    vector: torch.Tensor, *, families: int = 8, each: int = 2, triggered: torch.Tensor | None = None, seed: int = 0
) -> Rows:
    """Returns rows of one site (layer 0, `answer_mean`) whose classes differ by a vector; all else is noise.

    Args:
        vector: By how much class 1 differs [width].
        families: Number of families.
        each: Questions a family.
        triggered: By how much the rows under a second cue, `trigger`, differ from those under `none`; no second cue
            if it is not given. Class 1 has the vector under both.
        seed: Seed of the noise.

    Example:
        >>> planted_rows(torch.tensor([3.0, 0.0, 0.0]))
        Rows(U against C; 32 rows, 16 of class 1, 8 families; 1 layers x 1 positions, width 3)
    """
    generator = torch.Generator().manual_seed(seed)
    cues = {"none": torch.zeros_like(vector)} | ({} if triggered is None else {"trigger": triggered})
    questions = [(f"f{k}", f"q{k}.{i}") for k in range(families) for i in range(each)]
    cells = [(organism, cue) for organism in ("U", "C") for cue in cues]
    means = torch.stack([(organism == "U") * vector + cues[cue] for organism, cue in cells])
    noise = torch.randn(len(cells) * len(questions), len(vector), generator=generator)
    return Rows(
        x=(means.repeat_interleave(len(questions), 0) + noise)[None, None],
        labels=np.repeat([int(organism == "U") for organism, _ in cells], len(questions)),
        families=tuple(family for family, _ in questions) * len(cells),
        questions=tuple(question for _, question in questions) * len(cells),
        cells=tuple(cell for cell in cells for _ in questions),
        layers=(0,),
        positions=("answer_mean",),
        kind="resid_post",
        data="U against C",
        splits=("A",),
    )


@dataclass(frozen=True)
class Planted(Activations):
    """Activations under other names, with a vector added in some cells at one layer.

    Take two seeds of one benign organism for two names: what then tells them apart is the vector, and what seeds do.

    Attributes:
        named: For each new name the organism and seed it is read from.
        vector: What is added, [width].
        layer: At which layer.
        cells: In which cells (new name, cue).
    """

    named: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    vector: torch.Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    layer: int = 0
    cells: frozenset[CellName] = frozenset()

    def at(
        self, organism: str, cue: str, *splits: Split, layer: int, position: str, seed: int | None = None
    ) -> torch.Tensor:
        """Returns activations [n, width] (fp32) at one layer; `seed` counts for organisms without a new name."""
        name, own_seed = self.named.get(organism, (organism, seed))
        own = super().at(name, cue, *splits, layer=layer, position=position, seed=own_seed)
        return own + self.vector if layer == self.layer and (organism, cue) in self.cells else own
