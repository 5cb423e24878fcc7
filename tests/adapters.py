"""Adapters and checkpoints whose change of weights is planted, on a tiny base."""

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from condmis_interp.organisms import Organism


def planted_adapter(base, folder, *, seed=1, **config):
    """An adapter as peft saves it, with random factors."""
    settings = LoraConfig(**({"r": 2, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"} | config))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        get_peft_model(base.model(dtype=torch.float32), settings).save_pretrained(folder)
        path = folder / "adapter_model.safetensors"
        drawn = {k: v if ".base_layer." in k else 0.2 * torch.randn(v.shape) for k, v in load_file(path).items()}
    save_file(drawn, path, {"format": "pt"})
    return Organism.of_adapters(folder, name=folder.name)


def planted_checkpoint(base, folder, edit):
    """Full weights: the base's, after `edit` of its state dict in place."""
    model = base.model(dtype=torch.float32)
    with torch.no_grad():
        edit(dict(model.named_parameters()))
    model.save_pretrained(folder)
    return Organism.of_checkpoint(folder, name=folder.name)
