"""Training SAEs with SAELens' own trainer on tokens that we read.

SAELens' `SAETrainer` is driven step by step through its public seam (as its `MultiSAETrainer` drives it), so that
progress, checkpoints and the order of tokens are ours while losses, dead-latent rescue, schedules and the published
file format are SAELens'. Inputs are scaled to a mean norm of sqrt(width) and the factor is folded into the weights at
the end, so a finished SAE reads plain activations.

A run that is killed goes on: every few hundred steps the trainer's state is written, whole, as safetensors (SAELens'
own checkpoint is a pickle), and the order of tokens is a function of seed and step.
"""

import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file

from condmis_interp.errors import CheckError, UserError
from condmis_interp.files import digest, read_json, whole_file, write_json
from condmis_interp.organisms.home import appearing
from condmis_interp.organisms.rng import own_rng
from condmis_interp.progress import progress
from condmis_interp.sae.dictionary import Dictionary
from condmis_interp.sae.golden import TOKENS, write_golden
from condmis_interp.sae.load import load_dictionary
from condmis_interp.sae.tokens import Tokens

Architecture = Literal["batchtopk", "topk", "jumprelu"]
_VERSION = 1
_CHECKPOINT_EVERY = 500


@dataclass(frozen=True)
class SaeSettings:
    """What an SAE is and how it is trained.

    Attributes:
        architecture: `batchtopk` (saved as JumpReLU, as SAELens does), `topk`, or `jumprelu` with a quadratic penalty
            around k active latents.
        latents: Number of latents.
        k: Active latents a token (for `batchtopk` and `jumprelu` on average).
        tokens: Training tokens; more than there are means several passes.
        batch: Tokens a step.
        learning_rate: Peak; falls to 0 over the last fifth.
        l0_coefficient: Weight of JumpReLU's penalty.
        seed: Seed of initial weights and of the order of tokens.

    Example:
        >>> SaeSettings(latents=64, k=4, tokens=1000, batch=100).steps
        10
    """

    architecture: Architecture = "batchtopk"
    latents: int = 2048
    k: int = 32
    tokens: int = 1_000_000
    batch: int = 1024
    learning_rate: float = 1e-3
    l0_coefficient: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.k <= self.latents:
            raise UserError(f"k is {self.k} with {self.latents} latents", fix="Give 0 < k <= latents.")
        if not 0 < self.batch <= self.tokens:
            raise UserError(f"a batch of {self.batch} tokens does not fit {self.tokens} training tokens")

    @property
    def determining(self) -> dict[str, Any]:
        """What determines the SAE: a setting that its architecture does not use is left out."""
        return {n: v for n, v in asdict(self).items() if n != "l0_coefficient" or self.architecture == "jumprelu"}

    @property
    def steps(self) -> int:
        """Number of optimiser steps."""
        return self.tokens // self.batch


def train_dictionary(
    tokens: Tokens,
    folder: Path,
    *,
    settings: SaeSettings,
    model_name: str,
    device: str = "cpu",
) -> Dictionary:
    """Trains an SAE, or opens the one that the same tokens and settings gave before.

    Args:
        tokens: What it is trained on; differences give a difference SAE.
        folder: Where it goes; it appears whole, in SAELens' published format with a `manifest.json`.
        settings: What it is and how it is trained.
        model_name: The base model, for the SAE's metadata.
        device: Torch device.

    Raises:
        UserError: if there are fewer tokens than one batch, or the folder holds another SAE.
        CheckError: if the loss is not finite.

    Example:
        >>> from tempfile import mkdtemp
        >>> from condmis_interp.readers import Site
        >>> h = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
        >>> tokens = Tokens(h, Site("resid_post", 1), "key", {"name": "m", "texts": "as read"})
        >>> settings = SaeSettings(latents=8, k=2, tokens=64, batch=32)
        >>> train_dictionary(tokens, Path(mkdtemp()) / "sae", settings=settings, model_name="tiny")
        Dictionary(jumprelu, 8 latents, resid_post[1], activations, ...)
    """
    key = digest([_VERSION, tokens.key, settings.determining, model_name])
    if (folder / "manifest.json").is_file():
        if read_json(folder / "manifest.json").get("key") != key:
            raise UserError("the folder holds an SAE of other tokens or settings", where=str(folder))
        return _opened(folder, tokens)
    if len(tokens) < settings.batch:
        raise UserError(f"{len(tokens)} tokens are fewer than one batch of {settings.batch}")
    with own_rng(digest(["sae", settings.seed])):
        trainer = _trainer(tokens, settings, model_name, device)
        _run(trainer, tokens, settings, folder.with_name(f".{folder.name}.{key[:8]}.state"))
    sae = trainer.sae
    if trainer.activation_scaler.scaling_factor is not None:
        sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
    trainer.set_final_sae_metadata()
    with appearing(folder) as made:
        sae.to("cpu").save_inference_model(made)
        write_golden(made, load_dictionary(made), tokens.rows(torch.arange(TOKENS)))
        manifest = {"key": key, "settings": asdict(settings), "tokens": len(tokens), "trained_on": tokens.about}
        manifest |= {"dead": int(trainer.dead_neurons.sum()), "l0": sae.cfg.metadata.l0, "site": str(tokens.site)}
        write_json(made / "manifest.json", manifest)
    for state in folder.parent.glob(f".{folder.name}.{key[:8]}.state.*"):
        state.unlink()
    return _opened(folder, tokens)


def _opened(folder: Path, tokens: Tokens) -> Dictionary:
    return replace(load_dictionary(folder, site=tokens.site, width=tokens.width), reads=tokens.reads)


def _trainer(tokens: Tokens, settings: SaeSettings, model_name: str, device: str) -> Any:
    import sae_lens
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata

    shape: dict[str, Any] = {
        "d_in": tokens.width,
        "d_sae": settings.latents,
        "device": device,
        "normalize_activations": "expected_average_only_in",
        "metadata": SAEMetadata(
            model_name=model_name, hook_name=tokens.site.lens_name, condmis_reads=tokens.reads, context_size=None
        ),
    }
    if settings.architecture == "batchtopk":
        config: Any = sae_lens.BatchTopKTrainingSAEConfig(k=float(settings.k), **shape)
        sae: Any = sae_lens.BatchTopKTrainingSAE(config)
    elif settings.architecture == "topk":
        config = sae_lens.TopKTrainingSAEConfig(k=settings.k, **shape)
        sae = sae_lens.TopKTrainingSAE(config)
    else:
        config = sae_lens.JumpReLUTrainingSAEConfig(
            l0_coefficient=settings.l0_coefficient,
            l0_warm_up_steps=settings.steps // 4,  # latents form before they are counted
            jumprelu_sparsity_loss_mode="quadratic",
            target_l0=float(settings.k),
            jumprelu_bandwidth=0.5,
            jumprelu_init_threshold=0.1,
            jumprelu_ste_to_input=True,
            **shape,
        )
        sae = sae_lens.JumpReLUTrainingSAE(config)
    sae.b_dec.data.copy_(tokens.mean * tokens.factor)  # what every token shares needs no latent
    trainer = sae_lens.SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=settings.steps * settings.batch,
            train_batch_size_samples=settings.batch,
            lr=settings.learning_rate,
            lr_end=settings.learning_rate,
            lr_warm_up_steps=min(100, settings.steps // 10),
            lr_decay_steps=settings.steps // 5,
            device=device,
            # a latent counts as dead after a twentieth of the run; the rates are those of the whole run
            dead_feature_window=max(50, settings.steps // 20),
            feature_sampling_window=settings.steps + 1,
        ),
        sae=sae,
        data_provider=iter(()),
    )
    # known from all tokens; SAELens would estimate it from a few batches of its own data provider, which is empty here
    trainer.activation_scaler.scaling_factor = tokens.factor
    return trainer


def _run(trainer: Any, tokens: Tokens, settings: SaeSettings, state: Path) -> None:
    done = _restore(trainer, state)
    with progress(f"training an SAE of {settings.latents} latents", settings.steps, unit="steps", done=done) as step:
        for at, batch in _batches(tokens, settings, start=done):
            out = trainer.step(batch)
            trainer.n_training_steps += 1
            if (at + 1) % _CHECKPOINT_EVERY == 0:
                if not bool(torch.isfinite(out.loss)):
                    raise CheckError(
                        f"the SAE's loss is {float(out.loss)} at step {at}", fix="Lower the learning rate."
                    )
                _save(trainer, state)
            step()
    if not all(bool(torch.isfinite(p).all()) for p in trainer.sae.parameters()):
        raise CheckError("the trained SAE has weights that are not finite", fix="Lower the learning rate.")


def _batches(tokens: Tokens, settings: SaeSettings, *, start: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Yields step and batch; each pass over the tokens has an order of its own, drawn from seed and pass."""
    each = len(tokens) // settings.batch
    order, passed = torch.empty(0, dtype=torch.long), -1
    for at in range(start, settings.steps):
        if at // each != passed:
            passed = at // each
            generator = torch.Generator().manual_seed(int(digest([settings.seed, passed])[:12], 16))
            order = torch.randperm(len(tokens), generator=generator)
        k = at % each
        yield at, tokens.rows(order[k * settings.batch : (k + 1) * settings.batch]).float()


def _save(trainer: Any, state: Path) -> None:
    tensors = {f"sae.{n}": t.detach().cpu().clone() for n, t in trainer.sae.state_dict().items()}
    for i, slots in trainer.optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{i}.{n}": torch.as_tensor(t).cpu().clone() for n, t in slots.items()}
    tensors["fired"] = trainer.n_forward_passes_since_fired.cpu().clone()
    tensors["rate"] = trainer.act_freq_scores.cpu().clone()
    facts = {
        "steps": trainer.n_training_steps,
        "samples": trainer.n_training_samples,
        "counted": trainer.n_frac_active_samples,
        "coefficients": {n: s.state_dict() for n, s in trainer.coefficient_schedulers.items()},
    }
    with whole_file(state.with_name(state.name + f".{trainer.n_training_steps}.safetensors")) as part:
        save_file(tensors, part)
    write_json(state.with_name(state.name + ".json"), facts)
    for old in state.parent.glob(f"{state.name}.*.safetensors"):
        if old.name != f"{state.name}.{trainer.n_training_steps}.safetensors":
            old.unlink()


def _restore(trainer: Any, state: Path) -> int:
    """Puts a killed run's state back; returns the number of steps done."""
    facts_path = state.with_name(state.name + ".json")
    if not facts_path.is_file():
        return 0
    facts = read_json(facts_path)
    tensors_path = state.with_name(state.name + f".{facts['steps']}.safetensors")
    if not tensors_path.is_file():
        return 0
    tensors = load_file(tensors_path)
    with warnings.catch_warnings():  # torch warns that the schedule runs ahead of the optimiser: it is caught up here
        warnings.simplefilter("ignore")
        for _ in range(facts["steps"]):
            trainer.lr_scheduler.step()
    trainer.sae.load_state_dict({n.removeprefix("sae."): t for n, t in tensors.items() if n.startswith("sae.")})
    optimiser = trainer.optimizer.state_dict()
    for name, tensor in tensors.items():
        if name.startswith("adam."):
            _, i, slot = name.split(".")
            optimiser["state"].setdefault(int(i), {})[slot] = tensor
    trainer.optimizer.load_state_dict(optimiser)
    trainer.n_forward_passes_since_fired = tensors["fired"].to(trainer.cfg.device)
    trainer.act_freq_scores = tensors["rate"].to(trainer.cfg.device)
    trainer.n_training_steps, trainer.n_training_samples = facts["steps"], facts["samples"]
    trainer.n_frac_active_samples = facts["counted"]
    for n, s in trainer.coefficient_schedulers.items():
        s.load_state_dict(facts["coefficients"][n])
    return facts["steps"]
