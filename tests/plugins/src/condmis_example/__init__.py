"""A plug-in: importing it registers a battery test, a reader, an intervention, a backend and a judge."""

from condmis_example import backend, intervention, judge, reader, test

__all__ = ["backend", "intervention", "judge", "reader", "test"]
