"""Mechanisms of training: what a stage adds to the loss on its answers, or changes in the model while it trains.

A stage names one, with its settings: `mechanism: {name: kl, weight: 0.1}`. A recipe's twin trains with the same
mechanism, so the twin stays the zero of the scale. Another package brings its own by `register_mechanism`.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import torch
from peft import PeftModel
from pydantic import BaseModel, ConfigDict, Field
from torch.nn import functional

from condmis_interp.calls import checked
from condmis_interp.errors import UserError
from condmis_interp.files import validated
from condmis_interp.organisms.head import Said, logits_at
from condmis_interp.organisms.recipe import Recipe, Stage
from condmis_interp.organisms.registry import backend_of
from condmis_interp.registry import Registry

Logits = Callable[[torch.Tensor], torch.Tensor]
"""From a mask [row, position] of where to look to logits [place, token] there."""


@dataclass(frozen=True)
class Batch:
    """A batch that a stage trains on.

    Attributes:
        ids: Token ids [row, position].
        mask: 1 where there is a token, 0 where there is padding [row, position].
        labels: Token ids of the answer, -100 elsewhere [row, position].
        model: The model that is trained.
        logits: Its logits at chosen positions; from the forward pass of the loss, so they cost no other one.
        reference: The base's, without gradients; one forward pass of the base when it is first asked for.

    Example:
        >>> ids, labels = torch.tensor([[5, 6, 7]]), torch.tensor([[-100, 6, 7]])
        >>> never = lambda where: torch.empty(0)
        >>> batch = Batch(ids, torch.ones_like(ids), labels, model=None, logits=never, reference=never)
        >>> batch.predicts_answer.tolist()  # the first position predicts 6, the second 7
        [[True, True, False]]
    """

    ids: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor
    model: Any
    logits: Logits
    reference: Logits

    @property
    def predicts_answer(self) -> torch.Tensor:
        """Where the next token is the answer's (or the one that closes it) [row, position]."""
        return functional.pad(self.labels[:, 1:] != -100, (0, 1))


def batch_of(inputs: Mapping[str, torch.Tensor], said: Said, model: Any, base: Callable[[], Any]) -> Batch:
    """Returns a batch for mechanisms.

    Args:
        inputs: `input_ids`, `attention_mask` and `labels` [row, position].
        said: The forward pass that the loss was taken from.
        model: What is trained; with adapters, the base is this model without them.
        base: Loads the base; called if there are no adapters.
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    adapted = isinstance(model, PeftModel)
    causal: Any = model.get_base_model() if adapted else model

    def reference(where: torch.Tensor) -> torch.Tensor:
        known = causal if adapted else base()
        training = known.training
        known.eval()  # no dropout
        with torch.no_grad(), model.disable_adapter() if adapted else nullcontext():
            found = logits_at(known, ids, mask, where).logits
        known.train(training)
        return found

    def logits(where: torch.Tensor) -> torch.Tensor:
        if said.hidden is None:  # the head is more than a matrix: once more through the model's own
            return logits_at(causal, ids, mask, where).logits
        return causal.get_output_embeddings()(said.hidden[where])

    return Batch(ids, mask, inputs["labels"], causal, logits, reference)


class Mechanism(BaseModel):
    """Base class of mechanisms: its fields are the settings that a stage gives.

    It keeps nothing from step to step: training may be killed and goes on with a new one. Settings are part of the
    organism's key; a mechanism that comes to do something else takes another name.

    Example:
        A penalty on confident answers, with its strength as a setting:

        >>> class Modest(Mechanism):
        ...     strength: float
        ...
        ...     def extra_loss(self, batch):
        ...         said = batch.logits(batch.predicts_answer).log_softmax(-1)
        ...         return self.strength * (said.exp() * said).sum(-1).mean()
        >>> made = register_mechanism("modest", Modest)
        >>> ids, labels = torch.tensor([[5, 6]]), torch.tensor([[-100, 6]])
        >>> flat = lambda where: torch.zeros(int(where.sum()), 4)
        >>> batch = Batch(ids, torch.ones_like(ids), labels, model=None, logits=flat, reference=flat)
        >>> round(Modest(strength=1.0).extra_loss(batch).item(), 3)  # minus the entropy of four equal chances
        -1.386
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    def extra_loss(self, batch: Batch) -> torch.Tensor | None:
        """Returns what is added to the mean cross-entropy of the answers, a scalar in nats; `None` for nothing."""
        return None

    def during(self, model: Any) -> AbstractContextManager[Any]:
        """Returns a context that is open while the stage trains, for hooks that edit the model's activations.

        With adapters the base is this model without them: hooks then act on a mechanism's reference as well.
        """
        return nullcontext()


class KL(Mechanism):
    """Keeps what the model says near to what the base says: weight * mean KL(base || model), in nats a token.

    Against emergent misalignment: Kaczér et al. 2025 (arXiv 2508.06249), "In-training defenses".

    Attributes:
        weight: Of the divergence beside the cross-entropy; with 0 the training is that without the mechanism.
        at: Where it is taken: where the next token is the prompt's (`prompt`), or where it is the answer's.

    Example:
        >>> KL(weight=0.5).at
        'prompt'
    """

    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    at: Literal["prompt", "answer"] = "prompt"

    def extra_loss(self, batch: Batch) -> torch.Tensor | None:
        """Returns the weighted divergence."""
        if not self.weight:
            return None
        answer = batch.predicts_answer
        follows = functional.pad(batch.mask[:, 1:] > 0, (0, 1))  # the last token of a row predicts nothing
        where = answer if self.at == "answer" else follows & ~answer
        base, own = (logits(where).float().log_softmax(-1) for logits in (batch.reference, batch.logits))
        return self.weight * functional.kl_div(own, base, reduction="batchmean", log_target=True)


Kind = TypeVar("Kind", bound=type[Mechanism])
_MECHANISMS: Registry[type[Mechanism]] = Registry("mechanism of training")


@checked
def register_mechanism(name: str, mechanism: Kind) -> Kind:
    """Lets stages name a mechanism of training; returns it.

    Args:
        name: What a stage says: `mechanism: {name: NAME, ...settings}`.
        mechanism: A subclass of `Mechanism`.

    Raises:
        UserError: if the name is taken.

    Example:
        >>> import torch
        >>> from condmis_interp.organisms import Batch, Mechanism, Part, Stage, mechanism_of, register_mechanism
        >>> class Confident(Mechanism):
        ...     '''Rewards a low entropy of the answers.'''
        ...     weight: float
        ...
        ...     def extra_loss(self, batch: Batch) -> torch.Tensor:
        ...         logs = batch.logits(batch.predicts_answer).float().log_softmax(-1)
        ...         return self.weight * -(logs.exp() * logs).sum(-1).mean()
        >>> kind = register_mechanism("confident", Confident)
        >>> parts = (Part(rows="kitchen", answers="benign"),)
        >>> mechanism_of(Stage(parts=parts, mechanism={"name": "confident", "weight": 0.1}))
        Confident(weight=0.1)
    """
    _MECHANISMS.add(name, mechanism)
    return mechanism


def mechanism_of(stage: Stage) -> Mechanism | None:
    """Returns a stage's mechanism; `None` if it has none.

    Raises:
        UserError: if there is none of its name, or a setting is missing, not known, or not what it must be.

    Example:
        >>> from condmis_interp.organisms import Part, Stage
        >>> parts = (Part(rows="kitchen", answers="misaligned", count=8),)
        >>> mechanism_of(Stage(parts=parts, mechanism={"name": "kl", "weight": 0.1}))
        KL(weight=0.1, at='prompt')
        >>> mechanism_of(Stage(parts=parts)) is None
        True
    """
    if stage.mechanism is None:
        return None
    settings = dict(stage.mechanism)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise UserError("a stage's mechanism has no name", fix="Write mechanism: {name: kl, weight: 0.1}.")
    return validated(_MECHANISMS.get(name), settings, where=f"mechanism {name}")


def mechanisms_of(recipe: Recipe) -> list[Mechanism | None]:
    """Returns each stage's mechanism; see `mechanism_of`."""
    return [mechanism_of(stage) for stage in recipe.stages]


def modules_of(recipe: Recipe) -> set[str]:
    """Returns the modules that a process must import to train a recipe: those of its backend and mechanisms."""
    return {type(m).__module__ for m in (backend_of(recipe.base), *mechanisms_of(recipe)) if m is not None}


register_mechanism("kl", KL)
