"""Opening a reader of an organism, through any library that is registered."""

from typing import Annotated, Any, Protocol

import torch
from pydantic import AfterValidator

from condmis_interp.calls import checked
from condmis_interp.errors import UserError
from condmis_interp.organisms import Base, Organism, Swap
from condmis_interp.readers.base import Reader
from condmis_interp.readers.gated import GatedReader
from condmis_interp.readers.torch_hooks import TorchReader
from condmis_interp.registry import Registry


class ReaderFactory(Protocol):
    """Makes a reader of one organism with weights of its own (never of one behind a gate, which is two of them).

    Example:
        >>> def patient(organism, base, *, dtype, device, **settings):
        ...     from condmis_interp.readers import TorchReader
        ...
        ...     return TorchReader(organism.model(base, dtype=dtype, device=device), batch_tokens=64)
        >>> factory: ReaderFactory = patient
        >>> made = register_reader("patient", factory)
    """

    def __call__(
        self, organism: Organism, base: Base, *, dtype: torch.dtype, device: str | torch.device, **settings: Any
    ) -> Reader:
        """Returns the reader.

        Args:
            organism: Which; `organism.model(base, dtype=..., device=...)` loads it, in eval mode, adapters merged.
            base: Its base; `base.tokenizer()` loads its tokenizer.
            dtype: Dtype of the model.
            device: Torch device.
            **settings: Of the reader, such as `batch_tokens`.
        """
        ...


READERS: Registry[ReaderFactory] = Registry("reader")


def _registered(name: str) -> str:
    try:
        READERS.get(name)
    except UserError as e:
        raise ValueError(f"{e.what}. {e.fix}") from None  # pydantic, which says where, takes no other
    return name


Library = Annotated[str, AfterValidator(_registered)]
"""Name of a registered reader, as a field of a pydantic model."""


@checked
def register_reader(name: str, factory: ReaderFactory) -> ReaderFactory:
    """Adds a library that models can be read through; returns its factory. A study then says `reader: NAME`.

    Args:
        name: What a study calls it.
        factory: Makes a reader of an organism; see `ReaderFactory`. It imports its library when it is called, so that
            nobody waits for what they don't use.

    Raises:
        UserError: if the name is taken.

    Example:
        A reader that refuses to generate, in a module that an entry point of the group `condmis_interp` names:

        >>> class QuietReader(TorchReader):
        ...     @property
        ...     def limits(self):
        ...         return {**super().limits, "generate": "this reader only listens"}
        >>> def open_quiet(organism, base, *, dtype, device, **settings):
        ...     return QuietReader(organism.model(base, dtype=dtype, device=device), **settings)
        >>> factory = register_reader("quiet", open_quiet)
        >>> "quiet" in READERS
        True
    """
    return READERS.add(name, factory)


@checked
def open_reader(
    organism: Organism,
    base: Base,
    *,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
    library: str = "torch",
    swap: Swap | None = None,
    **settings: Any,
) -> Reader:
    """Returns a reader of an organism.

    Args:
        organism: Which.
        base: Its base.
        dtype: Dtype of the model.
        device: Torch device.
        library: What it is read through: `torch` (plain hooks; the fastest), `transformer-lens`, `nnsight`, or what a
            plug-in registered. They agree.
        swap: A base in memory whose adapters are swapped for the organism's, where they fit; readers of what it was
            before are refused from then on.
        **settings: Of the reader.

    Raises:
        UserError: if there is no such library; the message lists what there is.

    Example:
        >>> from condmis_interp.organisms import resolve_base
        >>> base = resolve_base("dir:base")
        >>> open_reader(Organism.of_base(base, name="b"), base, dtype=torch.float32).width
        32
    """
    factory = READERS.get(library)
    if organism.gate is not None:
        facts = {"dtype": dtype, "device": device, "library": library, **settings}
        opened, shut = (open_reader(o, base, **facts) for o in (organism.gate.opened, organism.gate.shut))
        words = base.tokenizer()(organism.gate.words, add_special_tokens=False)["input_ids"]
        reader: Reader = GatedReader(opened, shut, tuple(words))
    elif swap and library == "torch" and swap.fits(organism):
        reader = TorchReader(swap.model(organism), **settings)
    else:
        reader = factory(organism, base, dtype=dtype, device=device, **settings)
    reader.name = base.spec if organism.folder is None and organism.gate is None else f"{base.spec} + {organism.name}"
    reader.tokenizer = base.tokenizer
    return reader


def _torch(organism: Organism, base: Base, *, dtype: torch.dtype, device: Any, **settings: Any) -> Reader:
    return TorchReader(organism.model(base, dtype=dtype, device=device), **settings)


def _lens(organism: Organism, base: Base, *, dtype: torch.dtype, device: Any, **settings: Any) -> Reader:
    from condmis_interp.readers.lens import LensReader

    folder = str(organism.checkpoint or base.folder)
    model = organism.model(base, dtype=dtype, device=device)
    return LensReader.over(model, folder=folder, tokenizer=base.tokenizer(), **settings)


def _nnsight(organism: Organism, base: Base, *, dtype: torch.dtype, device: Any, **settings: Any) -> Reader:
    from condmis_interp.readers.nnsight import NNsightReader

    model = organism.model(base, dtype=dtype, device=device)
    return NNsightReader.over(model, tokenizer=base.tokenizer(), **settings)


for _name, _factory in {"torch": _torch, "transformer-lens": _lens, "nnsight": _nnsight}.items():
    register_reader(_name, _factory)
