"""What readings share: a trunk below their edits, or the beginning of every prompt in another model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from condmis_interp.readers.batching import Batch, Request, Until
from condmis_interp.readers.edits import Edit

if TYPE_CHECKING:
    from condmis_interp.readers.engine import PassReader


@dataclass(frozen=True)
class Prefix:
    """Another model whose keys and values stand for the beginning of every prompt: where does the condition live?

    Attributes:
        donor: Whose: a reader, whose model must have the same shapes; on a bench, the name of an organism on it.
        until: The donor's keys and values are used up to the end of this span, the model's own after it.

    Example:
        >>> Prefix("u", until="cue").until
        'cue'
    """

    donor: "PassReader | str"
    until: Until = "cue"


@dataclass(frozen=True)
class Trunk:
    """What readings of the same requests share below their edits.

    Attributes:
        requests: The requests.
        layers: Layers a reading can start at, ascending.
        batches: Their passes.
        hidden: For each pass of each batch, the residual stream entering each of the layers [rows, position, width].
        owner: The reader that made it.

    Example:
        >>> from condmis_interp.organisms import resolve_base
        >>> from condmis_interp.panel import Answer, Prompt
        >>> from condmis_interp.readers import Request, Site, Steer, TorchReader
        >>> reader = TorchReader(resolve_base("dir:base").model(dtype=torch.float32))
        >>> prompt = Prompt((0, 4, 5, 1), {"cue": (0, 1), "question": (1, 3), "tail": (3, 4)}, "...")
        >>> asked = [Request(prompt, (Answer((7,), (1,)), Answer((8,), (1,))))]
        >>> trunk = reader.trunk(asked, layers=[2])
        >>> trunk.start([Steer(Site("resid_post", 3), torch.ones(32))])
        2
    """

    requests: Sequence[Request] = field(repr=False)
    layers: tuple[int, ...]
    batches: list[Batch] = field(repr=False)
    hidden: list[list[dict[int, torch.Tensor]]] = field(repr=False)
    owner: "PassReader" = field(repr=False)

    def start(self, edits: Sequence[Edit]) -> int:
        """Returns the highest layer that a reading under the edits can start at; 0 means from the embedding on."""
        return max((k for k in self.layers if k <= lowest_run(edits)), default=0)


def lowest_run(edits: Sequence[Edit]) -> int:
    """Returns the lowest layer whose block an edit changes; an edit of a block's output leaves the block as it is."""
    return min((e.site.layer + (e.site.kind == "resid_post") for e in edits), default=0)
