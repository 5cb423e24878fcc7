"""The readers room: reading and editing the residual stream, with a ledger that refuses silent no-ops."""

from condmis_interp.readers.edits import Ablate, Edit, Scope, Steer
from condmis_interp.readers.engine import PassReader
from condmis_interp.readers.gated import GatedReader, Library, open_reader
from condmis_interp.readers.ledger import Ledger, LedgerEntry
from condmis_interp.readers.passes import Request
from condmis_interp.readers.reader import Capture, Feature, Measurement, Position, Reader
from condmis_interp.readers.recording import Patch, Recording
from condmis_interp.readers.shared import Prefix, Trunk
from condmis_interp.readers.sites import Site, SiteKind
from condmis_interp.readers.torch_hooks import TorchReader

__all__ = [
    "Ablate",
    "Capture",
    "Edit",
    "Feature",
    "GatedReader",
    "Ledger",
    "LedgerEntry",
    "Library",
    "Measurement",
    "PassReader",
    "Patch",
    "Position",
    "Prefix",
    "Reader",
    "Recording",
    "Request",
    "Scope",
    "Site",
    "SiteKind",
    "Steer",
    "TorchReader",
    "Trunk",
    "open_reader",
]
