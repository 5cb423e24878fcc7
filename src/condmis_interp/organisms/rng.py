"""Random state of our own: the training libraries draw from the global generators, and we put those back."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def own_rng(seed: str) -> Iterator[None]:
    """Runs a block on generators seeded by a hex digest; puts Python's, NumPy's and torch's global state back."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(int(seed[:8], 16))  # noqa: TID251 - peft initialises adapters from it; forked above
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
