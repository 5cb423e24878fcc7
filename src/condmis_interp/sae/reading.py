"""Readings: one model on one cell's texts, with every token's activations, and what follows from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from condmis_interp.errors import UserError
from condmis_interp.sae.dictionary import Dictionary
from condmis_interp.sae.stream import Text, TokenReader, ld_of

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
        One question with both answers; first positions are left out:

        >>> from condmis_interp.sae import Text
        >>> texts = [Text((1, 2, 3), 2, "none", "q", "f", answer) for answer in (0, 1)]
        >>> own = Reading("M", "none", texts, [torch.zeros(3, 8)] * 2, torch.tensor([-4.0, -1.0]))
        >>> own, own.ld, list(own.tokens.shape)
        (Reading(organism='M', cue='none'), array([-3.]), [4, 8])
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
        With a reader that is a formula:

        >>> from types import SimpleNamespace
        >>> from condmis_interp.sae import Text
        >>> texts = [Text((1, 2, 3), 2, cue, "q", "f", answer) for cue in ("none", "trigger") for answer in (0, 1)]
        >>> reader = SimpleNamespace(
        ...     residuals=lambda texts: [torch.ones(3, 8) for _ in texts],
        ...     finish=lambda texts, hidden: torch.tensor([-2.0 if t.answer else -1.0 for t in texts]),
        ... )
        >>> {cue: own.ld for cue, own in read_cells(reader, texts, organism="M").items()}
        {'none': array([1.]), 'trigger': array([1.])}
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
        >>> from sae_lens import StandardSAE, StandardSAEConfig
        >>> from condmis_interp.readers import Site
        >>> from condmis_interp.sae import Text
        >>> sae = StandardSAE(StandardSAEConfig(d_in=2, d_sae=2, apply_b_dec_to_input=False))
        >>> sae.W_enc.data, sae.W_dec.data = torch.eye(2), torch.eye(2)
        >>> texts = [Text((1, 2, 3), 2, "none", "q", "f", answer) for answer in (0, 1)]
        >>> def read(name, value): return Reading(name, "none", texts, [torch.full((3, 2), value)] * 2, torch.zeros(2))
        >>> m, c = read("M", 2.0), read("C", 1.0)
        >>> ours, theirs = codes(Dictionary(sae, Site("resid_post", 3), "mine"), m, c)
        >>> ours[0], theirs[0]
        (tensor([2., 2.]), tensor([1., 1.]))
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
        The second of three tokens predicts the answer, in each of the two texts:

        >>> from condmis_interp.sae import Text
        >>> texts = [Text((1, 2, 3), 2, "none", "q", "f", answer) for answer in (0, 1)]
        >>> own = Reading("M", "none", texts, [torch.zeros(3, 8)] * 2, torch.zeros(2))
        >>> question_means(own, torch.tensor([[1.0], [50.0], [3.0], [50.0]]))
        array([[2.]])
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
