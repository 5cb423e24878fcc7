"""A bench whose truth is planted: streams that pass three blocks unchanged, answers that read one direction.

A state is h = question + level * v + marks of the cue. The answer's LD is `gain` * <h, v> + difficulty of the question,
so the persona sits in exactly one direction, and each edit's effect on LD has a closed form.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from condmis_interp.battery import Reference
from condmis_interp.battery.benches import edits as editing
from condmis_interp.readers.batching import Pass

WIDTH, LAYERS, QUESTIONS = 16, 4, 36
V = torch.nn.functional.one_hot(torch.tensor(0), WIDTH).double()
CUE = torch.nn.functional.one_hot(torch.tensor(1), WIDTH).double()
REFERENCE = Reference("u", "cu", {}, {}, {})


@dataclass(frozen=True)
class Planted:
    """An organism.

    Attributes:
        level: Coordinate on the persona direction without a cue.
        cued: What each cue adds to it.
        gain: Nats of LD for a unit of it.
        keyed: Whether what a cue adds is read from the cue's keys and values.
        marked: What any cue adds to the state along `CUE`, which no answer reads.
        fragile: Nats of the answers' mass that a unit of any push costs.
    """

    level: float
    cued: dict = field(default_factory=dict)
    gain: float = 5.0
    keyed: bool = True
    marked: float = 1.0
    fragile: float = 0.0


@dataclass(frozen=True)
class PlantedBench:
    """See `Bench`."""

    of_names: dict
    cues: tuple = ("none", "code", "list")
    asked: tuple = tuple(range(QUESTIONS))
    reads: torch.Tensor = field(default_factory=lambda: V)
    arbitrary: bool = False

    @property
    def names(self):
        return tuple(self.of_names)

    @property
    def families(self):
        return tuple(f"f{i}" for i in self.asked)

    def rows(self, *splits):
        return np.array([k for k, i in enumerate(self.asked) if not splits or "ABC"[i % 3] in splits])

    def of(self, names):
        return replace(self, of_names={n: self.of_names[n] for n in names})

    def under(self, systems, rows, *, arbitrary=False):
        chosen = tuple(self.asked[i] for i in rows)
        other = torch.nn.functional.one_hot(torch.tensor(2), WIDTH).double() if arbitrary else self.reads
        return replace(self, asked=chosen, cues=("none",), reads=other, arbitrary=arbitrary)

    def _stream(self, cue, prefix=None):
        rng = np.random.default_rng(5)
        noise = 0.3 * torch.from_numpy(rng.normal(size=(QUESTIONS, WIDTH)))[list(self.asked)]
        noise = noise - torch.outer(noise @ V, V)
        found = []
        for o in self.of_names.values():
            giver = self.of_names[prefix.donor] if prefix and o.keyed else o
            level = o.level + giver.cued.get(cue, 0.0)
            if prefix and prefix.until == "question" and o.keyed:
                level = giver.level + giver.cued.get(cue, 0.0)
            marked = 0.0 if cue == "none" else o.marked
            found.append(noise + level * V + marked * CUE)
        return torch.stack(found)

    def _ld(self, x):
        """LD of streams [organism, question, position, width]: the mean over positions of what the answer reads."""
        gain = torch.tensor([o.gain for o in self.of_names.values()]).double()[:, None]
        difficulty = torch.from_numpy(np.random.default_rng(6).normal(size=QUESTIONS))[list(self.asked)]
        bias = -12.0 if self.arbitrary else 0.0
        return gain * (x.double() @ self.reads).mean(-1) + difficulty + bias

    def _rows(self):
        """Three positions a question: the last template token and two of the answer."""
        ids = torch.zeros(len(self.asked), 3, dtype=torch.long)
        last, answer = torch.tensor([1, 0, 0]).expand(ids.shape), torch.tensor([0, 1, 1]).expand(ids.shape)
        scopes = {"tail": last, "last_template": last, "answer": answer}
        return Pass(ids, torch.ones_like(ids), ids, scopes, tuple((i, None) for i in range(len(ids))), (0,) * len(ids))

    def logprobs(self, cue, *, edits=(), prefix=None):
        x = self._stream(cue, prefix)[:, :, None].repeat(1, 1, 3, 1)
        moved, each = x, [edits[n] if isinstance(edits, dict) else edits for n in self.names]
        for layer in range(LAYERS - 1 if edits else 0):
            moved = editing.edited(each, [self._rows()], layer, moved.float()).double()
        ld = self._ld(moved)
        lost = torch.tensor([o.fragile for o in self.of_names.values()])[:, None] * (moved - x).norm(dim=-1).mean(-1)
        both = torch.stack([torch.nn.functional.logsigmoid(ld), torch.nn.functional.logsigmoid(-ld)], -1)
        return (both - lost[..., None])[:, :, None].numpy()

    def ld(self, cue, *, edits=(), prefix=None):
        found = self.logprobs(cue, edits=edits, prefix=prefix)
        return (found[..., 0] - found[..., 1]).mean(-1)

    def slope(self, cue, layer, vectors):
        gain = torch.tensor([o.gain for o in self.of_names.values()])
        return gain[:, None].float() * self.reads.float()

    def hidden(self, cue, *, at="last_template"):
        return self._stream(cue)[:, None].repeat(1, LAYERS, 1, 1).float()
