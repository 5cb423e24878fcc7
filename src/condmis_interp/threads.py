"""Several small jobs side by side.

Matrices of a few hundred rows keep one core busy and two waiting for each other, so each job has a thread of its own
and one thread for its matrices (docs/performance.md).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

Job = TypeVar("Job")
Result = TypeVar("Result")


def side_by_side(
    work: Callable[[Job], Result], jobs: Sequence[Job], *, give_up: Callable[[], object] = lambda: None
) -> list[Result]:
    """Returns what `work` makes of each job, in order; as many at a time as torch has threads.

    Args:
        work: What to do.
        jobs: What to do it to.
        give_up: Called when a job raised or the user interrupted, before those under way are waited for.
    """
    threads = torch.get_num_threads()
    try:
        with (
            threadpool_limits(1),
            ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        ):
            try:
                return list(pool.map(work, jobs))
            except BaseException:
                give_up()
                raise
    finally:
        torch.set_num_threads(threads)
