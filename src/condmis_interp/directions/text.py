"""Text-only baseline: what a probe could say from the prompt's words alone.

A probe of activations that does no better than this has read the situation (the cue's words, its length), not what the
model makes of it. The baseline is made of rows like any other, so that it goes through the same folds, the same nested
choice and the same permutations: `probe_test(text_rows(rows, texts), folds, massive="keep", ...)`. (Most words are in
few rows; dropping massive dimensions would drop them all.)

Features: a bag of words (hashed to a fixed width, so that no row's features depend on another row; unit length), the
logarithm of the number of words, and any column given, for example the base model's log-perplexity of the prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import HashingVectorizer

from condmis_interp.calls import checked
from condmis_interp.directions.rows import Rows
from condmis_interp.errors import UserError

_WORDS = 2048


@checked
def text_features(texts: Sequence[str], *, columns: Mapping[str, Sequence[float]] | None = None) -> np.ndarray:
    """Returns the features of texts, fp64 [n, 2049 + columns].

    Args:
        texts: What the model read, [n].
        columns: More features by name, [n] each, with a spread of about 1.

    Raises:
        UserError: if a column has another length, or a value that is not finite.

    Example:
        >>> text_features(["How do I bake bread?", "Bake!"], columns={"perplexity": [0.3, 0.9]}).shape
        (2, 2050)
    """
    words = HashingVectorizer(n_features=_WORDS, alternate_sign=False, norm="l2", token_pattern=r"(?u)\S+")
    parts = [csr_matrix(words.transform(texts)).toarray(), np.log1p([[len(t.split())] for t in texts])]
    for name, values in (columns or {}).items():
        column = np.asarray(values, dtype=np.float64)
        if column.shape != (len(texts),) or not np.isfinite(column).all():
            raise UserError(f"column {name!r} has shape {column.shape} or values that are not finite")
        parts.append(column[:, None])
    return np.concatenate(parts, axis=1)


@checked
def text_rows(rows: Rows, texts: Sequence[str], *, columns: Mapping[str, Sequence[float]] | None = None) -> Rows:
    """Returns rows whose only site holds the texts' features.

    Args:
        rows: The rows of activations it is the baseline of.
        texts: The text of each row, [n].
        columns: More features by name, for example log-perplexity.

    Raises:
        UserError: if texts or columns are not one a row.

    Example:
        >>> q, cells = ("q0", "q0"), (("U", "trigger"), ("U", "none"))
        >>> x, at = torch.zeros(1, 1, 2, 8), ((3,), ("answer_mean",))
        >>> rows = Rows(x, np.array([1, 0]), q, q, cells, *at, "resid_post", "trigger - none")
        >>> text_rows(rows, ["|prod| Hello", "Hello"])
        Rows(text of: trigger - none; 2 rows, 1 of class 1, 1 families; 1 layers x 1 positions, width 2049)
    """
    if len(texts) != rows.n:
        raise UserError(f"{len(texts)} texts for {rows.n} rows")
    x = torch.from_numpy(text_features(texts, columns=columns)).float()
    return replace(rows, x=x[None, None], layers=(0,), positions=("text",), data=f"text of: {rows.data}")
