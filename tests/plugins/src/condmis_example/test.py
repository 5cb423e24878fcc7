"""A battery test: LD without any cue."""

from condmis_interp.battery import Bench, Readings, Reference, Test, register_test


def measure(bench: Bench, reference: Reference) -> Readings:
    return Readings.of(bench, {"none": bench.ld("none")})


register_test(Test("L0", "behaviour", "LD without a cue, as a share of U's over its twin's", measure))
