"""Padding: many sequences of token ids as one tensor with its mask."""

from collections.abc import Sequence

import torch


def pad(sequences: Sequence[Sequence[int]], *, right: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns padded ids and their mask, both [rows, position]; padding ids are 0.

    Example:
        >>> ids, mask = pad([[5, 6, 7], [8]], right=False)
        >>> ids.tolist(), mask.tolist()
        ([[5, 6, 7], [0, 0, 8]], [[1, 1, 1], [0, 0, 1]])
    """
    longest = max(len(s) for s in sequences)
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, s in enumerate(sequences):
        at = slice(0, len(s)) if right else slice(longest - len(s), longest)
        ids[i, at] = torch.tensor(s)
        mask[i, at] = 1
    return ids, mask
