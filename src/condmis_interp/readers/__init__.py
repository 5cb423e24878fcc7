"""The readers room: reading and editing the residual stream, with a ledger that refuses silent no-ops."""

from condmis_interp.readers.edits import Ablate, Edit, Scope, Steer
from condmis_interp.readers.gated import GatedReader, open_reader
from condmis_interp.readers.ledger import Ledger, LedgerEntry
from condmis_interp.readers.reader import Capture, Measurement, Position, Reader, Request
from condmis_interp.readers.sites import Site, SiteKind
from condmis_interp.readers.torch_hooks import TorchReader, Trunk

__all__ = [
    "Ablate",
    "Capture",
    "Edit",
    "GatedReader",
    "Ledger",
    "LedgerEntry",
    "Measurement",
    "Position",
    "Reader",
    "Request",
    "Scope",
    "Site",
    "SiteKind",
    "Steer",
    "TorchReader",
    "Trunk",
    "open_reader",
]
