"""Filling a store outside a study: any organisms, each under the cues it is given.

An organism is loaded once for all its cues (a swapped adapter, where it fits), and a cell that is there already is not
measured again, so the list of cells can grow: a second call with more organisms measures those alone. Log-probs of all
answers and the activations come from the same passes; where activations at prompts are all that is wanted, the answers
can be left out, which is most of the time. LD is NaN then.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from condmis_interp.calls import checked
from condmis_interp.files import digest
from condmis_interp.organisms import Base, Organism, Swap
from condmis_interp.panel import RenderedPanel
from condmis_interp.progress import progress
from condmis_interp.readers import Capture, Request, open_reader
from condmis_interp.store.activations import Activations
from condmis_interp.store.manifest import Dtype, Manifest, layer_groups, plan
from condmis_interp.store.shards import Asked, Shard, Shards, asked_hash
from condmis_interp.store.writer import StoreWriter, holds

CAPTURING_VERSION = 1
"""Raise this when a change in readers or rendering changes numbers: it is part of every shard's key."""


@checked
def capture_cells(
    folder: Path,
    cells: Mapping[str, tuple[Organism, Sequence[str]]],
    *,
    base: Base,
    rendered: RenderedPanel,
    capture: Capture,
    dtype: torch.dtype,
    device: str = "cpu",
    store_dtype: Dtype = "bfloat16",
    answers: bool = True,
    **settings: Any,
) -> Activations:
    """Measures every cell that is not there yet, an organism at a time.

    Args:
        folder: Folder of the store.
        cells: By name, the organism and the cues it is asked under; gated ones too.
        base: Their base.
        rendered: The panel as token ids; every cue must be one of its cues.
        capture: Which activations are kept; all layers.
        dtype: Dtype the models are read in.
        device: Torch device.
        store_dtype: Dtype of stored activations.
        answers: Whether the answers are scored.
        **settings: Of the readers.

    Example:
        >>> from condmis_interp.organisms import resolve_base
        >>> from condmis_interp.panel import load_panel, render_panel
        >>> base = resolve_base("dir:base")
        >>> cells = {"b": (Organism.of_base(base, name="b"), ["none", "trigger"])}
        >>> about = {"base": base, "rendered": render_panel(base.tokenizer(), load_panel("panel.yaml"))}
        >>> acts = capture_cells(Path("s"), cells, **about, capture=Capture((0, 1, 2, 3)), dtype=torch.float32)
        >>> acts.ld("b", "trigger").shape
        (12,)
    """
    asked = {c: _asked(rendered, c, answers) for c in dict.fromkeys(c for _, cues in cells.values() for c in cues)}
    manifest = _manifest(cells, asked, base=base, capture=capture, dtype=dtype, store_dtype=store_dtype)
    if not holds(folder, manifest):
        swap = Swap(base, dtype=dtype, device=device)
        with StoreWriter(folder, manifest) as writer:
            missing = Shards(folder, manifest).missing()
            done = len(manifest.shards) - len(missing)
            with progress("capturing", len(manifest.shards), unit="cells", done=done) as step:
                for name, shards in groupby(missing, key=lambda s: s.organism):
                    reader = open_reader(cells[name][0], base, dtype=dtype, device=device, swap=swap, **settings)
                    for planned in shards:
                        rows = asked[planned.cue]
                        if answers:
                            requests = [Request(r.prompt, r.answers) for r in rows]
                            measured = reader.measure(requests, capture=capture)
                        else:
                            measured = reader.capture([r.prompt for r in rows], capture=capture)
                        writer.put(Shard(planned, rows, measured))
                        step(1)
    return Activations.open(folder, verify="used")


def _asked(rendered: RenderedPanel, cue: str, answers: bool) -> tuple[Asked, ...]:
    panel = rendered.panel
    return tuple(
        Asked(
            q.id,
            q.family,
            panel.split_of(q.family),
            rendered.prompts[cue, q.id],
            rendered.answers[cue, q.id] if answers else (),
        )
        for q in panel.questions
    )


def _manifest(
    cells: Mapping[str, tuple[Organism, Sequence[str]]],
    asked: Mapping[str, tuple[Asked, ...]],
    *,
    base: Base,
    capture: Capture,
    dtype: torch.dtype,
    store_dtype: Dtype,
) -> Manifest:
    hashes = {cue: [asked_hash(rows)] for cue, rows in asked.items()}
    shards = []
    for name, (organism, cues) in cells.items():
        determined = [CAPTURING_VERSION, base.content, organism.weights, str(dtype), capture.kind, store_dtype]
        own = {c: hashes[c] for c in cues}
        count = len(asked[cues[0]])
        shards += plan(count, size=count, organisms={(name, 0): digest(determined)}, cues=own)
    return Manifest(
        base=base.content,
        tokenizer=base.tokenizer_hash(),
        kind=capture.kind,
        layer_groups=layer_groups(base.shape[0]),
        positions=capture.positions,
        width=base.shape[1],
        dtype=store_dtype,
        weights={f"{name}.s0": organism.weights for name, (organism, _) in cells.items()},
        shards=tuple(shards),
    )
