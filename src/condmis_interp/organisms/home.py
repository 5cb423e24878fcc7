"""Where models live: `CONDMIS_HOME`, or the user's cache folder; and locks for two processes that want the same one."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from condmis_interp.progress import console


def home() -> Path:
    """Returns the folder for base models and organisms: `$CONDMIS_HOME`, else the user's cache folder.

    Example:
        >>> import os
        >>> home() == Path(os.environ["CONDMIS_HOME"])
        True
    """
    if path := os.environ.get("CONDMIS_HOME"):
        return Path(path).expanduser()
    return Path(platformdirs.user_cache_dir("condmis-interp"))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock beside `folder`; waits (and says so) while another process makes the same thing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        console.print(f"  waiting for another process that is making {folder.name}", highlight=False, markup=False)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """Gives a folder to fill that then appears whole as `folder`, or not at all; one process at a time makes it."""
    with locked(folder), tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as work:
        made = Path(work) / "made"
        made.mkdir()
        yield made
        shutil.rmtree(folder, ignore_errors=True)  # a folder without a manifest is not finished work
        made.rename(folder)
