"""A positive control: the run's own activations with a known vector added in some cells.

Whether a method finds what is there can be asked only where it is known what is there. A planted vector is found among
the real thing's nuisances: questions that differ, seeds that differ, cues that do something to any model. At the site
it is what a steer edit adds there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from condmis_interp.directions.rows import CellName
from condmis_interp.panel.panel import Split
from condmis_interp.store import Activations


@dataclass(frozen=True)
class Planted(Activations):
    """Activations under other names, with a vector added in some cells at one layer.

    Take two seeds of one benign organism for two names: what then tells them apart is the vector, and what seeds do.

    Attributes:
        named: For each new name the organism and seed it is read from.
        vector: What is added, [width].
        layer: At which layer.
        cells: In which cells (new name, cue).

    Example:
        Every cell of the copy reads 0, and `M` under the trigger has the vector added:

        >>> from unittest.mock import patch
        >>> vector, cells = torch.tensor([0.0, 2.0]), frozenset({("M", "trigger")})
        >>> planted = Planted(shards=None, named={"M": ("benign", 0)}, vector=vector, cells=cells)
        >>> with patch.object(Activations, "at", return_value=torch.zeros(1, 2)) as read:
        ...     planted.at("M", "trigger", layer=0, position="answer_mean")
        tensor([[0., 2.]])
        >>> read.call_args.args
        ('benign', 'trigger')
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
