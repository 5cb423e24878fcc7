"""Faults planted into an SAE that was just trained."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from plan import Plan
from safetensors.torch import load_file, save_file

from condmis_interp.errors import CondmisError
from condmis_interp.files import read_json, write_json
from condmis_interp.readers import Site
from condmis_interp.sae import check_dictionary, load_dictionary


def planted_faults(
    folder: Path, plan: Plan, hidden: torch.Tensor, elsewhere: dict[Site, torch.Tensor]
) -> dict[str, str]:
    """Plants faults into the SAE just trained; returns how each is caught, on real activations."""
    near = min(elsewhere, key=lambda s: abs(s.layer - plan.site.layer))

    def lying(config: dict[str, Any]) -> None:
        config["metadata"]["hook_name"] = near.lens_name

    def relu(config: dict[str, Any]) -> None:
        config["architecture"] = "standard"

    def bare_relu(config: dict[str, Any]) -> None:
        config["architecture"] = "standard"
        config["metadata"] = {"hook_name": plan.site.lens_name, "sae_lens_version": "6.0.0"}

    everywhere = elsewhere | {plan.site: hidden}
    faults: dict[str, tuple[Callable[[dict[str, Any]], None], bool, Site, bool]] = {
        "asked for another layer": (lambda _: None, True, near, True),
        "another layer's weights under this hook name": (lying, True, near, True),
        "JumpReLU declared as ReLU": (relu, True, plan.site, True),
        "its thresholds lost too (as TopK loaded as ReLU)": (bare_relu, False, plan.site, True),
        "another model's width": (lambda _: None, True, plan.site, False),
    }
    caught = {}
    for name, (change, thresholds, site, fits) in faults.items():
        with tempfile.TemporaryDirectory() as work:
            config = read_json(folder / "cfg.json")
            change(config)
            write_json(Path(work) / "cfg.json", config)
            weights = load_file(folder / "sae_weights.safetensors")
            if not thresholds:
                weights.pop("threshold")
            save_file(weights, Path(work) / "sae_weights.safetensors")
            try:
                sae = load_dictionary(work, site=site, width=hidden.shape[1] if fits else 2 * hidden.shape[1])
                check_dictionary(sae, everywhere[site], elsewhere=everywhere)
                caught[name] = "NOT CAUGHT"
            except CondmisError as error:
                caught[name] = f"{type(error).__name__}: {error}".replace(str(work), "SAE")
    return caught
