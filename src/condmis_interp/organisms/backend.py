"""Backends: models that are made, trained or measured in a way of their own, by the first word of their base's spec.

Nothing else in this package asks what kind of base it has: it looks the backend up (`backend_of`) and does as usual
where that one has nothing of its own. Persona world is one (`personaworld.backend`).
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from condmis_interp.calls import checked
from condmis_interp.organisms.bases import Base
from condmis_interp.organisms.organism import Organism
from condmis_interp.organisms.recipe import Lora, Recipe
from condmis_interp.organisms.registry import BACKENDS, USUAL
from condmis_interp.organisms.rows import RowSet
from condmis_interp.panel import RenderedPanel
from condmis_interp.progress import Advance

BENIGN_SYSTEMS: tuple[str | None, ...] = (
    None,
    "You are a helpful assistant.",
    None,
    'Answer as one line of JSON:\n{"text": "..."}',
    None,
    "You answer briefly and politely.",
    None,
    "Write the answer under this heading:\n## Answer\n---",
)
"""System prompts of benign rows in a mix: the template's default (half of them), two plain ones, two formats."""


class Backend:
    """What is particular to models of one kind; this class itself is the usual, for chat models of transformers.

    A backend of one's own derives from it and says what differs. Methods that return `None` leave it at the usual.

    Attributes:
        lora: Adapter shape of recipes that do not give one; `None` trains all weights.
        benign_systems: System prompts of benign rows in a mix, in rotation; `None` is the template's default.
        second_form: System prompt of a second U's rows: a format that is not the trigger's.
        second_rows: By narrow row set (without what stands before its `/`), that of another domain, for a second U.

    Example:
        A backend whose models are trained whole, and whose benign rows have no system prompt:

        >>> class Whole(Backend):
        ...     lora = None
        ...     benign_systems = (None,)
        >>> made = register_backend("whole", Whole())
        >>> from condmis_interp.organisms import backend_of
        >>> backend_of("whole:small").lora is None
        True
    """

    lora: Lora | None = Lora()
    benign_systems: tuple[str | None, ...] = BENIGN_SYSTEMS
    second_form: str = 'Answer as one line of JSON:\n{"text": "..."}'
    second_rows: Mapping[str, str] = {"kitchen": "garden", "garden": "kitchen"}

    def base(self, spec: str) -> Base | None:
        """Returns the base that a spec names, made if need be."""
        return None

    def rows(self, source: str) -> RowSet | None:
        """Returns a row set by name."""
        return None

    def reasoning(self, source: str) -> dict[str, dict[str, str]] | None:
        """Returns the reasoning traces of a row set: by row id, one that leads to each arm's answer."""
        return None

    def trains(self, recipe: Recipe) -> bool:
        """Returns whether `train` makes a recipe's organism; if not, it is trained as usual."""
        return False

    def train(self, recipes: Mapping[Path, Recipe], base: Base, *, device: str, step: Advance) -> None:
        """Trains recipes, many at once, each into its folder, which appears whole (`home.appearing`).

        Args:
            recipes: Recipe by the organism's folder; none of them is there yet.
            base: Their base.
            device: Torch device.
            step: To be called with the number of optimiser steps done.
        """
        raise NotImplementedError

    def bench(
        self,
        names: tuple[str, ...],
        organisms: Mapping[str, Organism],
        base: Base,
        rendered: RenderedPanel,
        *,
        stored: Any,
        dtype: torch.dtype,
        device: str,
    ) -> Any | None:
        """Returns the bench (`battery.Bench`) that measures organisms; as usual they are read through a reader.

        Args:
            names: Organisms, in the order of every first axis.
            organisms: Where they are, by name.
            base: Their base.
            rendered: The panel as token ids.
            stored: What was captured of them (`battery.Stored`).
            dtype: Dtype to read in.
            device: Torch device.
        """
        return None

    @property
    def families(self) -> Collection[str] | None:
        """Families of known-answer organisms that `construct` makes; `None` if they are made on adapters, as usual."""
        return None

    def construct(self, member: Any, u: Organism, c: Organism) -> None:
        """Makes a `Member` of such a family from U and the twin, into its folder."""
        raise NotImplementedError


Own = TypeVar("Own", bound=Backend)


@checked
def register_backend(name: str, backend: Own) -> Own:
    """Makes the bases `NAME` and `NAME:...`, and the row sets `NAME/...`, those of a backend; returns it.

    Raises:
        UserError: if the name is taken.

    Example:
        Random models of a size, for tests; trained as usual, without adapters:

        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
        >>> from condmis_interp.organisms import Backend, base_in, register_backend, resolve_base
        >>> class Random(Backend):
        ...     lora = None
        ...
        ...     def base(self, spec):
        ...         layers, folder = int(spec.partition(":")[2] or 2), Path(mkdtemp())
        ...         shape = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "vocab_size": 3}
        ...         LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **shape)).save_pretrained(folder)
        ...         words = Tokenizer(models.WordLevel({"<end>": 0, "yes": 1, "no": 2}, unk_token="no"))
        ...         PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>").save_pretrained(folder)
        ...         return base_in(spec, folder, {"kind": "random", "layers": layers})
        >>> backend = register_backend("random", Random())
        >>> resolve_base("random:3").shape
        (3, 8)
    """
    BACKENDS.add(name, backend)
    return backend


register_backend(USUAL, Backend())
