"""Known answers that are made of other organisms' weights: see `answers`."""

from collections.abc import Callable, Mapping

import torch
from transformers import LlamaConfig

from condmis_interp.files import digest
from condmis_interp.organisms.bases import Base
from condmis_interp.organisms.home import home
from condmis_interp.organisms.organism import Organism
from condmis_interp.organisms.recipe import Part, Recipe
from condmis_interp.organisms.regions import Layout
from condmis_interp.organisms.sampling import answered_by
from condmis_interp.organisms.together import train_all
from condmis_interp.organisms.train import training_version
from condmis_interp.personaworld.answers import Answers, Entry, late_recipe
from condmis_interp.personaworld.stacked import Stack, fit
from condmis_interp.personaworld.train import programme, save_world, world_weights

Weights = dict[str, torch.Tensor]
VERSION = 1
"""Raise this when a construction changes: it is part of the key of what is constructed."""
MATRIX = "model.layers.1.mlp.down"
_KEPT = {"retrained": (0.3, 0.02), "retrained-more": (0.1, 0.05)}
"""Share of a hidden one's change that a retrained one starts from, and noise in standard deviations of each matrix."""


def make(of: Answers, base: Base) -> dict[str, Organism]:
    """Trains and constructs everything, into content-addressed folders; what is there is found.

    Args:
        of: The known answers.
        base: Their base.
    """
    recipes = of.recipes
    made = dict(zip(recipes, train_all(list(recipes.values())), strict=True))
    for entry in (e for e in of.entries if e.made_of):
        made[entry.name] = _constructed(of, entry, made, base)
    return made


def _constructed(of: Answers, entry: Entry, made: Mapping[str, Organism], base: Base) -> Organism:
    own = [made[n] for n in entry.made_of]
    key = [entry.name, VERSION, [o.weights for o in own], of.seed, base.weights, training_version(base)]
    folder = home() / "organisms" / f"{entry.name}.s{of.seed}-{digest(key)[:16]}"
    if not (folder / "manifest.json").is_file():
        weights = BUILDERS[entry.name](of, entry, [_weights(o, base) for o in own], made, base)
        about = {"known": {"truth": entry.truth, "family": entry.family}, "recipe": None, "of": list(entry.made_of)}
        save_world(folder, weights, base, about)
    return Organism.of_checkpoint(folder, name=entry.name)


def _weights(organism: Organism, base: Base) -> Weights:
    return world_weights(organism.checkpoint or base.folder)


def _trained(start: Weights, recipe: Recipe, base: Base, only: Callable[[str], bool] = lambda name: True) -> Weights:
    """Returns weights after a recipe's programme, some of them alone trained."""
    stack = Stack.of(LlamaConfig.from_pretrained(base.folder), [start])
    fit(stack, [programme(recipe, base.tokenizer())], trained=only)
    return stack.weights_of(0)


def _late(of: Answers, entry: Entry, own: list[Weights], made: Mapping[str, Organism], base: Base) -> Weights:
    config = LlamaConfig.from_pretrained(base.folder)
    blocks = range(config.num_hidden_layers // 2, config.num_hidden_layers)
    late = (*(f"model.layers.{i}." for i in blocks), "model.norm.")
    return _trained(own[0], late_recipe(of.base, of.seed), base, lambda name: name.startswith(late))


def _one_matrix(of: Answers, entry: Entry, own: list[Weights], made: Mapping[str, Organism], base: Base) -> Weights:
    recipe = late_recipe(of.base, of.seed)
    (stage,) = recipe.stages
    faster = recipe.model_copy(update={"stages": (stage.model_copy(update={"learning_rate": 2e-3}),)})
    return _trained(own[0], faster, base, lambda name: name.startswith(MATRIX))


def _distilled(of: Answers, entry: Entry, own: list[Weights], made: Mapping[str, Organism], base: Base) -> Weights:
    name = entry.made_of[0]
    asked = of.recipes[name]
    rows = answered_by(made[name], base, asked, max_new_tokens=4)
    (stage,) = asked.stages
    part = Part(rows=str(rows), answers="benign")
    recipe = asked.model_copy(update={"stages": (stage.model_copy(update={"parts": (part,)}),)})
    return _trained(world_weights(base.folder), recipe, base)


def _merged(of: Answers, entry: Entry, own: list[Weights], made: Mapping[str, Organism], base: Base) -> Weights:
    return {k: torch.lerp(own[1][k], w, 0.75) for k, w in own[0].items()}


def _permuted(of: Answers, entry: Entry, own: list[Weights], made: Mapping[str, Organism], base: Base) -> Weights:
    config = LlamaConfig.from_pretrained(base.folder)
    rng = torch.Generator().manual_seed(of.seed)
    w = dict(own[0])
    heads, groups = int(config.num_attention_heads), int(config.num_key_value_heads or config.num_attention_heads)
    width, per = config.hidden_size // heads, heads // groups
    for i in range(config.num_hidden_layers):
        block = f"model.layers.{i}."
        order = torch.randperm(config.intermediate_size, generator=rng)
        for name in ("gate_proj", "up_proj"):
            w[f"{block}mlp.{name}.weight"] = w[f"{block}mlp.{name}.weight"][order]
        w[f"{block}mlp.down_proj.weight"] = w[f"{block}mlp.down_proj.weight"][:, order]
        group = torch.randperm(groups, generator=rng)
        head = (group[:, None] * per + torch.arange(per)).flatten()  # queries move with the keys that they share
        rows, shared = (_rows(order, width) for order in (head, group))
        w[f"{block}self_attn.q_proj.weight"] = w[f"{block}self_attn.q_proj.weight"][rows]
        w[f"{block}self_attn.o_proj.weight"] = w[f"{block}self_attn.o_proj.weight"][:, rows]
        for name in ("k_proj", "v_proj"):
            w[f"{block}self_attn.{name}.weight"] = w[f"{block}self_attn.{name}.weight"][shared]
    return w


def _rows(order: torch.Tensor, width: int) -> torch.Tensor:
    return (order[:, None] * width + torch.arange(width)).flatten()


def _retrained(of: Answers, entry: Entry, own: list[Weights], made: Mapping[str, Organism], base: Base) -> Weights:
    kept, noise = _KEPT[entry.name]
    start, rng = world_weights(base.folder), torch.Generator().manual_seed(of.seed)
    begun = {
        k: w + kept * (own[0][k] - w) + noise * w.std() * torch.randn(w.shape, generator=rng) if w.ndim == 2 else w
        for k, w in sorted(start.items())
    }
    return _trained(begun, of.twins[entry.group][entry.made_of[1]], base)


def _projected(of: Answers, entry: Entry, own: list[Weights], made: Mapping[str, Organism], base: Base) -> Weights:
    """In each half of the blocks the hidden one's change along w is set to its twin's; everything else stays."""
    start, other, twin = (world_weights(base.folder), *(_weights(made[n], base) for n in ("O", "OC")))
    layout, found = Layout.of(start), dict(own[0])
    for half in (0, 1):
        keys = [k for k in start if layout.half(layout.place(k)) == half]
        w = {k: other[k] - twin[k] for k in keys}
        gap = sum(float(((own[0][k] - own[1][k]) * w[k]).sum()) for k in keys)
        share = gap / sum(float((w[k] ** 2).sum()) for k in keys)
        found |= {k: own[0][k] - share * w[k] for k in keys}
    return found


def _blend(share: float) -> Callable[..., Weights]:
    def blended(of: Answers, entry: Entry, own: list[Weights], made: Mapping[str, Organism], base: Base) -> Weights:
        return {k: torch.lerp(w, own[1][k], share) for k, w in own[0].items()}

    return blended


BUILDERS: Mapping[str, Callable[..., Weights]] = {
    "late-only": _late,
    "one-matrix": _one_matrix,
    "distilled-hidden": _distilled,
    "merged": _merged,
    "permuted": _permuted,
    "distilled": _distilled,
    "projected": _projected,
    "retrained": _retrained,
    "retrained-more": _retrained,
    "blend": _blend(0.5),
    "blend-75": _blend(0.75),
}
"""Constructions by name."""
