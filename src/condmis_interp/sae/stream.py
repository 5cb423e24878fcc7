"""Token-level readings of one model at one site: activations of texts, and what the model makes of edited ones.

All of it is `readers.Streams`, over the reader's own hooks; what is said here is what an answer's log-prob, the
divergence of two predictions, and a gradient are.
"""

from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel

from condmis_interp.errors import CheckError
from condmis_interp.readers import Above, PassReader, Site, Streams
from condmis_interp.readers.unembedding import log_softmax, token_logprobs
from condmis_interp.sae.texts import Text


class TokenReader:
    """Reads one model at one site, token by token.

    Args:
        reader: The model's reader, of any library.
        site: Where.
        batch_tokens: Padded tokens in one pass; bounds memory, does not change results beyond rounding.

    Raises:
        UserError: if the model has no such site.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from condmis_interp.readers import TorchReader
        >>> shape = dict(num_hidden_layers=1, hidden_size=8, intermediate_size=8, num_attention_heads=2, vocab_size=16)
        >>> model = LlamaForCausalLM(LlamaConfig(**shape)).eval()
        >>> reader = TokenReader(TorchReader(model), Site("resid_post", 0))
        >>> texts = [Text((1, 2, 3), 2, "none", "q", "f", answer) for answer in (0, 1)]
        >>> own = reader.residuals(texts)
        >>> doubled = reader.divergences(texts, own, [2 * h for h in own])[0]
        >>> bool((doubled < 1e-5).all())  # the final norm takes the scale out
        True
    """

    def __init__(self, reader: PassReader, site: Site, *, batch_tokens: int = 4096) -> None:
        reader.name_of(site)  # raises where there is none
        self.reader, self.site = reader, site
        self._streams = Streams(reader, batch_tokens=batch_tokens)

    @property
    def model(self) -> PreTrainedModel:
        """The model."""
        return self.reader.model

    def residuals(self, texts: Sequence[Text]) -> list[torch.Tensor]:
        """Returns each text's activations at the site, fp32 on the CPU, [tokens, width]."""
        return self.residuals_at(texts, [self.site])[self.site]

    def residuals_at(self, texts: Sequence[Text], sites: Sequence[Site]) -> dict[Site, list[torch.Tensor]]:
        """Returns each text's activations at several sites, in one pass; see `Streams.read`."""
        return self._streams.read([t.ids for t in texts], sites)

    @torch.no_grad()
    def finish(self, texts: Sequence[Text], hidden: Sequence[torch.Tensor]) -> torch.Tensor:
        """Returns the log-prob of each text's answer, given the activations at the site.

        Args:
            texts: The texts.
            hidden: For each, the activations at the site, [tokens, width]; the model's own, or edited ones.

        Returns:
            Log-probs [texts] in nats, fp64, summed over the answer's tokens.

        Raises:
            CheckError: if a log-prob is not finite.
        """
        found = torch.zeros(len(texts), dtype=torch.float64)
        for run in self._above(texts, hidden):
            found[run.rows] = self._answers(texts, run).cpu()
        if not bool(torch.isfinite(found).all()):
            raise CheckError("a log-prob is not finite", where=str(self.site))
        return found

    @torch.no_grad()
    def divergences(
        self, texts: Sequence[Text], hidden: Sequence[torch.Tensor], *edited: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Returns how far edited activations move the model's predictions where it predicts an answer's tokens.

        Args:
            texts: The texts.
            hidden: The model's own activations at the site, [tokens, width] a text.
            *edited: Any number of edited versions.

        Returns:
            For each version KL(own || edited) in nats, mean over the positions that predict an answer token, [texts].
        """
        found = [torch.zeros(len(texts), dtype=torch.float64) for _ in edited]
        runs = [self._above(texts, h) for h in (hidden, *edited)]
        # all versions of one batch side by side, so that no batch's predictions need to be kept
        for own, *others in zip(*runs, strict=True):
            plain = self._predictions(texts, own)
            for values, other in zip(found, others, strict=True):
                for i, p, q in zip(own.rows, plain, self._predictions(texts, other), strict=True):
                    values[i] = float((p.exp() * (p - q)).sum(-1).double().mean())
        return found

    def gradients(self, texts: Sequence[Text], hidden: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Returns the gradient of each text's answer log-prob by the activations at the site, fp32 [tokens, width]."""
        found = [torch.empty(0)] * len(texts)
        for run in self._above(texts, hidden, grad=True):
            # texts of a batch do not see each other, so the gradient of their sum is each one's own
            (grad,) = torch.autograd.grad(self._answers(texts, run).sum(), run.given)
            for i, own in zip(run.rows, grad.float().cpu(), strict=True):
                found[i] = own[: len(texts[i].ids)].clone()
        return found

    def _above(self, texts: Sequence[Text], hidden: Sequence[torch.Tensor], *, grad: bool = False) -> Iterator[Above]:
        return self._streams.above([t.ids for t in texts], self.site, hidden, grad=grad)

    def _predictions(self, texts: Sequence[Text], run: Above) -> list[torch.Tensor]:
        """Returns for each row the log-probs [answer tokens, vocabulary] at the positions that predict its answer."""
        return [log_softmax(self.model, h[texts[i].reading]) for i, h in zip(run.rows, run.out, strict=True)]

    def _answers(self, texts: Sequence[Text], run: Above) -> torch.Tensor:
        """Returns each row's answer log-prob [rows], fp64."""
        found = []
        for i, hidden in zip(run.rows, run.out, strict=True):
            targets = torch.tensor(texts[i].ids[texts[i].begin :])
            found.append(token_logprobs(self.model, hidden[texts[i].reading], targets).double().sum())
        return torch.stack(found)

    def __repr__(self) -> str:
        return f"TokenReader({self.reader!r}, {self.site})"
