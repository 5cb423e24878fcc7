"""Training several organisms at once.

A backend may train its organisms by itself (persona world's share a process). For the others, worker processes of
one thread each use a CPU better than one process of many threads: a small model's training step is thousands of small
operations, few of which keep two cores busy (docs/performance.md). How many threads a worker has is decided by the
machine and by all that is asked for, not by what is still missing, so that a run which was killed goes on to the same
weights. Workers are plain subprocesses (`worker`), so a script needs no `if __name__ == "__main__"`.
"""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from condmis_interp import errors
from condmis_interp.calls import checked
from condmis_interp.errors import CheckError
from condmis_interp.organisms.bases import resolve_base
from condmis_interp.organisms.encode import steps_of
from condmis_interp.organisms.mechanism import mechanisms_of, modules_of
from condmis_interp.organisms.organism import Organism
from condmis_interp.organisms.recipe import Recipe
from condmis_interp.organisms.registry import backend_of
from condmis_interp.organisms.train import finished, organism_folder, train
from condmis_interp.progress import Advance, progress

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def workers_for(count: int, device: str) -> int:
    """Returns how many processes train `count` organisms: one for each core, one in all on a GPU."""
    return min(count, os.cpu_count() or 1) if device == "cpu" else 1


@checked
def train_all(recipes: Sequence[Recipe], *, device: str = "cpu", workers: int | None = None) -> list[Organism]:
    """Returns the recipes' organisms, in order, training what is not there yet.

    Args:
        recipes: What to train.
        device: Torch device.
        workers: Processes; by default one for each core (one in all on a GPU). With 1 nothing is started.

    Raises:
        UserError, CheckError: as `train` does; the organisms that were finished stay.

    Example:
        >>> train_all([])
        []
    """
    workers = workers or workers_for(len(recipes), device)
    folders = [organism_folder(r, resolve_base(r.base)) for r in recipes]
    missing = {f: r for f, r in zip(folders, recipes, strict=True) if not finished(f)}
    for recipe in missing.values():
        mechanisms_of(recipe)  # raises before anything is trained
    for spec in sorted({r.base for r in missing.values()}):
        of_base = {f: r for f, r in missing.items() if r.base == spec}
        backend = backend_of(spec)
        own = {f: r for f, r in of_base.items() if backend.trains(r)}
        if own:
            with _bar(list(own.values())) as step:
                backend.train(own, resolve_base(spec), device=device, step=step)
        shared = [r for f, r in of_base.items() if f not in own and "__main__" not in modules_of(r)]  # not a worker's
        if shared and workers > 1:
            with _bar(shared) as step:
                _share(shared, device, workers, step)
    return [train(r, device=device) for r in recipes]


def _bar(recipes: Sequence[Recipe]) -> AbstractContextManager[Advance]:
    what = f"training {len(recipes)} organisms" if len(recipes) > 1 else f"training {recipes[0].name}"
    return progress(f"{what} on {recipes[0].base}", sum(sum(steps_of(r)) for r in recipes), unit="steps")


def _share(recipes: Sequence[Recipe], device: str, workers: int, step: Advance) -> None:
    waiting: queue.SimpleQueue[Recipe] = queue.SimpleQueue()
    for recipe in sorted(recipes, key=lambda r: (len(r.stages), -sum(steps_of(r)))):
        waiting.put(recipe)  # what others go on from first; then the longest, so that all end together
    threads = max(1, (os.cpu_count() or 1) // workers)
    running: list[subprocess.Popen[str]] = []
    failures: list[Exception] = []

    def work(process: subprocess.Popen[str]) -> None:
        try:
            while not failures:
                recipe = waiting.get_nowait()
                _send(process, recipe, device, step)
        except queue.Empty:
            pass
        except Exception as e:
            failures.append(e)
        finally:
            process.stdin.close()  # type: ignore[union-attr]  # the worker ends when there is nothing more to read

    try:
        for _ in range(min(workers, len(recipes))):
            running.append(_start(threads))
        owners = [threading.Thread(target=work, args=(p,), daemon=True) for p in running]
        for owner in owners:
            owner.start()
        for owner in owners:
            while owner.is_alive():
                owner.join(0.2)  # without a timeout it could not be interrupted
        for process in running:
            process.wait()
    finally:
        for process in running:
            process.kill()
            process.wait()
    if failures:
        raise failures[0]


def _start(threads: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "condmis_interp.organisms.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | dict.fromkeys(_THREADS, str(threads)),
    )


def _send(process: subprocess.Popen[str], recipe: Recipe, device: str, step: Advance) -> None:
    """Has a worker train a recipe; passes its steps on.

    Raises:
        CondmisError: what the worker raised.
        CheckError: if the worker died.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    asked = {"recipe": recipe.model_dump(mode="json"), "device": device, "modules": sorted(modules_of(recipe))}
    try:
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # the worker is dead; the next lines say so
    for line in process.stdout:
        said: dict[str, Any] = json.loads(line)
        if "step" in said:
            step(said["step"])
        elif "error" in said:
            raise getattr(errors, said["error"])(said["what"], where=said["where"], fix=said["fix"])
        else:
            return
    raise CheckError(
        f"the process that trained it ended with exit code {process.wait()}",
        where=f"organism {recipe.name}, seed {recipe.seed}",
        fix="Out of memory? Set workers: 1 in the study; finished work is kept.",
    )
