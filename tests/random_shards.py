"""Small stores of random content, in which each shard is the same whenever it is made."""

from pathlib import Path

import torch

from condmis_interp.readers import Measurement
from condmis_interp.store import Asked, Manifest, Planned, Shard, StoreWriter, plan
from planted import SAID


def small(parts: int = 4, rows: int = 64, width: int = 48, layer_groups=((0, 1),)) -> Manifest:
    """A store of one cell."""
    return Manifest(
        base="base",
        tokenizer="tokenizer",
        kind="resid_post",
        layer_groups=layer_groups,
        positions=("last_template", "answer_mean"),
        width=width,
        dtype="float32",
        weights={},
        shards=plan(parts * rows, size=rows, organisms={("u", 0): "u"}, cues={"none": ["asked"] * parts}),
    )


def shard(planned: Planned, *, layers: int = 2, width: int = 48) -> Shard:
    """Random content, the same for the same shard."""
    rng = torch.Generator().manual_seed(planned.part)
    kept = {p: torch.randn(planned.count, layers, width, generator=rng) for p in ("last_template", "answer_mean")}
    rows = tuple(Asked(f"q{planned.first + i}", "f", "A", *SAID) for i in range(planned.count))
    logprobs = list(torch.randn(planned.count, 2, generator=rng, dtype=torch.float64))
    return Shard(planned, rows, Measurement(logprobs, kept))


def write(folder: Path, manifest: Manifest, *parts: int) -> None:
    with StoreWriter(folder, manifest) as writer:
        for part in parts:
            writer.put(shard(manifest.shards[part], layers=len(manifest.layers)))
