"""The store room: measurements on disk, verified before they are used, and finished pieces of longer tests."""

from condmis_interp.store.activations import Activations
from condmis_interp.store.capturing import capture_cells
from condmis_interp.store.manifest import Manifest, Planned, layer_groups, plan, read_manifest
from condmis_interp.store.pieces import Pieces
from condmis_interp.store.shards import Asked, Shard, Shards, asked_hash
from condmis_interp.store.slices import Slice
from condmis_interp.store.writer import StoreWriter, holds

__all__ = [
    "Activations",
    "Asked",
    "Manifest",
    "Pieces",
    "Planned",
    "Shard",
    "Shards",
    "Slice",
    "StoreWriter",
    "asked_hash",
    "capture_cells",
    "holds",
    "layer_groups",
    "plan",
    "read_manifest",
]
