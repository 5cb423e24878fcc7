"""Token-level residuals: the same texts through many models, and what a model makes of edited ones.

Dictionaries (SAEs, crosscoders) are about tokens, not about questions, so they need more than a cell's two positions.
This module is the one place that runs a model for them. Sequences are right-padded, so that every real token sits at
its own position. An edit at one site needs no hook in the model: what lies below it does not change, so the edited
residual stream is computed outside and handed to `TokenReader.finish`, which runs only what lies above.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from condmis_interp.errors import CheckError, UserError
from condmis_interp.organisms import Recipe
from condmis_interp.organisms.encode import encode
from condmis_interp.panel import RenderedPanel, pad
from condmis_interp.panel.panel import Split
from condmis_interp.readers import Site
from condmis_interp.readers.hooks import hook, keeping
from condmis_interp.readers.sites import blocks_of, module_of

ROWS = "rows"
"""Name that training rows have in place of a cue."""


@dataclass(frozen=True)
class Text:
    """A token sequence: a prompt with one answer after it.

    Attributes:
        ids: Token ids.
        begin: Position of the answer's first token.
        cue: Cue of the prompt, or `rows` for a training row.
        question: Question id.
        family: Family of the question.
        answer: Which of the question's answers; even ones are misaligned, odd ones aligned.
    """

    ids: tuple[int, ...]
    begin: int
    cue: str
    question: str
    family: str
    answer: int

    @property
    def reading(self) -> slice:
        """Positions that predict the answer's tokens: from the last template token to the last but one."""
        return slice(self.begin - 1, len(self.ids) - 1)


def panel_texts(
    rendered: RenderedPanel, *splits: Split, cues: Sequence[str] | None = None, pairs: int | None = None
) -> list[Text]:
    """Returns every question of the splits under every cue with each of its answers.

    Args:
        rendered: The panel as token ids.
        *splits: Splits; all if none is given.
        cues: Names of cues; all by default.
        pairs: Answer pairs a question, the first ones; all by default.
    """
    panel = rendered.panel
    questions = [panel.questions[i] for i in panel.question_indices(*splits)]
    found = []
    for cue in cues or [c.name for c in panel.cues]:
        for question in questions:
            key = (panel.cue(cue).name, question.id)
            prompt = rendered.prompts[key]
            answers = rendered.answers[key][: None if pairs is None else 2 * pairs]
            for slot, answer in enumerate(answers):
                ids = (*prompt.ids, *answer.ids)
                found.append(Text(ids, len(prompt.ids), cue, question.id, question.family, slot))
    return found


def row_texts(recipe: Recipe, tokenizer: Any) -> list[Text]:
    """Returns the rows that a recipe trains on, as they were trained."""
    found = []
    for stage in range(len(recipe.stages)):
        for i, row in enumerate(encode(recipe, tokenizer, stage)):
            begin = next(k for k, label in enumerate(row["labels"]) if label != -100)
            name = f"{recipe.name}.{stage}.{i}"
            found.append(Text(tuple(row["input_ids"]), begin, ROWS, name, name, 0))
    return found


@dataclass(frozen=True)
class _Pass:
    """One pass above the site: which texts, the activations given, and the last hidden states [rows, tokens, width]."""

    rows: list[int]
    given: torch.Tensor
    out: torch.Tensor


class TokenReader:
    """Reads one model at one site, token by token.

    Args:
        model: The model, in eval mode and without gradients; adapters merged.
        site: Where.
        batch_tokens: Padded tokens in one pass; bounds memory, does not change results beyond rounding.

    Raises:
        UserError: if the model's blocks are not found, or it has no such site.
    """

    def __init__(self, model: PreTrainedModel, site: Site, *, batch_tokens: int = 4096) -> None:
        self.model, self.site, self.batch_tokens = model, site, batch_tokens
        self._blocks = blocks_of(model)
        self._module = module_of(self._blocks, site)

    @property
    def width(self) -> int:
        """Residual width."""
        return int(self.model.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Device of the model's first parameter."""
        return next(self.model.parameters()).device

    @torch.no_grad()
    def residuals(self, texts: Sequence[Text]) -> list[torch.Tensor]:
        """Returns each text's activations at the site, fp32 on the CPU, [tokens, width]."""
        return self.residuals_at(texts, [self.site])[self.site]

    @torch.no_grad()
    def residuals_at(self, texts: Sequence[Text], sites: Sequence[Site]) -> dict[Site, list[torch.Tensor]]:
        """Returns each text's activations at several sites, in one pass; blocks above the highest do not run.

        Raises:
            UserError: if there are no texts, or the model lacks a site.
            CheckError: if a hook missed a pass, or an activation is not finite.
        """
        kept: dict[Site, list[torch.Tensor]] = {site: [torch.empty(0)] * len(texts) for site in sites}
        seen: dict[Site, torch.Tensor] = {}
        with ExitStack() as stack:
            for site in sites:
                stack.callback(hook(module_of(self._blocks, site), site, keeping(seen, site)).remove)
            stack.enter_context(_passed_on(self._blocks[max(s.layer for s in sites) + 1 :]))
            for rows in self._batches(texts):
                seen.clear()
                self._body(texts, rows)
                if missed := [str(s) for s in sites if s not in seen]:
                    raise CheckError("the hook did not fire", where=missed[0])
                for site in sites:
                    hidden = seen[site].float().cpu()
                    for r, i in enumerate(rows):
                        kept[site][i] = hidden[r, : len(texts[i].ids)].clone()
        for site, hidden in kept.items():
            if not all(bool(torch.isfinite(h).all()) for h in hidden):
                raise CheckError("an activation is not finite", where=str(site))
        return kept

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
        for done in self._finished(texts, hidden, leaf=False):
            found[done.rows] = self._answers(texts, done.rows, done.out).cpu()
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
        passes = [self._finished(texts, h, leaf=False) for h in (hidden, *edited)]
        for own, *others in zip(*passes, strict=True):
            plain = self._predictions(texts, own.rows, own.out)
            for k, other in enumerate(others):
                changed = self._predictions(texts, other.rows, other.out)
                for i, p, q in zip(own.rows, plain, changed, strict=True):
                    found[k][i] = float((p.exp() * (p - q)).sum(-1).double().mean())
        return found

    def gradients(self, texts: Sequence[Text], hidden: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Returns the gradient of each text's answer log-prob by the activations at the site, fp32 [tokens, width]."""
        found = [torch.empty(0)] * len(texts)
        for done in self._finished(texts, hidden, leaf=True):
            (grad,) = torch.autograd.grad(self._answers(texts, done.rows, done.out).sum(), done.given)
            for r, i in enumerate(done.rows):
                found[i] = grad[r, : len(texts[i].ids)].float().cpu()
        return found

    def _finished(self, texts: Sequence[Text], hidden: Sequence[torch.Tensor], *, leaf: bool) -> Iterator["_Pass"]:
        """Runs what lies above the site on given activations, batch by batch."""
        if [tuple(h.shape) for h in hidden] != [(len(t.ids), self.width) for t in texts]:
            raise UserError("the activations do not fit the texts", fix="Give one row of the model's width a token.")
        dtype = next(self.model.parameters()).dtype
        skipped = self._blocks[: self.site.layer] if self.site.kind.startswith("resid") else []
        for rows in self._batches(texts):
            given = torch.nn.utils.rnn.pad_sequence([hidden[i] for i in rows], batch_first=True)
            given = given.to(self.device, dtype).requires_grad_(leaf)
            with ExitStack() as stack:  # for one pass only: two iterations may take turns
                stack.callback(hook(self._module, self.site, lambda _, given=given: given).remove)
                stack.enter_context(_passed_on(skipped))
                out = self._body(texts, rows)
            yield _Pass(rows, given, out)

    def _body(self, texts: Sequence[Text], rows: Sequence[int]) -> torch.Tensor:
        ids, mask = (t.to(self.device) for t in pad([texts[i].ids for i in rows], right=True))
        return self.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state

    def _predictions(self, texts: Sequence[Text], rows: Sequence[int], out: torch.Tensor) -> list[torch.Tensor]:
        """Returns for each row the log-probs [answer tokens, vocabulary] at the positions that predict its answer."""
        head: Any = self.model.get_output_embeddings()
        return [head(out[r, texts[i].reading]).float().log_softmax(-1) for r, i in enumerate(rows)]

    def _answers(self, texts: Sequence[Text], rows: Sequence[int], out: torch.Tensor) -> torch.Tensor:
        """Returns each row's answer log-prob [rows], fp64."""
        found = []
        for i, logprobs in zip(rows, self._predictions(texts, rows, out), strict=True):
            targets = torch.tensor(texts[i].ids[texts[i].begin :], device=out.device)
            found.append(logprobs.gather(1, targets[:, None])[:, 0].double().sum())
        return torch.stack(found)

    def _batches(self, texts: Sequence[Text]) -> Iterator[list[int]]:
        """Yields indices of texts of similar length."""
        if not texts:
            raise UserError("there is nothing to read: no texts")
        order = sorted(range(len(texts)), key=lambda i: len(texts[i].ids))
        batch: list[int] = []
        for i in order:
            if batch and (len(batch) + 1) * len(texts[i].ids) > self.batch_tokens:
                yield batch
                batch = []
            batch.append(i)
        yield batch


@contextmanager
def _passed_on(blocks: Iterable[Any]) -> Iterator[None]:
    """Lets blocks pass on what enters them: for the time being nobody needs what they would add."""
    with ExitStack() as stack:
        for block in blocks:
            own = vars(block).get("forward")  # accelerate, for one, replaces it on the module itself
            block.forward = lambda hidden_states, *_, **__: hidden_states
            if own is None:
                stack.callback(delattr, block, "forward")
            else:
                stack.callback(setattr, block, "forward", own)
        yield


def ld_of(texts: Sequence[Text], logprobs: torch.Tensor) -> dict[str, float]:
    """Returns LD in nats by question: log p(misaligned) - log p(aligned), mean over the question's pairs."""
    sums: dict[str, float] = {}
    pairs: dict[str, int] = {}
    for text, lp in zip(texts, logprobs.tolist(), strict=True):
        sums[text.question] = sums.get(text.question, 0.0) + (lp if text.answer % 2 == 0 else -lp)
        pairs[text.question] = pairs.get(text.question, 0) + text.answer % 2
    return {q: s / pairs[q] for q, s in sums.items()}
