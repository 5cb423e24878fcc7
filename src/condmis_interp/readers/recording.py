"""Recordings of whole sequences, and the edit that patches another run with them.

    h <- h + m * (r - h)              whole residual
    h <- h + m * (r - h) B^T B        within the subspace of an orthonormal basis B [k, width]

with r what was recorded at the same place of the same sequence (by another model, or by the same one under edits), and
m = 1 at the positions in scope. Places are counted from the end of the prompt and from the start of the answer, so a
donor with another prompt (another cue, a shuffled control) can be given for `last_template`, `tail` and `answer`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch

from condmis_interp.calls import check_fields
from condmis_interp.errors import UserError
from condmis_interp.files import digest
from condmis_interp.readers.batching import Pass, Request
from condmis_interp.readers.edits import Edit, Scope, as_tensor, check_basis, check_scopes, tensor_digest, told, union
from condmis_interp.readers.sites import Site

_FROM_THE_END: frozenset[Scope] = frozenset(("tail", "last_template", "answer"))
_OUTLIER = 10.0
"""Tokens with more than this many times the layer's median norm are counted as outliers."""


@dataclass(frozen=True)
class Recording:
    """Residual streams of requests at some sites.

    Attributes:
        requests: The requests, in order.
        prompts: For each request and site, [tokens, width] in the model's dtype, on the CPU.
        answers: For each request and answer, the same over the answer's tokens.
        deal: For each request that is patched, the recorded request it gets.
        source: Hash of the model it was recorded from, where that is known: patching a model with its own states is no
            edit, and a bench leaves it out.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> shape = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "vocab_size": 9}
        >>> model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **shape)).eval()
        >>> from condmis_interp.panel import Answer, Prompt
        >>> from condmis_interp.readers import Request, Site, TorchReader
        >>> prompt = Prompt((0, 4, 5, 1), {"cue": (0, 1), "question": (1, 3), "tail": (3, 4)}, "...")
        >>> asked = [Request(prompt, (Answer((7,), (1,)), Answer((8,), (1,))))]
        >>> TorchReader(model).record(asked, sites=[Site("resid_post", 0)])
        Recording(1 requests at resid_post[0], width 8)
    """

    requests: Sequence[Request] = field(repr=False)
    prompts: Sequence[Mapping[Site, torch.Tensor]] = field(repr=False)
    answers: Sequence[Sequence[Mapping[Site, torch.Tensor]]] = field(repr=False)
    deal: tuple[int, ...] = field(repr=False)
    source: str = ""

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where it was recorded."""
        return tuple(self.prompts[0])

    @property
    def width(self) -> int:
        """Residual width."""
        return next(iter(self.prompts[0].values())).shape[1]

    def dealt(self, order: Sequence[int]) -> "Recording":
        """Returns the recording with request i patched by what was recorded for request `order[i]`.

        A shuffle of the requests is the control that tells what any donor does from what this one does.
        """
        unknown = [i for i in order if not 0 <= i < len(self.requests)]
        if unknown:
            raise UserError(f"there is no recorded request {unknown[0]}", fix=f"There are {len(self.requests)}.")
        return self.of(order)

    def of(self, rows: Sequence[int]) -> "Recording":
        """Returns what patches some of the requests, in their order."""
        return replace(self, deal=tuple(self.deal[i] for i in rows))

    def fingerprint(self, site: Site) -> str:
        """Returns the hash of what is recorded at a site and how it is dealt."""
        parts = [
            [tensor_digest(self.prompts[i][site]), [tensor_digest(a[site]) for a in self.answers[i]]] for i in self.deal
        ]
        return digest(parts)

    def norms(self) -> pd.DataFrame:
        """Returns how large the residual stream is: one row a site.

        Columns: site; median (of token norms); largest; outliers (share of tokens above 10 medians); sink_position and
        sink_id (place in its prompt and id of the token with the largest norm; -1 if it is in an answer);
        dimension_share (share of the mean squared norm in the largest single dimension).
        """
        rows = []
        for site in self.sites:
            states = [p[site].float() for p in self.prompts] + [a[site].float() for r in self.answers for a in r]
            norms = torch.cat([s.norm(dim=1) for s in states])
            power = torch.cat(states).square().mean(0)
            tops = [float(s.norm(dim=1).max()) for s in states]
            top = max(range(len(tops)), key=tops.__getitem__)
            at = int(states[top].norm(dim=1).argmax()) if top < len(self.prompts) else -1
            median = norms.median()
            rows.append(
                {
                    "site": str(site),
                    "median": float(median),
                    "largest": float(norms.max()),
                    "outliers": float((norms > _OUTLIER * median).float().mean()),
                    "sink_position": at,
                    "sink_id": self.requests[top].prompt.ids[at] if at >= 0 else -1,
                    "dimension_share": float(power.max() / power.sum()),
                }
            )
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        where = ", ".join(map(str, self.sites))
        return f"Recording({len(self.requests)} requests at {where}, width {self.width})"


@dataclass(frozen=True)
class Patch:
    """Replaces the residual stream by what was recorded in another run.

    Attributes:
        site: Where; it must have been recorded.
        recording: What to put there.
        scope: Positions that are replaced.
        basis: Orthonormal rows [k, width] of a subspace to stay in; the whole stream by default.
        aligned: `same` if each request was recorded with the very same tokens; `end` if the prompts differ, and places
            are counted from the prompt's end (then only `tail`, `last_template` and `answer` can be patched). What the
            donor lacks stays as it is.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> shape = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "vocab_size": 9}
        >>> model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **shape)).eval()
        >>> from condmis_interp.panel import Answer, Prompt
        >>> from condmis_interp.readers import Request, Site, TorchReader
        >>> prompt = Prompt((0, 4, 5, 1), {"cue": (0, 1), "question": (1, 3), "tail": (3, 4)}, "...")
        >>> asked = [Request(prompt, (Answer((7,), (1,)), Answer((8,), (1,))))]
        >>> recording = TorchReader(model).record(asked, sites=[Site("resid_post", 0)])
        >>> Patch(Site("resid_post", 0), recording).width
        8
    """

    site: Site
    recording: Recording
    scope: frozenset[Scope] = frozenset(("last_template", "answer"))
    basis: torch.Tensor | None = None
    aligned: str = "same"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.site not in self.recording.sites:
            raise UserError(
                f"{self.site} was not recorded", fix=f"Recorded: {', '.join(map(str, self.recording.sites))}."
            )
        check_scopes(self.scope, f"the patch at {self.site}")
        if self.aligned not in ("same", "end"):
            raise UserError(f"a patch is aligned 'same' or 'end', not {self.aligned!r}")
        if self.aligned == "end" and self.scope - _FROM_THE_END:
            raise UserError(
                f"{sorted(self.scope - _FROM_THE_END)[0]!r} cannot be patched from another prompt: its places differ",
                where=f"patch at {self.site}",
            )
        if self.basis is not None:
            object.__setattr__(self, "basis", as_tensor(self.basis, f"the basis at {self.site}"))
            check_basis(self.basis, self.site, tolerance=1e-3)

    @property
    def width(self) -> int:
        """Residual width the edit fits."""
        return self.recording.width

    @property
    def scopes(self) -> frozenset[Scope]:
        """Positions it acts on."""
        return self.scope

    def fingerprint(self) -> list[Any]:
        """Returns what determines the edit, as JSON."""
        basis = None if self.basis is None else tensor_digest(self.basis)
        return ["patch", str(self.site), sorted(self.scope), basis, self.aligned, self.recording.fingerprint(self.site)]

    def check(self, requests: Sequence[Request], *, answers: bool = True) -> None:
        """Raises if the recording does not fit the requests that are to be patched.

        Args:
            requests: The requests.
            answers: Whether their answers count; not where they are generated.

        Raises:
            UserError: if there are fewer donors than requests, or a donor's tokens differ though `aligned` is `same`.
        """
        if len(self.recording.deal) != len(requests):
            raise UserError(
                f"{len(self.recording.deal)} recorded requests cannot patch {len(requests)}",
                where=f"patch at {self.site}",
                fix="Record the requests that are patched, in their order.",
            )
        for i, (d, request) in enumerate(zip(self.recording.deal, requests, strict=True)):
            donor = self.recording.requests[d]
            same = donor.prompt.ids == request.prompt.ids
            if self.aligned == "same" and not (
                same and (not answers or [a.ids for a in donor.answers] == [a.ids for a in request.answers])
            ):
                raise UserError(
                    f"request {i} was recorded with other tokens",
                    where=f"patch at {self.site}",
                    fix="Record the same rendered requests, or patch with aligned='end'.",
                )

    def delta(self, hidden: torch.Tensor, at: Pass) -> torch.Tensor:
        """Returns the change of `hidden` [rows, position, width] in fp32."""
        touched = union(at, self.scope, hidden)
        donated = hidden.to(torch.float32, copy=True)
        for row, ((request, slot), begin) in enumerate(zip(at.owners, at.begin, strict=True)):
            where = touched[row].nonzero()[:, 0]
            if not len(where):
                continue
            donor = self.recording.deal[request]
            again = at.again[row] if at.again else 0
            if slot is None or again:
                states = self.recording.prompts[donor][self.site]
                end = again or _end_of(at, row)
                longer = 0 if self.aligned == "same" else len(states) - end
                asked = where[where < end] if again else where
                # a row that starts with its prompt again counts its places from the answer's start
                place = asked.cpu() + (0 if again else begin) + longer
                _put(donated, row, asked, states, place)
            if slot is not None:
                given = self.recording.answers[donor]
                states = given[slot][self.site] if slot < len(given) else hidden.new_zeros(0, self.width).cpu()
                answered = where[where >= again]
                _put(donated, row, answered, states, answered.cpu() + begin)
        change = donated - hidden.float()
        if self.basis is not None:
            basis = self.basis.to(hidden.device, torch.float32)
            change = change @ basis.T @ basis
        return change

    def __repr__(self) -> str:
        part = "" if self.basis is None else f"rank {len(self.basis)}, "
        return f"Patch({self.site}, {part}{len(self.recording.deal)} requests, at {told(self.scope)})"


def edits_of(edits: Sequence[Edit], rows: Sequence[int]) -> tuple[Edit, ...]:
    """Returns the edits for some of the requests, in their order: patches with what was recorded for these."""
    return tuple(replace(e, recording=e.recording.of(rows)) if isinstance(e, Patch) else e for e in edits)


def _put(into: torch.Tensor, row: int, where: torch.Tensor, states: torch.Tensor, place: torch.Tensor) -> None:
    """Puts recorded states at places into a row, where the donor has them."""
    there = (place >= 0) & (place < len(states))
    into[row, where[there.to(where.device)]] = states[place[there]].to(into.device, torch.float32)


def _end_of(at: Pass, row: int) -> int:
    """Returns how many tokens a row's prompt has, as far as this pass shows: its last real column is its last token."""
    return at.begin[row] + int(at.real[row].nonzero()[-1]) + 1
