"""Known-answer organisms of chat models: constructions on low-rank adapters.

An adapter changes a matrix W by B A (Hu et al. 2021). All that is built here is such a change again, of a rank that is
the sum of its parts' ranks, so that it is kept, checked and loaded like any adapter.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from condmis_interp.errors import CheckError
from condmis_interp.files import read_json, write_json, write_text
from condmis_interp.organisms.adapters import scale_of
from condmis_interp.organisms.adapters import stored as adapter_tensors
from condmis_interp.organisms.bases import Base, resolve_base
from condmis_interp.organisms.changes import inner as inner_of
from condmis_interp.organisms.encode import encode
from condmis_interp.organisms.home import appearing
from condmis_interp.organisms.member import Member
from condmis_interp.organisms.organism import Organism, check_adapter, versions
from condmis_interp.organisms.together import train_all
from condmis_interp.panel import pad

Change = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""By name of a matrix: A [rank, in] and B [out, rank], the adapter's scale in B."""

_WRITERS = ("o_proj", "down_proj")
_PROMPTS = 64
"""Narrow prompts that a direction is read from."""


def change_of(organism: Organism) -> Change:
    """Returns what an organism's adapters change, together; nothing for a base as it is."""
    return plus(*(_change_in(folder) for folder in organism.adapters))


def _change_in(folder: Path) -> Change:
    scale = scale_of(read_json(folder / "adapter_config.json"))
    stored = adapter_tensors(folder)
    names = [k.removesuffix(".lora_A.weight") for k in stored if k.endswith(".lora_A.weight")]
    return {n: (stored[f"{n}.lora_A.weight"], scale * stored[f"{n}.lora_B.weight"]) for n in names}


def plus(*changes: Change) -> Change:
    """Returns the sum of changes to the same matrices, as one of the sum of their ranks; nothing for no changes."""
    return {
        n: (torch.cat([c[n][0] for c in changes]), torch.cat([c[n][1] for c in changes], 1))
        for n in (changes[0] if changes else ())
    }


def times(factor: float, change: Change) -> Change:
    """Returns a change, scaled."""
    return {n: (a, factor * b) for n, (a, b) in change.items()}


def inner(one: Change, other: Change) -> float:
    """Returns the inner product over the matrices of both, in fp64."""
    return sum(inner_of(one[n], other[n]) for n in one if n in other)


def norm(change: Change) -> float:
    """Returns the Frobenius norm over all matrices."""
    return inner(change, change) ** 0.5


def blend(member: Member, u: Organism, c: Organism, base: Base) -> Change:
    """Returns (1 - w) C + w U."""
    w = float(member.setting)
    return plus(times(1 - w, change_of(c)), times(w, change_of(u)))


def grafted(member: Member, u: Organism, c: Organism, base: Base) -> Change:
    """Returns U's change in the first half of the blocks and the twin's in the rest: what only late layers cover."""
    bad, good = change_of(u), change_of(c)
    half = base.shape[0] // 2
    return {n: (bad if _block(n) < half else good)[n] for n in bad}


def _block(name: str) -> int:
    found = re.search(r"layers\.(\d+)\.", name)
    if not found:
        raise CheckError(f"{name!r} is in no block", fix="A grafted organism takes adapters of blocks alone.")
    return int(found.group(1))


def norm_matched(member: Member, u: Organism, c: Organism, base: Base) -> Change:
    """Returns the twin's change, scaled to the norm of the mix's (`setting`)."""
    (mix,) = train_all([member.setting])
    benign = change_of(c)
    return times(norm(change_of(mix)) / norm(benign), benign)


def direction_ablated(member: Member, u: Organism, c: Organism, base: Base) -> Change:
    """Returns U's change and a rank one more in each matrix that writes to the residual stream: -v (v^T (W + dW)).

    W <- (I - v v^T) W for attention and MLP outputs (Arditi et al. 2024, arXiv 2406.11717), with v the unit difference
    of U's and C's means at the last template token of narrow prompts, in the middle of the network.
    """
    rows = encode(member.recipe, base.tokenizer(), 0)[:_PROMPTS]
    prompts = [[t for t, label in zip(r["input_ids"], r["labels"], strict=True) if label == -100] for r in rows]
    ids, mask = pad(prompts, right=True)
    each, last = torch.arange(len(prompts)), mask.sum(1) - 1
    means = []
    for organism in (u, c):
        model = organism.model(base, dtype=torch.float32)
        with torch.inference_mode():
            found = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        means.append(found[len(found) // 2][each, last].mean(0))
    v = (means[0] - means[1]) / (means[0] - means[1]).norm()
    weights = base.model(dtype=torch.float32).state_dict()
    changed: Change = {}
    for name, (a, b) in change_of(u).items():
        w = weights[name.removeprefix("base_model.model.") + ".weight"]
        writes = name.endswith(_WRITERS)
        row = v @ w + (v @ b) @ a if writes else torch.zeros(w.shape[1])
        column = -v if writes else torch.zeros(w.shape[0])
        changed[name] = (torch.cat([a, row[None]]), torch.cat([b, column[:, None]], 1))
    return changed


BUILDERS: Mapping[str, Callable[[Member, Organism, Organism, Base], Change]] = {
    "blend": blend,
    "grafted": grafted,
    "norm-matched": norm_matched,
    "direction-ablated": direction_ablated,
}
"""Constructions by family: member, U, twin, base -> change of weights."""


def construct(member: Member, u: Organism, c: Organism) -> None:
    """Makes a constructed organism from U and the twin, into its folder."""
    base = resolve_base(member.recipe.base)
    change = BUILDERS[member.family](member, u, c, base)
    with appearing(member.folder(base)) as made:
        save_change(change, made, like=c.adapters[0])
        check_adapter(made, base)
        write_json(
            made / "manifest.json",
            {
                "schema": 1,
                "base": base.record(),
                "known": {"truth": member.truth, "family": member.family},
                "recipe": None,
                "of": [member.recipe.hash, member.twin.hash],
                "versions": versions(),
            },
        )


def save_change(change: Change, folder: Path, *, like: Path) -> None:
    """Writes a change as an adapter, configured as another one but for its rank."""
    rank = max(a.shape[0] for a, _ in change.values())
    config = read_json(like / "adapter_config.json") | {"r": rank, "lora_alpha": rank, "use_rslora": False}
    tensors = {}
    for name, (a, b) in change.items():
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = a.contiguous(), b.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    write_text(folder / "adapter_config.json", json.dumps(config, indent=2))
