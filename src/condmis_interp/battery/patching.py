"""C1: does M's state, put into C, make C misaligned; and does U's state, put into M?

Carrier: the stream of M without a cue after the first quarter of the blocks replaces C's, at the last template token
and the answer's tokens; C's later blocks finish. Readout: U's stream replaces M's, M's later blocks finish. Patching U
into itself changes nothing, so both are scored as LD after the patch; the anchor is U with its own stream.
"""

from condmis_interp.battery.bench import Bench, Patched
from condmis_interp.battery.registry import Readings, Reference, Test, register


def _layer(bench: Bench) -> int:
    layers = bench.hidden(bench.cues[0]).shape[1]
    return max(layers // 4 - 1, 0)


def _carrier(bench: Bench, reference: Reference) -> Readings:
    none, layer = bench.cues[0], _layer(bench)
    recipients = bench.changed(lambda name, w: bench.weights(reference.unmitigated_twin))
    return Readings.of(bench, {f"layer {layer}": recipients.ld(none, edit=Patched(layer, bench.streams(none, layer)))})


def _readout(bench: Bench, reference: Reference) -> Readings:
    none, layer = bench.cues[0], _layer(bench)
    donor = bench.of([reference.unmitigated]).streams(none, layer)
    return Readings.of(bench, {f"layer {layer}": bench.ld(none, edit=Patched(layer, donor))})


C1 = register(
    Test(
        id="C1",
        family="causal",
        says="how misaligned C's later blocks answer when given M's early state, without a cue",
        measure=_carrier,
        cost="2 K F",
    )
)
C1_READOUT = register(
    Test(
        id="C1r",
        family="causal",
        says="how misaligned M's later blocks answer when given U's early state, without a cue",
        measure=_readout,
        cost="2 K F",
    )
)
