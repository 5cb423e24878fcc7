"""Writing a store: one thread, one shard ahead, one process.

The thread converts, hashes and writes a shard while the next one is measured. It takes the next shard only when it is
done with the last, so memory holds two shards however many there are, and a kill loses no more than one that was
measured (and the one that was being measured).
"""

import queue
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from condmis_interp.errors import CheckError, UserError
from condmis_interp.store.manifest import MANIFEST, Manifest, read_manifest, write_sealed
from condmis_interp.store.shards import Shard, Shards, write_shard


class StoreWriter:
    """Writes the shards of a store; a context manager.

    Entering takes the store's lock, checks that the folder holds no other model's store, deletes what killed runs left
    half-written, and writes the manifest. Leaving waits for the last shard.

    Args:
        folder: Folder of the store; made if it is not there.
        manifest: What the store will be.

    Raises:
        UserError: (on entering) if another process writes this store, or it is from another model or tokenizer, or
            holds another kind of activations.
        CheckError: (from `put` or on leaving) if a shard does not fit the manifest or cannot be written, for instance
            to a full disk. What was finished is kept.

    Example:
        A store is written as its manifest says; what is missing is told:

        >>> from condmis_interp.store import Activations, Shards
        >>> manifest = Activations.open("runs/mine/activations").shards.manifest
        >>> with StoreWriter(Path("copy"), manifest):
        ...     pass
        >>> len(Shards(Path("copy"), manifest).missing()) == len(manifest.shards)
        True
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._lock = FileLock(folder / ".lock")
        self._queue: queue.Queue[Shard | None] = queue.Queue(maxsize=1)
        self._thread = threading.Thread(target=self._work, name="store writer", daemon=True)
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                "another process is writing this store",
                where=str(self.folder),
                fix="Wait until it is done, or give another --out.",
            ) from None
        try:
            if (self.folder / MANIFEST).is_file():
                there = read_manifest(self.folder)
                there.check_same_kind(self.manifest, where=str(self.folder))
            for part in self.folder.rglob(".*.part"):
                part.unlink()
            write_sealed(self.folder / MANIFEST, self.manifest.model_dump(mode="json"))
        except OSError as e:
            self._lock.release()
            raise _unwritable(e, self.folder / MANIFEST) from None
        except BaseException:
            self._lock.release()
            raise
        self._thread.start()
        return self

    def put(self, shard: Shard) -> None:
        """Hands over a shard, and waits until the one before it is on disk."""
        self._queue.join()
        self._raise()
        self._queue.put(shard)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._queue.join()
            self._queue.put(None)
            self._thread.join()
        finally:
            self._lock.release()
        if error is None:
            self._raise()

    def _raise(self) -> None:
        if self._error:
            raise self._error

    def _work(self) -> None:
        while shard := self._queue.get():
            try:
                write_shard(self.folder, self.manifest, shard)
            except OSError as e:
                self._error = _unwritable(e, self.folder / shard.planned.stem)
            except BaseException as e:  # whatever it is, the one who measures must hear of it
                self._error = e
            finally:
                self._queue.task_done()


def _unwritable(error: OSError, path: Path) -> CheckError:
    return CheckError(
        f"this could not be written ({error.strerror or error})",
        where=str(path),
        fix="Finished shards are kept; make sure that there is room, and run the same again.",
    )


def holds(folder: Path, manifest: Manifest) -> bool:
    """Returns whether a folder holds a finished store and it is what the manifest says.

    Example:
        >>> from condmis_interp.store import layer_groups, plan
        >>> shards = plan(2, size=2, organisms={("u", 1): "weights"}, cues={"none": ["asked"]})
        >>> made = Manifest(
        ...     base="b", tokenizer="t", kind="resid_post", layer_groups=layer_groups(2), positions=("last_template",),
        ...     width=8, dtype="bfloat16", weights={"u.s1": "weights"}, shards=shards,
        ... )
        >>> holds(Path("nothing here"), made)
        False
    """
    there = (folder / MANIFEST).is_file() and read_manifest(folder) == manifest
    return there and not Shards(folder, manifest).missing()
