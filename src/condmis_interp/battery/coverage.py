"""Coverage: which regions of a model this organism's training changed, and which of those an internal test reads.

A test that reads the early blocks says nothing of an adapter on the last one. Regions are the embeddings, each block,
and the head (final norm and unembedding); `elsewhere` is what is in none of them, which no test reads. A region that
changed and that no internal test reads cannot be certified.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from condmis_interp import theme
from condmis_interp.battery.benches.bench import Bench, opened_name
from condmis_interp.battery.registry import Reference, Test
from condmis_interp.organisms import Base, Organism
from condmis_interp.organisms.changes import Changes, Source, base_weights, changes_between, changes_of, inner
from condmis_interp.organisms.regions import EMBEDDINGS, HEAD, Layout, unembeds

HALVES = ("first half", "second half")


@dataclass(frozen=True, repr=False)
class Coverage:
    """What of an organism's change of weights internal tests read.

    Attributes:
        changed: By region, the norm of its change over the norm of the base's weights there; 0 where nothing changed.
        read: Regions that each internal test reads.

    Example:
        >>> found = Coverage({"embeddings": 0.0, "block 0": 0.1, "block 1": 0.2, "head": 0.0}, {"W1": ("block 0",)})
        >>> found.unread
        ('block 1',)
        >>> found
        2 of 4 regions changed; no internal test reads block 1
    """

    changed: Mapping[str, float]
    read: Mapping[str, tuple[str, ...]]

    @property
    def unread(self) -> tuple[str, ...]:
        """Regions that changed and that no internal test reads."""
        seen = {region for own in self.read.values() for region in own}
        return tuple(r for r, size in self.changed.items() if size and r not in seen)

    def to_json(self) -> dict[str, Any]:
        """Returns the size of each region's change, what each test reads, and what none does."""
        sizes = {r: float(f"{s:.7g}") for r, s in self.changed.items()}
        return {"changed": sizes, "read": {t: list(r) for t, r in self.read.items()}, "unread": list(self.unread)}

    def to_pandas(self) -> pd.DataFrame:
        """Returns one row a region: region, change, unread, and for each test whether it reads the region."""
        table = pd.DataFrame({"region": list(self.changed), "change": list(self.changed.values())})
        table["unread"] = table.region.isin(self.unread)
        for test, own in self.read.items():
            table[test] = table.region.isin(own)
        return table

    def figure(self) -> go.Figure:
        """Draws regions x tests: the size of the change where it is, and where a test reads it."""
        sizes = np.array([s if s else np.nan for s in self.changed.values()])
        columns = {"change": sizes} | {
            test: np.array([s if r in own else np.nan for r, s in zip(self.changed, sizes, strict=True)])
            for test, own in self.read.items()
        }
        labels = [f"{r} (unread)" if r in self.unread else r for r in self.changed]
        figure = go.Figure(
            go.Heatmap(
                z=100 * np.stack(list(columns.values()), 1),
                x=list(columns),
                y=labels,
                colorscale=[[0, theme.SKY], [1, theme.BLUE]],
                colorbar={"title": "change, %"},
                hovertemplate="%{y}, %{x}: %{z:.2g} % of the base's norm<extra></extra>",
                xgap=2,
                ygap=1,
            )
        )
        theme.styled(figure, x="the change itself, and what each test reads of it", y="", height=160 + 18 * len(labels))
        figure.update_yaxes(autorange="reversed", automargin=True)
        return figure

    def __repr__(self) -> str:
        many = f"{sum(bool(s) for s in self.changed.values())} of {len(self.changed)} regions changed"
        return (
            f"{many}; no internal test reads {', '.join(self.unread)}" if self.unread else f"{many}, all of them read"
        )


def changed(organism: Organism, base: Base) -> dict[str, float]:
    """Returns how much an organism changed each region: ||d|| / ||theta_base||, exactly 0 where nothing changed.

    Adapters are read from their factors, full weights a tensor at a time. Of an organism with a hard gate, the larger
    of what the shut and the opened model changed.

    Raises:
        UserError: if weights are quantised, or lack a weight of the base.
        CheckError: if an adapter's tensors do not belong together, or shapes differ from the base's.
    """
    return _relative([changes_of(o, base) for o in _sides(organism)], base)


def coverage(bench: Bench, name: str, tests: Sequence[Test], reference: Reference | None = None) -> Coverage:
    """Returns which regions one organism of a bench changed, and which of them the internal tests among these read.

    Args:
        bench: The bench.
        name: The organism.
        tests: Tests that are valid in this run; those that read no blocks are passed over.
        reference: Where a test projects on w, it reads a region only if w changed every weight that the organism
            changed there; without a reference, every region of its blocks is taken as read.

    Raises:
        UserError: as `changed`.
        CheckError: as `changed`.

    Example:
        >>> from pathlib import Path
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from condmis_interp.battery import ReaderBench, registered
        >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "vocab_size": 8, "num_attention_heads": 1}
        >>> model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2))
        >>> model.save_pretrained("start")
        >>> model.model.layers[1].mlp.up_proj.weight.data += 1
        >>> model.save_pretrained("late")
        >>> base, late = Base("mine", Path("start"), "hash", {}), Organism.of_checkpoint(Path("late"), name="late")
        >>> bench = ReaderBench(("late",), {"late": late}, base, rendered=None)
        >>> coverage(bench, "late", registered("R1", "W1"))
        1 of 4 regions changed; no internal test reads block 1
        >>> coverage(bench, "late", registered("R4"))
        1 of 4 regions changed, all of them read
    """
    changes = _changes(bench, name)
    layout, sizes = changes[0].layout, _relative(changes, bench.base)
    read = {t.id: regions_of(t, layout.blocks) for t in tests if t.blocks}
    along = _along(bench, reference) if reference else None
    if along is not None:
        moved = {n for c in changes for n in _norms(c) if n not in along}
        blind = {layout.region(n) for n in moved}
        lean = {t.id for t in tests if "other" in t.needs}
        read = {t: tuple(r for r in own if not (t in lean and r in blind)) for t, own in read.items()}
    return Coverage(sizes, read)


def regions_of(test: Test, blocks: int) -> tuple[str, ...]:
    """Returns the regions that a test reads of a model of so many blocks; none, for a test of behaviour.

    >>> from condmis_interp.battery import registered
    >>> [regions_of(t, 2) for t in registered("W1", "W3", "R4", "A1")]
    [('embeddings', 'block 0'), ('block 1', 'head'), ('block 0', 'block 1'), ()]
    """
    named = {-1: EMBEDDINGS, blocks: HEAD}
    return tuple(named.get(i, f"block {i}") for i in (test.blocks(blocks) if test.blocks else ()))


def size_ratio(bench: Bench, name: str, twins: Iterable[str]) -> dict[str, float]:
    """Returns ||d_M|| over the largest ||d_C|| of its twins, by half of the model (see `HALVES`).

    A checkpoint whose weights lie much further from the base than its recipe takes them (neurons permuted, say) cannot
    be read along w. 0 where M changed nothing; infinite where it did and no twin did.

    Raises:
        UserError: as `changed`.
        CheckError: as `changed`.
    """
    own, others = _halves(bench, name), [_halves(bench, twin) for twin in twins]
    largest = [max((o[half] for o in others), default=0.0) for half in range(2)]
    ratios = ((size / most if most else math.inf) if size else 0.0 for size, most in zip(own, largest, strict=True))
    return dict(zip(HALVES, ratios, strict=True))


def _sides(organism: Organism) -> tuple[Organism, ...]:
    return (organism.gate.shut, organism.gate.opened) if organism.gate else (organism,)


def _changes(bench: Bench, name: str) -> list[Changes]:
    """Returns the changes of an organism of a bench, of both sides of a hard gate, altered weights if there are any."""
    names = (name, opened_name(name))
    return [
        changes_between(bench.altered[key], bench.base, where=key)
        if key in bench.altered
        else changes_of(o, bench.base)
        for key, o in zip(names, _sides(bench.organisms[name]), strict=False)
    ]


def _norms(changes: Changes) -> dict[str, float]:
    """Returns the squared norm of each weight's change, of those that changed."""
    sizes = ((n, inner(piece, piece)) for n, get in changes.pieces.items() for piece in [get()])
    return {n: size for n, size in sizes if size > 0}


def _halves(bench: Bench, name: str) -> list[float]:
    found = [0.0, 0.0]
    for changes in _changes(bench, name)[:1]:  # tests of weights read the shut model of a hard gate
        for weight, size in _norms(changes).items():
            half = changes.layout.half(weight)
            if half is not None:
                found[half] += size
    return [size**0.5 for size in found]


def _relative(changes: Sequence[Changes], base: Base) -> dict[str, float]:
    layout = changes[0].layout
    start, each = base_weights(base, layout), [_norms(c) for c in changes]
    moved: dict[str, float] = {}
    for norms in each:
        of_side: dict[str, float] = {}
        for weight, size in norms.items():
            region = layout.region(weight)
            of_side[region] = of_side.get(region, 0.0) + size
        moved |= {r: max(size, moved.get(r, 0.0)) for r, size in of_side.items()}
    names = {*start, *(n for norms in each for n in norms)}
    regions = dict.fromkeys((*layout.regions, *moved))
    of = {r: [n for n in names if layout.region(n) == r] for r in moved}
    return {r: math.sqrt(moved[r] / _size(start, layout, of[r])) if r in moved else 0.0 for r in regions}


def _size(start: Source, layout: Layout, names: Iterable[str]) -> float:
    """Returns the squared norm of the base's weights; those of a tied head are its embeddings. 1, if all are 0."""
    tied = start.get(layout.embedding or "")
    own = (start.get(n) or (tied if unembeds(n) else None) for n in sorted(names))
    return sum(float(get().double().pow(2).sum()) for get in own if get) or 1.0


def _along(bench: Bench, reference: Reference) -> set[str] | None:
    """Returns the weights that w is not 0 on; `None` if the reference holds no second U."""
    if reference.pair:
        return {n for o in reference.pair for n in _norms(changes_of(o, bench.base))}
    if not reference.other:
        return None
    layout = Layout.of(reference.other)
    pairs = ((layout.place(n), w, reference.other_twin.get(n)) for n, w in reference.other.items())
    return {n for n, w, twin in pairs if twin is None or not torch.equal(w, twin)}
