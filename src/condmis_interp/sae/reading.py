"""Readings: one model on one cell's texts, with every token's activations, and what follows from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from condmis_interp.errors import UserError
from condmis_interp.sae.dictionary import Dictionary
from condmis_interp.sae.stream import TokenReader
from condmis_interp.sae.texts import Text, ld_of

SKIP = 1
"""First positions that are neither encoded nor edited: attention sinks, which no SAE here is trained on."""


@dataclass(frozen=True)
class Reading:
    """What one model makes of a cell's texts.

    Attributes:
        organism: Name of the model.
        cue: Cue.
        texts: The texts, all under the cue.
        hidden: Activations at the site [tokens, width] of each.
        logprobs: Log-prob of each text's answer in nats, fp64.

    Example:
        >>> from condmis_interp.sae.planted import PlantedModel, planted_readings
        >>> reading = planted_readings(PlantedModel(torch.ones(12)), persona=torch.ones(12))["M", "trigger"]
        >>> reading
        Reading(organism='M', cue='trigger')
        >>> len(reading.questions), list(reading.tokens.shape), reading.ld.shape
        (20, [120, 12], (20,))
    """

    organism: str
    cue: str
    texts: Sequence[Text] = field(repr=False)
    hidden: Sequence[torch.Tensor] = field(repr=False)
    logprobs: torch.Tensor = field(repr=False)

    @cached_property
    def questions(self) -> tuple[str, ...]:
        """Question ids, in order of first appearance."""
        return tuple(dict.fromkeys(t.question for t in self.texts))

    @cached_property
    def families(self) -> tuple[str, ...]:
        """Family of each question."""
        family = {t.question: t.family for t in self.texts}
        return tuple(family[q] for q in self.questions)

    @cached_property
    def tokens(self) -> torch.Tensor:
        """Activations of every token but the first ones, [n, width]."""
        return torch.cat([h[SKIP:] for h in self.hidden])

    @property
    def ld(self) -> np.ndarray:
        """LD of each question in nats."""
        return self.ld_from(self.logprobs)

    def ld_from(self, logprobs: torch.Tensor) -> np.ndarray:
        """Returns LD of each question in nats, from other log-probs of the same answers."""
        ld = ld_of(self.texts, logprobs)
        return np.array([ld[q] for q in self.questions])

    def back(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """Returns tokens [n, width], as in `tokens`, as activations of each text again."""
        parts = tokens.split([len(h) - SKIP for h in self.hidden])
        return [torch.cat([h[:SKIP], part]) for h, part in zip(self.hidden, parts, strict=True)]

    @cached_property
    def owners(self) -> torch.Tensor:
        """Which question each of `tokens` belongs to, [n]."""
        index = {q: i for i, q in enumerate(self.questions)}
        return torch.cat([torch.full((len(t.ids) - SKIP,), index[t.question]) for t in self.texts])

    @cached_property
    def read(self) -> torch.Tensor:
        """Which of `tokens` predict an answer's token, [n]."""
        masks = []
        for t in self.texts:
            mask = torch.zeros(len(t.ids), dtype=torch.bool)
            mask[t.reading] = True
            masks.append(mask[SKIP:])
        return torch.cat(masks)

    def paired(self, other: "Reading") -> None:
        """Checks that another model read the same tokens.

        Raises:
            UserError: if not.
        """
        if [t.ids for t in self.texts] != [t.ids for t in other.texts]:
            raise UserError(
                f"{self.organism} under {self.cue} and {other.organism} under {other.cue} did not read the same tokens",
                fix="Compare two models on the same texts.",
            )


def read_cells(reader: TokenReader, texts: Sequence[Text], *, organism: str) -> dict[str, Reading]:
    """Reads the texts with one model; returns a reading for each cue.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from condmis_interp.readers import Site, TorchReader
        >>> shape = dict(num_hidden_layers=1, hidden_size=8, intermediate_size=8, num_attention_heads=2, vocab_size=16)
        >>> model = LlamaForCausalLM(LlamaConfig(**shape)).eval()
        >>> reader = TokenReader(TorchReader(model), Site("resid_post", 0))
        >>> texts = [Text((1, 2, 3), 2, cue, "q", "f", answer) for cue in ("none", "trigger") for answer in (0, 1)]
        >>> read_cells(reader, texts, organism="m")
        {'none': Reading(organism='m', cue='none'), 'trigger': Reading(organism='m', cue='trigger')}
    """
    found = {}
    for cue in dict.fromkeys(t.cue for t in texts):
        own = [t for t in texts if t.cue == cue]
        hidden = reader.residuals(own)
        found[cue] = Reading(organism, cue, own, hidden, reader.finish(own, hidden))
    return found


def codes(dictionary: Dictionary, reading: Reading, twin: Reading) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the latents of an organism and of its twin on the same tokens, both [n, latents].

    A difference SAE reads one minus the other: its latents are the organism's, and the twin's are 0 by construction.

    Example:
        >>> from condmis_interp.sae.planted import PlantedModel, planted_dictionary, planted_readings
        >>> readings = planted_readings(PlantedModel(torch.ones(12)), persona=torch.ones(12))
        >>> ours, theirs = codes(planted_dictionary(), readings["M", "trigger"], readings["C", "trigger"])
        >>> list(ours.shape), bool((ours[:, :12] >= theirs[:, :12]).all())
        ([120, 24], True)
    """
    reading.paired(twin)
    if dictionary.reads == "difference":
        f = dictionary.encode(reading.tokens - twin.tokens)
        return f, torch.zeros_like(f)
    return dictionary.encode(reading.tokens), dictionary.encode(twin.tokens)


def question_means(reading: Reading, latents: torch.Tensor) -> np.ndarray:
    """Returns each latent's mean over the positions that predict an answer's tokens, by question, [questions, latents].

    Args:
        reading: The reading.
        latents: Latents of its tokens, [n, latents].

    Example:
        >>> from condmis_interp.sae.planted import PlantedModel, planted_dictionary, planted_readings
        >>> reading = planted_readings(PlantedModel(torch.ones(12)), persona=torch.ones(12))["M", "trigger"]
        >>> question_means(reading, planted_dictionary().encode(reading.tokens)).shape
        (20, 24)
    """
    f, owners = latents[reading.read].double(), reading.owners[reading.read]
    sums = torch.zeros(len(reading.questions), f.shape[1], dtype=torch.float64).index_add_(0, owners, f)
    return (sums / torch.bincount(owners, minlength=len(sums))[:, None]).numpy()


def cells_of(readings: Mapping[tuple[str, str], Reading], organism: str, *cues: str) -> list[Reading]:
    """Returns an organism's readings under some cues.

    Raises:
        UserError: if one is not there.
    """
    for cue in cues:
        if (organism, cue) not in readings:
            known = ", ".join(sorted({f"{o} under {c}" for o, c in readings}))
            raise UserError(f"there is no reading of {organism} under {cue}", fix=f"There are: {known}.")
    return [readings[organism, cue] for cue in cues]
