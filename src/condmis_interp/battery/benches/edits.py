"""Readers' edits on a stack: whole sequences, prompt and answer in one row, of several organisms at once.

A reader runs prompts and answers in passes of their own, and an edit sees one pass. A stack runs them as one row, which
an edit is shown twice: as the pass over the prompts and as the pass over the answers. Its changes in the two do not
overlap, and their sum is the change of the row.
"""

from collections.abc import Sequence

import torch

from condmis_interp.errors import UserError
from condmis_interp.panel import pad
from condmis_interp.readers import Edit, Patch, Request, Site
from condmis_interp.readers.batching import Pass, scopes_of


def views(requests: Sequence[Request]) -> tuple[Pass, Pass]:
    """Returns rows of prompt and answer (right-padded; one for each answer) as two passes, over either."""
    rows = [(i, slot) for i, r in enumerate(requests) for slot in range(len(r.answers))]
    prompts = [requests[i].prompt for i, _ in rows]
    before = torch.tensor([len(p.ids) for p in prompts])[:, None]
    whole = [[*p.ids, *requests[i].answers[slot].ids] for p, (i, slot) in zip(prompts, rows, strict=True)]
    ids, real = pad(whole, right=True)
    positions = torch.arange(ids.shape[1]).expand(ids.shape)
    of_prompts = scopes_of(prompts, ids.shape, [0] * len(rows))
    inside = (positions < before).int()
    answer = real * (1 - inside)
    begin = tuple(-int(n) for n in before)
    return (
        Pass(ids, inside, positions, of_prompts, tuple((i, None) for i, _ in rows), (0,) * len(rows)),
        Pass(ids, answer, positions, {"answer": answer}, tuple(rows), begin),
    )


def check(edits: Sequence[Edit], requests: Sequence[Request], *, layers: int, width: int) -> None:
    """Raises if an edit does not fit a stack, or would never be run.

    Raises:
        UserError: naming the edit and its site.
    """
    for edit in edits:
        where = f"{type(edit).__name__} at {edit.site}"
        if edit.site.kind != "resid_post" or not 0 <= edit.site.layer < layers - 1:
            raise UserError(
                "this bench edits the stream between blocks",
                where=where,
                fix=f"Sites: resid_post[0] to [{layers - 2}].",
            )
        if edit.width != width:
            raise UserError(f"an edit of width {edit.width} does not fit models of width {width}", where=where)
        if isinstance(edit, Patch):
            edit.check(requests)


def edited(edits: Sequence[Sequence[Edit]], at: Sequence[Pass], layer: int, x: torch.Tensor) -> torch.Tensor:
    """Returns the stream after a block as the edits leave it.

    Args:
        edits: Those of each organism.
        at: What `views` gave of the rows.
        layer: Which block, 0-based.
        x: [organism, row, position, width].
    """
    site = Site("resid_post", layer)
    if not any(e.site == site for own in edits for e in own):
        return x
    found = []
    for stream, own in zip(x, edits, strict=True):
        for edit in own:
            if edit.site == site:
                stream = stream + torch.stack([edit.delta(stream, p) for p in at]).sum(0)  # 0 in all views but one
        found.append(stream)
    return torch.stack(found)
