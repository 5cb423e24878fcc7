"""The store against torch.save and a NumPy memmap: writing shards, and reading one layer or everything.

All sides write the same activations (bf16, all layers, two positions) of the same shards and sync each file to disk;
the store also writes what was asked, hashes everything and checks the hashes when it reads. Sides take turns, in an
order that rotates. What a reader of the store pays for the hashes shows in `first` (verified) against `again`.

Files are in the page cache when they are read: this measures the formats, not the disk.

python -m benchmarks.store [--json] [--shards 16] [--prompts 128] [--layers 30] [--width 576] [--repeats 5]
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from condmis_interp.panel import Answer, Prompt
from condmis_interp.readers import Measurement
from condmis_interp.store import Activations, Asked, Manifest, Shard, StoreWriter, layer_groups, plan

POSITIONS = ("last_template", "answer_mean")


def made(args):
    """The store's manifest and shards: random activations, prompts of 100 tokens, eight answers of 15."""
    rng = torch.Generator().manual_seed(0)
    prompt = Prompt(tuple(range(100)), {"cue": (0, 40), "question": (40, 95), "tail": (95, 100)}, "")
    answers = tuple(Answer(tuple(range(15)), (1,)) for _ in range(8))
    manifest = Manifest(
        base="base",
        tokenizer="tokenizer",
        kind="resid_post",
        layer_groups=layer_groups(args.layers),
        positions=POSITIONS,
        width=args.width,
        dtype="bfloat16",
        weights={},
        shards=plan(
            args.shards * args.prompts,
            size=args.prompts,
            organisms={("m", 0): "m"},
            cues={"none": ["asked"] * args.shards},
        ),
    )
    shards = []
    for p in manifest.shards:
        rows = tuple(Asked(f"q{p.first + i}", f"f{i % 24}", "ABC"[i % 3], prompt, answers) for i in range(p.count))
        kept = {name: torch.randn(p.count, args.layers, args.width, generator=rng) for name in POSITIONS}
        shards.append(Shard(p, rows, Measurement([torch.randn(8).double() for _ in rows], kept)))
    return manifest, shards


def synced(path):
    with path.open("rb") as f:
        os.fsync(f.fileno())


class Store:
    name = "store"

    def __init__(self, manifest):
        self.manifest = manifest

    def write(self, folder, shards):
        with StoreWriter(folder, self.manifest) as writer:
            for shard in shards:
                writer.put(shard)

    def open(self, folder):
        return Activations.open(folder, verify="used")

    def layer(self, acts, layer):
        return acts.select(layer=layer, position="answer_mean").torch(torch.bfloat16)

    def everything(self, acts):
        return acts.select().torch(torch.bfloat16)


class TorchSave:
    """A file a shard, as most research code keeps activations."""

    name = "torch.save"

    def write(self, folder, shards):
        folder.mkdir()
        for shard in shards:
            path = folder / f"{shard.planned.part}.pt"
            torch.save({p: a.bfloat16() for p, a in shard.measurement.activations.items()}, path)
            synced(path)

    def open(self, folder):
        return sorted(folder.glob("*.pt"), key=lambda p: int(p.stem))

    def _load(self, path):
        # the other side of the benchmark; what it reads was written a moment ago by `write`
        return torch.load(path, weights_only=True)  # noqa: TID251

    def layer(self, paths, layer):
        return torch.cat([self._load(p)["answer_mean"][:, layer] for p in paths])

    def everything(self, paths):
        return torch.cat([torch.stack([self._load(p)[q] for q in POSITIONS], 2) for p in paths])


class Memmap:
    """One array [prompts, layers, positions, width] for all, bf16 as 16-bit integers: NumPy has no bf16."""

    name = "numpy memmap"

    def __init__(self, shape):
        self.shape = shape

    def write(self, folder, shards):
        folder.mkdir()
        array = np.memmap(folder / "a.npy", np.int16, "w+", shape=self.shape)
        for shard in shards:
            rows = slice(shard.planned.first, shard.planned.first + shard.planned.count)
            for k, p in enumerate(POSITIONS):
                array[rows, :, k] = shard.measurement.activations[p].bfloat16().view(torch.int16).numpy()
            array.flush()

    def open(self, folder):
        return np.memmap(folder / "a.npy", np.int16, "r", shape=self.shape)

    def layer(self, array, layer):
        return torch.from_numpy(array[:, layer, POSITIONS.index("answer_mean")].copy()).view(torch.bfloat16)

    def everything(self, array):
        return torch.from_numpy(array[:].copy()).view(torch.bfloat16)


def timed(work, *given):
    began = time.perf_counter()
    result = work(*given)
    return result, time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    manifest, shards = made(args)
    shape = (args.shards * args.prompts, args.layers, len(POSITIONS), args.width)
    sides = [Store(manifest), TorchSave(), Memmap(shape)]
    seconds = {side.name: {} for side in sides}
    middle = args.layers // 2
    with tempfile.TemporaryDirectory() as work:
        for turn in range(args.repeats):
            results = []
            for side in sides[turn % 3 :] + sides[: turn % 3]:
                folder, note = Path(work) / side.name, seconds[side.name]
                shutil.rmtree(folder, ignore_errors=True)
                _, took = timed(side.write, folder, shards)
                note.setdefault("write", []).append(took)
                for what in ("layer", "everything"):
                    opened = side.open(folder)
                    read = (side.layer, opened, middle) if what == "layer" else (side.everything, opened)
                    result, took = timed(*read)
                    note.setdefault(f"{what}, first", []).append(took)
                    results.append((what, result))
                    _, took = timed(*read)
                    note.setdefault(f"{what}, again", []).append(took)
            for what in ("layer", "everything"):
                same = [r for w, r in results if w == what]
                assert all(torch.equal(same[0], other) for other in same[1:]), "the sides read different numbers"
    megabytes = np.prod(shape) * 2 / 1e6
    result = {
        "activations, MB": round(float(megabytes), 1),
        "seconds": {n: {k: round(statistics.median(t), 4) for k, t in s.items()} for n, s in seconds.items()},
        "spread": {n: {k: (round(min(t), 4), round(max(t), 4)) for k, t in s.items()} for n, s in seconds.items()},
    }
    if args.json:
        print(json.dumps(result))
        return
    print(f"{megabytes:.0f} MB in {args.shards} shards, bf16; seconds, median of {args.repeats} (from - to)")
    for what in seconds["store"]:
        print(f"  {what:18}", end="")
        for name, s in seconds.items():
            print(f"  {name} {statistics.median(s[what]):7.3f} ({min(s[what]):.3f} - {max(s[what]):.3f})", end="")
        print()


if __name__ == "__main__":
    main()
