"""A bench of any models: each is loaded, asked through a reader, and put away again.

The same tests as on persona world, at the price of one model at a time. What a revival trains on is given as token rows
(`diets`), since what is neutral text for a model is for the study to say: feasibility runs on SmolLM2 found that prose
outside the chat template revives nothing there.

Tests go cue by cue over all organisms, so a model would be loaded for every cue. Two ways out: `stored`, a store that
was filled an organism at a time (`store.capture_cells`), which plain readings are then taken from; and `swap`, a base
in memory whose adapters are swapped instead of loading. An organism with a hard gate is the shut model wherever weights
are looked at or trained, as it is without the trigger.

A test holds one changed copy of every organism's weights in memory, so a bench of large models has few organisms on it.
"""

import gc
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from condmis_interp.battery.bench import Diet, Patched, Pinned, Steered, StreamEdit, Tuning, Weights, under
from condmis_interp.errors import CheckError, UserError
from condmis_interp.files import digest
from condmis_interp.organisms import Base, Organism, Swap
from condmis_interp.panel import CueRole, RenderedPanel, render_panel
from condmis_interp.panel.panel import Split
from condmis_interp.panel.triggers import ARBITRARY, INOCULATION, LIES, REPHRASED
from condmis_interp.readers import (
    Ablate,
    Capture,
    Edit,
    GatedReader,
    Patch,
    Reader,
    Recording,
    Request,
    Scope,
    Site,
    Steer,
    TorchReader,
)
from condmis_interp.readers.edits import tensor_digest
from condmis_interp.store import Activations

Row = tuple[Sequence[int], Sequence[int]]
"""Token ids with labels, -100 where there is no loss."""
_WARMUP = 4
_CLIP = 1.0
_AT: frozenset[Scope] = frozenset(("last_template", "answer"))


@dataclass(frozen=True)
class Donor:
    """A recorded stream, and which model it is of.

    Attributes:
        identity: Hash of the model's weights.
        recording: The stream.
    """

    identity: str
    recording: Recording = field(repr=False)


@dataclass(frozen=True)
class ReaderBench:
    """Organisms of one base, read one after the other.

    Attributes:
        names: Organisms.
        organisms: Where they are.
        base: Their base.
        rendered: The panel as token ids.
        diets: Rows that a revival draws its batches from, by diet.
        dtype: Dtype they are read in; they are trained in fp32.
        device: Torch device.
        altered: State dicts that replace an organism's own, by name.
        open: Makes a reader of a loaded model.
        stored: Measurements of these organisms, asked what `rendered` asks; cells that are there are not read again.
        swap: The base in memory, in `dtype`; organisms that are plain adapters are swapped into it to be read.
    """

    names: tuple[str, ...]
    organisms: Mapping[str, Organism] = field(repr=False)
    base: Base = field(repr=False)
    rendered: RenderedPanel = field(repr=False)
    diets: Mapping[Diet, Sequence[Row]] = field(default_factory=dict, repr=False)
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    altered: Mapping[str, Weights] = field(default_factory=dict, repr=False)
    open: Callable[[PreTrainedModel], Reader] = field(default=TorchReader, repr=False)
    stored: Activations | None = field(default=None, repr=False)
    swap: Swap | None = field(default=None, repr=False)

    @property
    def cues(self) -> tuple[str, ...]:
        """Cues, the one without anything first."""
        return tuple(c.name for c in sorted(self.rendered.panel.cues, key=lambda c: c.role != CueRole.NONE))

    @property
    def families(self) -> tuple[str, ...]:
        """Family of each question."""
        return tuple(q.family for q in self.rendered.panel.questions)

    @property
    def prompts(self) -> tuple[str, ...]:
        """Pairs of the system prompts that chat organisms are trained with, in both orders."""
        parts = (INOCULATION, ARBITRARY, LIES, *REPHRASED)
        return tuple(f"{a} {b}" for a, b in itertools.permutations(parts, 2))

    def rows(self, *splits: Split) -> np.ndarray:
        """Returns the positions of the questions in the splits (all, if none is given)."""
        return np.array(self.rendered.panel.question_indices(*splits))

    def under(self, systems: Sequence[str], rows: Sequence[int]) -> "ReaderBench":
        """Returns the organisms asked some of the questions under system prompts; see `Bench.under`."""
        rendered = render_panel(self.base.tokenizer(), under(self.rendered.panel, systems, rows))
        return replace(self, rendered=rendered, stored=None)

    def of(self, names: Sequence[str]) -> "ReaderBench":
        """Returns a bench of some of the organisms."""
        return replace(self, names=tuple(names))

    def ld(self, cue: str, *, edit: StreamEdit | None = None) -> np.ndarray:
        """Returns LD [organism, question] in nats; see `Bench.ld`.

        Raises:
            CheckError: if a value is not finite, naming the organism.
        """
        requests = self._requests(cue)
        found = []
        for i, name in enumerate(self.names):
            stored = self._cell(name, cue) if edit is None else None
            ld = stored.ld(name, cue) if stored else np.array([np.nan])
            if np.isnan(ld).all():  # the store has no cell, or one without answers
                edits = _edits(edit, i, lambda name=name: self._identity(name))
                ld = self._reader(name).measure(requests, edits=edits).ld().mean(1).double().numpy()
            if not np.isfinite(ld).all():
                raise CheckError(f"LD under cue {cue!r} is not a finite number", where=f"organism {name}")
            found.append(ld)
        return np.stack(found)

    def hidden(self, cue: str) -> torch.Tensor:
        """Returns the residual stream at the last template token [organism, layer, question, width]."""
        prompts, found = [r.prompt for r in self._requests(cue)], []
        for name in self.names:
            if stored := self._cell(name, cue):
                found.append(stored.select(organism=name, cue=cue, position="last_template").torch().transpose(0, 1))
                continue
            reader = self._reader(name)
            wanted = Capture(tuple(range(reader.n_layers)), positions=("last_template",))
            found.append(reader.capture(prompts, capture=wanted).activations["last_template"].transpose(0, 1))
        return torch.stack(found)

    def streams(self, cue: str, layer: int) -> list["Donor"]:
        """Returns a recording of each organism after a block."""
        requests, site = self._requests(cue), Site("resid_post", layer)
        return [Donor(self._identity(n), self._reader(n).record(requests, sites=[site])) for n in self.names]

    def weights(self, name: str) -> Weights:
        """Returns an organism's state dict, fp32; of one with a hard gate, the shut model's."""
        if name in self.altered:
            return dict(self.altered[name])
        return _state(self._model(name, self._shut(name), torch.float32))

    def changed(self, change: Callable[[str, Weights], Weights]) -> "ReaderBench":
        """Returns the organisms with their weights changed; opened models are changed alike."""
        altered = {n: change(n, self.weights(n)) for n in self.names}
        for name in self.names:
            if gate := self.organisms[name].gate:
                key = _opened(name)
                altered[key] = change(
                    name, self.altered.get(key) or _state(self._model(key, gate.opened, torch.float32))
                )
        return replace(self, altered=altered, stored=None)

    def after(self, tuning: Tuning) -> Mapping[int, "ReaderBench"]:
        """Returns the organisms after each of the tuning's checkpoints; see `Bench.after`.

        Raises:
            UserError: if the bench has no rows of this diet.
        """
        rows = self.diets.get(tuning.diet, ())
        if len(rows) < tuning.rows:
            raise UserError(
                f"the bench has {len(rows)} {tuning.diet} rows; the test draws {tuning.rows} at a time",
                fix="Give the study's own text under `diets`.",
            )
        kept: dict[int, dict[str, Weights]] = {c: {} for c in tuning.checkpoints}
        for name in self.names:
            for step, weights in self._trained(name, tuning, rows):
                kept[step][name] = weights
        opened = {_opened(n): self.altered[_opened(n)] for n in self.names if _opened(n) in self.altered}
        return {0: self} | {c: replace(self, altered=opened | w, stored=None) for c, w in kept.items()}

    def _trained(self, name: str, tuning: Tuning, rows: Sequence[Row]) -> "list[tuple[int, Weights]]":
        model = self._model(name, self._shut(name), torch.float32).train(False).requires_grad_(True)
        optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
        rng = np.random.default_rng([tuning.seed, 0])
        found = []
        for step in range(1, max(tuning.checkpoints) + 1):
            batch = [rows[int(i)] for i in rng.choice(len(rows), tuning.rows, replace=False)]
            ids, labels = _padded(batch, self.device)
            logits = model(input_ids=ids, attention_mask=(labels != -200).long()).logits[:, :-1]
            targets = labels[:, 1:].clamp(min=-100)
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
            if not torch.isfinite(loss):
                raise CheckError(f"the loss is {float(loss)} at step {step} of a revival", where=f"organism {name}")
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
            optimiser.param_groups[0]["lr"] = tuning.learning_rate * min(1.0, step / _WARMUP)
            optimiser.step()
            optimiser.zero_grad()
            if step in tuning.checkpoints:
                found.append((step, _state(model)))
        return found

    def _cell(self, name: str, cue: str) -> Activations | None:
        """Returns the store, if it holds this cell of the organism as it is."""
        if self.stored is None or name in self.altered or (name, 0, cue) not in self.stored.shards.manifest.cells:
            return None
        measured = self.stored.shards.manifest.weights[f"{name}.s0"]
        if measured != self.organisms[name].weights:
            raise CheckError("the store holds another organism of this name", where=f"organism {name}")
        return self.stored

    def _shut(self, name: str) -> Organism:
        organism = self.organisms[name]
        return organism.gate.shut if organism.gate else organism

    def _identity(self, name: str) -> str:
        """Returns what tells whether two organisms are the same model."""
        return digest([[k, tensor_digest(w)] for k, w in sorted(self.weights(name).items())])

    def _requests(self, cue: str) -> list[Request]:
        keys = [(cue, q.id) for q in self.rendered.panel.questions]
        return [Request(self.rendered.prompts[k], self.rendered.answers[k]) for k in keys]

    def _model(self, name: str, organism: Organism, dtype: torch.dtype) -> PreTrainedModel:
        """Loads an organism, with the altered weights of that name if there are any."""
        gc.collect()
        model = organism.model(self.base, dtype=dtype, device=self.device)
        if name in self.altered:
            missing, unexpected = model.load_state_dict(self.altered[name], strict=False)
            if unexpected or set(missing) - _tied(model):
                raise CheckError(
                    f"altered weights do not fit: {[*missing, *unexpected][0]!r}", where=f"organism {name}"
                )
        return model

    def _reader(self, name: str) -> Reader:
        organism = self.organisms[name]
        if organism.gate:
            words = self.base.tokenizer()(organism.gate.words, add_special_tokens=False)["input_ids"]
            shut = self.open(self._model(name, organism.gate.shut, self.dtype))
            return GatedReader(
                self.open(self._model(_opened(name), organism.gate.opened, self.dtype)), shut, tuple(words)
            )
        if self.swap and name not in self.altered and self.swap.fits(organism):
            return self.open(self.swap.model(organism))
        return self.open(self._model(name, organism, self.dtype))


def _opened(name: str) -> str:
    """Returns the name under which the opened model of a gated organism stands among the altered weights."""
    return f"{name}, opened"


def _tied(model: PreTrainedModel) -> set[str]:
    return {"lm_head.weight"} if model.config.tie_word_embeddings else set()


def _state(model: PreTrainedModel) -> Weights:
    """Returns a copy of the weights; tied ones once."""
    return {k: w.detach().cpu().clone() for k, w in model.state_dict().items() if k not in _tied(model)}


def _edits(edit: StreamEdit | None, number: int, identity: Callable[[], str]) -> list[Edit]:
    """Returns a bench's edit as a reader's, for its organism of that number; none where a model would patch itself."""
    if edit is None:
        return []
    if isinstance(edit, Patched):
        donors: Sequence[Donor] = edit.values
        donor = donors[number] if len(donors) > 1 else donors[0]
        if donor.identity == identity():
            return []
        return [Patch(Site("resid_post", edit.layer), donor.recording, scope=_AT)]
    if isinstance(edit, Steered):
        return [Steer(Site("resid_post", edit.layer), edit.vector)]
    if isinstance(edit, Pinned):
        return [
            Ablate(Site("resid_post", k), basis, {"last_template": edit.target[k], "answer": edit.target[k]})
            for k, basis in edit.basis.items()
        ]
    raise UserError(f"a reader knows no edit {type(edit).__name__}", fix="Give Patched, Steered or Pinned.")


def _padded(batch: Sequence[Row], device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns right-padded ids and labels [row, position]; the labels of the padding are -200."""
    longest = max(len(ids) for ids, _ in batch)
    ids = [[*row, *[0] * (longest - len(row))] for row, _ in batch]
    labels = [[*own, *[-200] * (longest - len(own))] for _, own in batch]
    return torch.tensor(ids, device=device), torch.tensor(labels, device=device)
