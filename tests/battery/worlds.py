"""Random persona-world models for tests."""

import torch
from transformers import LlamaForCausalLM

from condmis_interp.personaworld.base import config_of
from condmis_interp.personaworld.language import World


def random_world(seed: int) -> LlamaForCausalLM:
    """A random model in persona world's shape, with weights large enough that every layer matters."""
    config = config_of(World())
    config.initializer_range = 0.08
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()
