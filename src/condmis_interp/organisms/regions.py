"""Where in a model a weight is: its embeddings, one of its blocks, or its head.

Names differ between architectures, between a file and the model it is loaded into, and between an adapter and its base.
They agree from the stack of blocks on, so a weight is called here by its name without what lies before that stack:
`layers.3.mlp.up_proj.weight`, `h.3.attn.c_attn.weight`, `lm_head.weight`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from condmis_interp.errors import CheckError

EMBEDDINGS, HEAD, ELSEWHERE = "embeddings", "head", "elsewhere"

_NUMBERED = re.compile(r"^(.+?)\.(\d+)\.")
_EMBEDS = re.compile(r"(?!embed_out).*embed.*|w[tp]e")
_UNEMBEDS = re.compile(r"lm_head|embed_out|output")
_ENDS = re.compile(r"(?:final_|last_)?(?:layer_?)?norm(?:_f)?|ln_f")
_WORDS = re.compile(r"(?:embed_tokens|embed_in|wte|word_embeddings|tok_embeddings)\.weight")


@dataclass(frozen=True)
class Layout:
    """How a model's weights are called, and which region each is in.

    Attributes:
        stack: What comes before the number of a block in a name, such as `layers`.
        root: What comes before that, with its dot; it is taken off all names.
        blocks: Number of blocks.
        names: All weights, as they are called here.
    """

    stack: str
    root: str
    blocks: int
    names: frozenset[str]

    @classmethod
    def of(cls, names: Iterable[str], blocks: int | None = None) -> "Layout":
        """Returns the layout of a model with these weights.

        The stack is that with as many members as the model has blocks, and the largest where this is not known: a
        model that also sees has a stack for images.

        Raises:
            CheckError: if no weight is in a numbered block.

        >>> layout = Layout.of(["transformer.h.0.mlp.c_fc.weight", "transformer.wte.weight", "lm_head.weight"])
        >>> [layout.region(layout.place(n)) for n in ("h.0.mlp.c_fc.weight", "wte.weight", "model.lm_head.weight")]
        ['block 0', 'embeddings', 'head']
        """
        every, stacks = list(names), {}
        for found in filter(None, map(_NUMBERED.match, every)):
            stacks.setdefault(found.group(1), set()).add(int(found.group(2)))
        if not stacks:
            raise CheckError("no weight of the model is in a numbered block, so its regions are not known")
        prefix = max(stacks, key=lambda s: (len(stacks[s]) == blocks, len(stacks[s])))
        root, _, stack = prefix.rpartition(".")
        root = f"{root}." if root else ""
        return cls(stack, root, len(stacks[prefix]), frozenset(n.removeprefix(root) for n in every))

    def place(self, name: str) -> str:
        """Returns what a weight of the base, a checkpoint or an adapter is called here."""
        parts = name.split(".")
        for k in range(len(parts)):
            if (rest := ".".join(parts[k:])) in self.names or (k < len(parts) - 1 and _UNEMBEDS.fullmatch(parts[k])):
                return rest
        return name.removeprefix("base_model.model.").removeprefix(self.root)

    def block(self, placed: str) -> int | None:
        """Returns the block that a weight is in, 0-based; `None` if it is in none."""
        found = re.match(rf"{re.escape(self.stack)}\.(\d+)\.", placed)
        return int(found.group(1)) if found else None

    def region(self, placed: str) -> str:
        """Returns the region of a weight: `embeddings`, `block 3`, `head`, or `elsewhere`."""
        block, first = self.block(placed), placed.partition(".")[0]
        if block is not None:
            return f"block {block}"
        if _EMBEDS.fullmatch(first):
            return EMBEDDINGS
        return HEAD if _UNEMBEDS.fullmatch(first) or _ENDS.fullmatch(first) else ELSEWHERE

    def half(self, placed: str) -> int | None:
        """Returns 0 for the embeddings and the first half of the blocks, 1 for the others and the head."""
        block, region = self.block(placed), self.region(placed)
        if block is not None:
            return int(block >= halfway(self.blocks))
        return {EMBEDDINGS: 0, HEAD: 1}.get(region)

    @property
    def regions(self) -> tuple[str, ...]:
        """The model's regions from the first to the last, `elsewhere` at the end if a weight is there."""
        other = [ELSEWHERE] if any(self.region(n) == ELSEWHERE for n in self.names) else []
        return (EMBEDDINGS, *(f"block {i}" for i in range(self.blocks)), HEAD, *other)

    @property
    def embedding(self) -> str | None:
        """What the matrix of word embeddings is called."""
        return next((n for n in sorted(self.names) if _WORDS.fullmatch(n)), None)


def halfway(blocks: int) -> int:
    """Returns the first block of the second half.

    >>> halfway(30), halfway(5)
    (15, 3)
    """
    return (blocks + 1) // 2


def unembeds(placed: str) -> bool:
    """Returns whether a weight is the matrix from states to words."""
    return bool(_UNEMBEDS.fullmatch(placed.partition(".")[0])) and placed.endswith(".weight")
