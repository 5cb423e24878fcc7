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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from transformers import PreTrainedModel

from condmis_interp.battery.benches.bench import Bench, Diet, Place, Row, Tuning, Weights, opened_name
from condmis_interp.errors import CheckError, UserError
from condmis_interp.files import digest
from condmis_interp.organisms import Organism, Swap
from condmis_interp.organisms.step import Step
from condmis_interp.prompts import Grammar, chat_grammar
from condmis_interp.readers import (
    Capture,
    Edit,
    GatedReader,
    PassReader,
    Patch,
    Prefix,
    Reader,
    Recording,
    Request,
    Site,
    TorchReader,
)
from condmis_interp.readers.edits import tensor_digest
from condmis_interp.readers.hooks import hook
from condmis_interp.readers.sites import blocks_of, module_of

_CLIP = 1.0
"""Largest norm of a revival's gradient."""


@dataclass(frozen=True)
class ReaderBench(Bench):
    """Organisms of one base, read one after the other.

    Attributes:
        diets: Rows that a revival draws its batches from, by diet.
        dtype: Dtype they are read in; they are trained in fp32.
        device: Torch device.
        open: Makes a reader of a loaded model.
        swap: The base in memory, in `dtype`; organisms that are plain adapters are swapped into it to be read.

    Example:
        >>> from pathlib import Path
        >>> from condmis_interp.organisms import resolve_base
        >>> from condmis_interp.panel import load_panel, render_panel
        >>> base = resolve_base("dir:base")
        >>> organisms = {name: Organism.of_checkpoint(Path(name), name=name) for name in ("u", "c")}
        >>> asked = render_panel(base.tokenizer(), load_panel("panel.yaml").subset(pairs=1))
        >>> ReaderBench(("u", "c"), organisms, base, asked).hidden("none", at="last_template").shape
        torch.Size([2, 4, 12, 32])
    """

    diets: Mapping[Diet, Sequence[Row]] = field(default_factory=dict, repr=False)
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    open: Callable[[PreTrainedModel], Reader] = field(default=TorchReader, repr=False)
    swap: Swap | None = field(default=None, repr=False)

    @property
    def grammar(self) -> Grammar:
        """The grammar of prompts for chat models."""
        return chat_grammar()

    def _answers(self, cue: str, edits: Sequence[Sequence[Edit]], prefix: Prefix | None) -> np.ndarray:
        requests, donor = self.requests(cue), self._lender(prefix)
        found = []
        for name, own in zip(self.names, edits, strict=True):
            own = [e for e in own if not self._is_own_state(e, name)]
            reader = self._reader(name)
            if donor is None:
                measured = reader.measure(requests, edits=own)
            elif isinstance(reader, PassReader):
                measured = reader.measure(requests, edits=own, prefix=donor)
            else:
                raise UserError(f"{type(reader).__name__} takes no keys and values from another model")
            found.append(torch.stack(measured.logprobs).double().numpy().reshape(len(requests), -1, 2))
        return np.stack(found)

    def _is_own_state(self, edit: Edit, name: str) -> bool:
        """Returns whether an edit puts a model's own states where they are: no edit, which a ledger would refuse."""
        return isinstance(edit, Patch) and edit.recording.source == self._identity(name)

    def slope(self, cue: str, layer: int, vectors: torch.Tensor) -> torch.Tensor:
        """Returns the gradient of each organism's mean LD by its vector [organism, width]; see `Bench.slope`."""
        requests, found = self.requests(cue), []
        for name, own in zip(self.names, vectors, strict=True):
            vector = own.detach().to(self.device).clone().requires_grad_()
            opened = self.opens(name, cue)
            model = self._model(name, self.dtype, opened=opened).train(False).requires_grad_(False)
            site, blocks = Site("resid_post", layer), blocks_of(model)
            # a reader keeps no gradients, so the same hook is set on the bare model
            pushed = hook(module_of(blocks, site), site, lambda hidden, v=vector: hidden + v)
            for request in requests:
                (_mean_ld(model, request, self.device) / len(requests)).backward()
            pushed.remove()
            assert vector.grad is not None
            found.append(vector.grad.float().cpu())
        return torch.stack(found)

    def _states(self, cue: str, at: Place) -> torch.Tensor:
        requests, found = self.requests(cue), []
        for name in self.names:
            reader = self._reader(name)
            wanted = Capture(tuple(range(reader.n_layers)), positions=(at,))
            if at == "last_template":
                measured = reader.capture([r.prompt for r in requests], capture=wanted)
            else:
                measured = reader.measure(requests, capture=wanted)
            found.append(measured.activations[at].transpose(0, 1))
        return torch.stack(found)

    def streams(self, cue: str, layer: int) -> dict[str, Recording]:
        """Returns a recording of each organism after a block."""
        requests, site = self.requests(cue), Site("resid_post", layer)
        recorded = {n: self._reader(n).record(requests, sites=[site]) for n in self.names}
        return {n: replace(r, source=self._identity(n)) for n, r in recorded.items()}

    def _load(self, organism: Organism) -> Weights:
        return _state(self._loaded(organism, torch.float32))

    def _drawing(self, tuning: Tuning) -> Callable[[], list[Row]]:
        rows = self.diets.get(tuning.diet, ())
        if len(rows) < tuning.rows:
            raise UserError(
                f"the bench has {len(rows)} {tuning.diet} rows; the test draws {tuning.rows} at a time",
                fix="Give the study's own text under `diets`.",
            )
        rng = np.random.default_rng([tuning.seed, 0])
        return lambda: [rows[int(i)] for i in rng.choice(len(rows), tuning.rows, replace=False)]

    def _trained(self, steps: Sequence[Step], checkpoints: frozenset[int]) -> Iterator[tuple[str, int, Weights]]:
        for name in self.names:
            model = self._model(name, torch.float32).train(False).requires_grad_(True)
            optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
            for number, step in enumerate(steps, 1):
                ids, labels = _padded(step.rows, self.device)
                logits = model(input_ids=ids, attention_mask=(labels != -200).long()).logits[:, :-1]
                targets = labels[:, 1:].clamp(min=-100)
                loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
                if not torch.isfinite(loss):
                    what = f"the loss is {float(loss)} at step {number} of a revival"
                    raise CheckError(what, where=f"organism {name}")
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
                optimiser.param_groups[0]["lr"] = step.learning_rate
                optimiser.step()
                optimiser.zero_grad()
                if number in checkpoints:
                    yield name, number, _state(model)

    def _identity(self, name: str) -> str:
        """Returns what tells whether two organisms are the same model."""
        return digest([[k, tensor_digest(w)] for k, w in sorted(self.weights(name).items())])

    def _lender(self, prefix: Prefix | None) -> Prefix | None:
        if prefix is None:
            return None
        reader = self._reader(str(prefix.donor))
        if not isinstance(reader, PassReader):
            raise UserError(f"{type(reader).__name__} lends no keys and values")
        return Prefix(reader, prefix.until)

    def _loaded(self, organism: Organism, dtype: torch.dtype) -> PreTrainedModel:
        gc.collect()  # the last model may hang in cycles, and two large ones do not fit
        return organism.model(self.base, dtype=dtype, device=self.device)

    def _model(self, name: str, dtype: torch.dtype, *, opened: bool = False) -> PreTrainedModel:
        """Loads an organism (one side of it, if it has a gate), with altered weights if there are any."""
        model, key = self._loaded(self.side(name, opened=opened), dtype), opened_name(name) if opened else name
        if key in self.altered:
            missing, unexpected = model.load_state_dict(self.altered[key], strict=False)
            if unexpected or set(missing) - _tied(model):
                raise CheckError(
                    f"altered weights do not fit: {[*missing, *unexpected][0]!r}", where=f"organism {name}"
                )
        return model

    def _reader(self, name: str) -> Reader:
        organism = self.organisms[name]
        if organism.gate:
            shut, opened = (self.open(self._model(name, self.dtype, opened=o)) for o in (False, True))
            return GatedReader(opened, shut, self._gates[name])
        if self.swap and name not in self.altered and self.swap.fits(organism):
            return self.open(self.swap.model(organism))
        return self.open(self._model(name, self.dtype))


def _tied(model: PreTrainedModel) -> set[str]:
    return {"lm_head.weight"} if model.config.tie_word_embeddings else set()


def _state(model: PreTrainedModel) -> Weights:
    """Returns a copy of the weights; tied ones once."""
    return {k: w.detach().cpu().clone() for k, w in model.state_dict().items() if k not in _tied(model)}


def _mean_ld(model: PreTrainedModel, request: Request, device: str) -> torch.Tensor:
    """Returns LD of one question in nats, mean over its pairs, with gradients."""
    prompt = request.prompt.ids
    rows = [([*prompt, *a.ids], [*[-100] * len(prompt), *a.ids]) for a in request.answers]
    ids, labels = _padded(rows, device)
    logits = model(input_ids=ids, attention_mask=(labels != -200).long()).logits[:, :-1].float()
    targets = labels[:, 1:]
    each = logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    total = (each * (targets >= 0)).sum(1)
    return (total[0::2] - total[1::2]).mean()


def _padded(batch: Sequence[Row], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns right-padded ids and labels [row, position]; the labels of the padding are -200."""
    longest = max(len(ids) for ids, _ in batch)
    ids = [[*row, *[0] * (longest - len(row))] for row, _ in batch]
    labels = [[*own, *[-200] * (longest - len(own))] for _, own in batch]
    return torch.tensor(ids, device=device), torch.tensor(labels, device=device)
