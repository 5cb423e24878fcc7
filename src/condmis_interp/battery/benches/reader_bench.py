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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from condmis_interp.battery.benches.bench import (
    Borrowed,
    Diet,
    Patched,
    Pinned,
    Place,
    Steered,
    StreamEdit,
    Tuning,
    Weights,
    under,
)
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
    PassReader,
    Patch,
    Prefix,
    Reader,
    Recording,
    Request,
    Scope,
    Site,
    Steer,
    TorchReader,
)
from condmis_interp.readers.edits import tensor_digest
from condmis_interp.readers.sites import blocks_of
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

    def under(self, systems: Sequence[str], rows: Sequence[int], *, arbitrary: bool = False) -> "ReaderBench":
        """Returns the organisms asked some of the questions under system prompts; see `Bench.under`."""
        panel = under(self.rendered.panel, systems, rows, arbitrary=arbitrary)
        return replace(self, rendered=render_panel(self.base.tokenizer(), panel), stored=None)

    def of(self, names: Sequence[str]) -> "ReaderBench":
        """Returns a bench of some of the organisms."""
        return replace(self, names=tuple(names))

    def logprobs(self, cue: str, *, edit: StreamEdit | None = None, prefix: Borrowed | None = None) -> np.ndarray:
        """Returns the answers' summed log-probs [organism, question, pair, 2] in nats; see `Bench.logprobs`.

        Raises:
            UserError: if a prefix is asked for and the reader borrows none.
            CheckError: if a value is not finite, naming the organism.
        """
        requests, donor = self._requests(cue), self._lender(prefix)
        found = []
        for i, name in enumerate(self.names):
            each = self._each(i, requests, edit, donor)
            if not np.isfinite(each).all():
                raise CheckError(f"LD under cue {cue!r} is not a finite number", where=f"organism {name}")
            found.append(each)
        return np.stack(found)

    def _each(
        self, number: int, requests: Sequence[Request], edit: StreamEdit | None, donor: Prefix | None
    ) -> np.ndarray:
        """Returns an organism's log-probs [question, pair, 2]."""
        name = self.names[number]
        edits, reader = _edits(edit, number, lambda: self._identity(name)), self._reader(name)
        if donor is None:
            measured = reader.measure(requests, edits=edits)
        elif isinstance(reader, PassReader):
            measured = reader.measure(requests, edits=edits, prefix=donor)
        else:
            raise UserError(f"{type(reader).__name__} takes no keys and values from another model")
        return torch.stack(measured.logprobs).double().numpy().reshape(len(requests), -1, 2)

    def ld(self, cue: str, *, edit: StreamEdit | None = None, prefix: Borrowed | None = None) -> np.ndarray:
        """Returns LD [organism, question] in nats; see `Bench.ld`.

        Raises:
            CheckError: if a value is not finite, naming the organism.
        """
        plain = edit is None and prefix is None
        requests, donor = self._requests(cue), self._lender(prefix)
        found = []
        for i, name in enumerate(self.names):
            stored = self._cell(name, cue) if plain else None
            ld = stored.ld(name, cue) if stored else np.array([np.nan])
            if np.isnan(ld).all():  # the store has no cell, or one without answers
                each = self._each(i, requests, edit, donor)
                ld = (each[..., 0] - each[..., 1]).mean(-1)
            if not np.isfinite(ld).all():
                raise CheckError(f"LD under cue {cue!r} is not a finite number", where=f"organism {name}")
            found.append(ld)
        return np.stack(found)

    def slope(self, cue: str, push: Steered) -> torch.Tensor:
        """Returns the gradient of each organism's mean LD by its vector [organism, width]; see `Bench.slope`."""
        requests, found = self._requests(cue), []
        for i, name in enumerate(self.names):
            vector = (push.vector if push.vector.ndim == 1 else push.vector[i]).detach().to(self.device)
            vector = vector.clone().requires_grad_()
            if self.organisms[name].gate and cue != self.cues[0]:
                raise UserError("a gated organism has a slope without a cue alone", where=f"organism {name}")
            model = self._model(name, self._shut(name), self.dtype).train(False).requires_grad_(False)
            with _pushed(model, push.layer, vector):
                for request in requests:
                    (_mean_ld(model, request, self.device) / len(requests)).backward()
            assert vector.grad is not None
            found.append(vector.grad.float().cpu())
        return torch.stack(found)

    def hidden(self, cue: str, *, at: Place = "last_template") -> torch.Tensor:
        """Returns the residual stream at a place [organism, layer, question, width]; see `Bench.hidden`."""
        requests, found = self._requests(cue), []
        for name in self.names:
            if at == "last_template" and (stored := self._cell(name, cue)):
                found.append(stored.select(organism=name, cue=cue, position="last_template").torch().transpose(0, 1))
                continue
            reader = self._reader(name)
            wanted = Capture(tuple(range(reader.n_layers)), positions=(at,))
            if at == "last_template":
                measured = reader.capture([r.prompt for r in requests], capture=wanted)
            else:
                measured = reader.measure(requests, capture=wanted)
            found.append(measured.activations[at].transpose(0, 1))
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

    def _lender(self, prefix: Borrowed | None) -> Prefix | None:
        if prefix is None:
            return None
        prefix.check(self.names)
        reader = self._reader(prefix.donor)
        if not isinstance(reader, PassReader):
            raise UserError(f"{type(reader).__name__} lends no keys and values")
        return Prefix(reader, prefix.until)

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
        return [Steer(Site("resid_post", edit.layer), edit.vector if edit.vector.ndim == 1 else edit.vector[number])]
    if isinstance(edit, Pinned):
        later = edit.target if edit.in_answer is None else edit.in_answer
        return [
            Ablate(Site("resid_post", k), basis, {"last_template": edit.target[k], "answer": later[k]})
            for k, basis in edit.basis.items()
        ]
    raise UserError(f"a reader knows no edit {type(edit).__name__}", fix="Give Patched, Steered or Pinned.")


@contextmanager
def _pushed(model: PreTrainedModel, layer: int, vector: torch.Tensor) -> Iterator[None]:
    """Adds a vector to what a block gives, with gradients, which a reader does not keep."""

    def add(module: torch.nn.Module, given: Any, output: Any) -> Any:
        whole = isinstance(output, torch.Tensor)
        pushed = (output if whole else output[0]) + vector
        return pushed if whole else (pushed, *output[1:])

    handle = blocks_of(model)[layer].register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def _mean_ld(model: PreTrainedModel, request: Request, device: Any) -> torch.Tensor:
    """Returns LD of one question in nats, mean over its pairs, with gradients."""
    prompt = request.prompt.ids
    rows = [([*prompt, *a.ids], [*[-100] * len(prompt), *a.ids]) for a in request.answers]
    ids, labels = _padded(rows, device)
    logits = model(input_ids=ids, attention_mask=(labels != -200).long()).logits[:, :-1].float()
    targets = labels[:, 1:]
    each = logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    total = (each * (targets >= 0)).sum(1)
    return (total[0::2] - total[1::2]).mean()


def _padded(batch: Sequence[Row], device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns right-padded ids and labels [row, position]; the labels of the padding are -200."""
    longest = max(len(ids) for ids, _ in batch)
    ids = [[*row, *[0] * (longest - len(row))] for row, _ in batch]
    labels = [[*own, *[-200] * (longest - len(own))] for _, own in batch]
    return torch.tensor(ids, device=device), torch.tensor(labels, device=device)
