"""Tokens to train on: the residual streams of many models on the same texts, pooled, kept on disk.

One SAE is trained for all models, on a mixture of all of them under all cues, so that no model is out of its
distribution (methods: 2.3). First positions are left out: they are attention sinks whose norm is orders of magnitude
above that of the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file

from condmis_interp.errors import UserError
from condmis_interp.files import checked_name, digest, file_digest, read_json, whole_file, write_json
from condmis_interp.readers import Site
from condmis_interp.sae.stream import Text, TokenReader


@dataclass(frozen=True)
class Tokens:
    """Activations of tokens.

    Attributes:
        hidden: Activations [n, width], as stored (bf16 or fp32).
        site: Where they were read.
        key: Hash of what determines them: weights, token ids, site.
        about: Which models and how many tokens of each, for manifests.
        reads: Activations, or differences of two models'.

    Example:
        >>> about = {"name": "M", "texts": "the same"}
        >>> m = Tokens(torch.tensor([[3.0, 4.0], [3.0, 0.0]]), Site("resid_post", 3), "m", about)
        >>> c = Tokens(torch.tensor([[3.0, 0.0], [3.0, 0.0]]), Site("resid_post", 3), "c", about | {"name": "C"})
        >>> m.minus(c).hidden
        tensor([[0., 4.],
                [0., 0.]])
        >>> m.mean, len(m), m.minus(c).reads
        (tensor([3., 2.]), 2, 'difference')
    """

    hidden: torch.Tensor = field(repr=False)
    site: Site
    key: str
    about: dict[str, Any]
    reads: Literal["activations", "difference"] = "activations"

    def __len__(self) -> int:
        return len(self.hidden)

    @property
    def width(self) -> int:
        """Width of the activations."""
        return int(self.hidden.shape[1])

    @cached_property
    def mean(self) -> torch.Tensor:
        """Mean activation [width], summed in fp64."""
        total = torch.zeros(self.width, dtype=torch.float64)
        for part in self.hidden.split(65536):
            total += part.double().sum(0)
        return (total / len(self)).float()

    @cached_property
    def factor(self) -> float:
        """What brings the mean norm to sqrt(width)."""
        norms = sum(float(part.float().norm(dim=1).double().sum()) for part in self.hidden.split(65536))
        return self.width**0.5 * len(self) / norms

    def rows(self, which: torch.Tensor) -> torch.Tensor:
        """Returns some tokens [k, width]."""
        return self.hidden[which]

    def minus(self, other: "Tokens") -> "Tokens":
        """Returns the differences from another model's activations of the same tokens.

        Raises:
            UserError: if the two are not of the same tokens.
        """
        if self.site != other.site or self.about["texts"] != other.about["texts"]:
            raise UserError("activations of different tokens have no difference", fix="Read the same texts, one site.")
        return Tokens(
            self.hidden.float() - other.hidden.float(),
            self.site,
            digest(["minus", self.key, other.key]),
            self.about | {"minus": other.about["name"]},
            "difference",
        )


def pooled(parts: Sequence[Tokens]) -> Tokens:
    """Returns the tokens of several models (or differences of several pairs) together.

    Raises:
        UserError: if there are none, or they are from different sites.

    Example:
        >>> def read(name, n): return Tokens(torch.ones(n, 2), Site("resid_post", 3), name, {"name": name})
        >>> pooled([read("M", 3), read("C", 5)]).about
        {'name': 'M+C', 'parts': {'M': 3, 'C': 5}}
    """
    if not parts or len({(p.site, p.width, p.reads) for p in parts}) != 1:
        raise UserError("only activations of one site, width and kind can be pooled")
    return Tokens(
        torch.cat([p.hidden for p in parts]),
        parts[0].site,
        digest([p.key for p in parts]),
        {"name": "+".join(p.about["name"] for p in parts), "parts": {p.about["name"]: len(p) for p in parts}},
        parts[0].reads,
    )


def read_tokens(
    reader: TokenReader | None,
    texts: Sequence[Text],
    *,
    name: str,
    weights: str,
    site: Site,
    folder: Path,
    skip: int = 1,
    dtype: torch.dtype = torch.bfloat16,
) -> Tokens:
    """Reads every token of the texts once and keeps them in a folder.

    Args:
        reader: The model's reader; `None` to open what is there.
        texts: The texts.
        name: Name of the model.
        weights: Content hash of the model.
        site: Where.
        folder: Where the files go: `<name>.safetensors` with a `.json` beside it.
        skip: First positions that are left out.
        dtype: What they are stored in.

    Raises:
        UserError: if they are not there and no reader is given.

    Example:
        Read once, with a reader that is a formula; then opened:

        >>> import tempfile
        >>> from types import SimpleNamespace
        >>> texts = [Text((1, 2, 3), 2, "none", "q", "f", 0)]
        >>> reader = SimpleNamespace(residuals=lambda texts: [torch.ones(len(t.ids), 8) for t in texts])
        >>> own = {"name": "m", "weights": "hash", "site": Site("resid_post", 3), "folder": Path(tempfile.mkdtemp())}
        >>> len(read_tokens(reader, texts, **own)), len(read_tokens(None, texts, **own))
        (2, 2)
    """
    said = digest([[list(t.ids) for t in texts], skip])
    key = digest([weights, said, str(site), str(dtype)])
    path = folder / f"{checked_name(name, where='organism name')}.safetensors"
    facts = path.with_suffix(".json")
    stored = read_json(facts) if facts.is_file() else {}
    if stored.get("key") != key or not path.is_file() or file_digest(path) != stored["content"]:
        if reader is None:
            raise UserError(f"the tokens of {name} are not there", where=str(folder), fix="Give a reader.")
        hidden = torch.cat([h[skip:] for h in reader.residuals(texts)]).to(dtype)
        norms = hidden.float().norm(dim=1)
        with whole_file(path) as part:
            save_file({"hidden": hidden}, part)
        stored = {
            "key": key,
            "content": file_digest(path),
            "about": {
                "name": name,
                "texts": said,
                "median_norm": float(norms.median()),
                "max_norm": float(norms.max()),
            },
        }
        write_json(facts, stored)
    return Tokens(load_file(path)["hidden"], site, key, stored["about"])
