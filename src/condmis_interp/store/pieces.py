"""Finished pieces of longer work, so that a killed test goes on where it was."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from condmis_interp.files import checked_name, digest, read_json, write_json


@dataclass(frozen=True)
class Pieces:
    """JSON results in a folder, keyed by the hash of what determines them.

    Attributes:
        folder: Where.
        determined_by: What determines every piece here (weights, token ids, settings).

    Example:
        >>> pieces = Pieces(Path("pieces"), determined_by=["weights of u"])
        >>> pieces.get("ld", ["none"], lambda: [0.5, -0.25])
        [0.5, -0.25]
        >>> pieces.get("ld", ["none"], lambda: 1 / 0)  # it is there already
        [0.5, -0.25]
    """

    folder: Path
    determined_by: Any

    def get(self, name: str, inputs: Any, compute: Callable[[], Any]) -> Any:
        """Returns the finished piece, or computes and writes it.

        Args:
            name: What it is; part of the file name.
            inputs: What else determines it, as JSON.
            compute: Gives the result, as JSON.
        """
        path = (
            self.folder / f"{checked_name(name, where='piece')}-{digest([self.determined_by, name, inputs])[:16]}.json"
        )
        if path.is_file():
            return read_json(path)
        result = compute()
        write_json(path, result)
        return result
