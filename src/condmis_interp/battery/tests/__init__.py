"""The tests of the battery, one module a family; importing them registers them."""

from condmis_interp.battery.tests import (
    behaviour,
    doses,
    patching,
    perturbation,
    readout,
    revival,
    subspace,
    weights,
)

__all__ = ["behaviour", "doses", "patching", "perturbation", "readout", "revival", "subspace", "weights"]
