"""The readers room: reading and editing the residual stream, with a ledger that refuses silent no-ops."""

from condmis_interp.readers.base import Capture, Feature, Measurement, Position, Reader
from condmis_interp.readers.batching import Request
from condmis_interp.readers.edits import Ablate, Edit, Scope, Steer
from condmis_interp.readers.engine import PassReader
from condmis_interp.readers.gated import GatedReader
from condmis_interp.readers.ledger import Ledger, LedgerEntry
from condmis_interp.readers.open import READERS, Library, ReaderFactory, open_reader, register_reader
from condmis_interp.readers.recording import Patch, Recording
from condmis_interp.readers.sites import Site, SiteKind
from condmis_interp.readers.torch_hooks import TorchReader
from condmis_interp.readers.trunk import Prefix, Trunk

__all__ = [
    "READERS",
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
    "ReaderFactory",
    "Recording",
    "Request",
    "Scope",
    "Site",
    "SiteKind",
    "Steer",
    "TorchReader",
    "Trunk",
    "open_reader",
    "register_reader",
]
