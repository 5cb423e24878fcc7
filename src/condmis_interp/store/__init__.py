"""The store room: measured cells on disk, verified when opened, and finished pieces of longer tests."""

from condmis_interp.store.activations import Activations
from condmis_interp.store.cells import Cell, CellKey, CellStore
from condmis_interp.store.pieces import Pieces

__all__ = ["Activations", "Cell", "CellKey", "CellStore", "Pieces"]
