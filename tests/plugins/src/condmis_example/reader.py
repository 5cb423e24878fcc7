"""A reader that does not generate."""

from condmis_interp.readers import TorchReader, register_reader


class QuietReader(TorchReader):
    @property
    def limits(self):
        return {**super().limits, "generate": "this reader only listens"}


def open_quiet(organism, base, *, dtype, device, **settings):
    return QuietReader(organism.model(base, dtype=dtype, device=device), **settings)


register_reader("quiet", open_quiet)
