"""What the files of an SAE say of it, held against each other and against its weights.

SAELens fills in what a configuration has lost, so that an SAE without its `normalize_activations`, or with another k,
loads without a complaint and gives other latents. What an SAE is may be said in several places: `cfg.json`, the
training's settings in its metadata, `runner_cfg.json` (SAELens' own training) or `manifest.json` (ours) beside it, and
the weights. Where two of them contradict each other, it is refused; what none of them says is a doubt, which the
fidelity gate shows. What they say wrongly in unison only shows on activations: see `check`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from condmis_interp.errors import CheckError, UserError
from condmis_interp.files import read_json
from condmis_interp.readers import Site, SiteKind

_HOOKS: dict[str, SiteKind] = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "hook_in": "resid_pre",
    "hook_out": "resid_post",
    "attn.hook_out": "attn_out",
    "mlp.hook_out": "mlp_out",
}
_TL = re.compile(r"blocks\.(\d+)\.((?:attn\.|mlp\.)?hook_\w+)")
_HF = re.compile(r"(?:\w+\.)*(?:layers|h|blocks)\.(\d+)(?:\.(self_attn|attn|attention|mlp))?")


def site_of_hook(name: str) -> Site:
    """Returns the site that a hook name of TransformerLens or a module path of Hugging Face names.

    Raises:
        UserError: if it names no site of ours.

    Example:
        >>> str(site_of_hook("blocks.18.hook_resid_post")), str(site_of_hook("model.layers.3.mlp"))
        ('resid_post[18]', 'mlp_out[3]')
    """
    if (m := _TL.fullmatch(name)) and m[2] in _HOOKS:
        return Site(_HOOKS[m[2]], int(m[1]))
    if m := _HF.fullmatch(name):
        kind: SiteKind = "resid_post" if m[2] is None else "mlp_out" if m[2] == "mlp" else "attn_out"
        return Site(kind, int(m[1]))
    raise UserError(
        f"the SAE's hook name {name!r} names no site known here",
        fix="Known are blocks.N.hook_resid_pre, hook_resid_post, hook_attn_out, hook_mlp_out and model.layers.N.",
    )


_ALWAYS = ("d_in", "d_sae", "dtype", "apply_b_dec_to_input", "normalize_activations", "reshape_activations")
"""What SAELens has written for every SAE since its version 6."""
_SPARSE = ("topk", "batchtopk", "jumprelu")
_SAME = ("k", "normalize_activations", "apply_b_dec_to_input", "rescale_acts_by_decoder_norm")
"""What must be said alike wherever it is said, but for what saving folds into the weights (`_folded`)."""
_FOLDED = ("expected_average_only_in", "covariance_whitening")
_SILENT = {"normalize_activations": "'none'", "apply_b_dec_to_input": "True"}
"""What SAELens assumes where a configuration from before its version 6 says nothing."""
_UNIT = 1e-2
"""Decoder rows whose norms are this near to 1 are of norm 1 (16-bit weights are that coarse)."""
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float64: "float64"}


@dataclass(frozen=True)
class Weight:
    """What is known of a stored weight: its shape and dtype, and for the decoder how far its norms are from 1."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    off_unit: float = 0.0


@dataclass(frozen=True)
class Said:
    """What is said of an SAE.

    Attributes:
        config: `cfg.json`.
        where: Folder, or release and id.
        weights: Its stored weights by name; none for a release, which SAELens converts.
        beside: Settings of its training that lie beside it, by file.

    Example:
        >>> trained = {"training_architecture": "topk", "training_architecture_details": {"k": 8}}
        >>> Said({"architecture": "topk", "k": 16, "metadata": trained}, "SAE").check_agreement()
        Traceback (most recent call last):
            ...
        condmis_interp.errors.CheckError: SAE: cfg.json says k = 16, and its training's details say 8. ...
    """

    config: Mapping[str, Any] = field(repr=False)
    where: str
    weights: Mapping[str, Weight] = field(default_factory=dict, repr=False)
    beside: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)

    @classmethod
    def of_folder(cls, folder: Path) -> "Said":
        """Reads a folder in SAELens' format.

        Raises:
            UserError: if a file is missing, or names no architecture.
            CheckError: if the weights are damaged or not finite.
        """
        for name in ("cfg.json", "sae_weights.safetensors"):
            if not (folder / name).is_file():
                pickles = sorted(p.name for p in folder.glob("*.pt")) if folder.is_dir() else []
                also = f" (there is {pickles[0]}, a pickle, which can run code)" if pickles else ""
                raise UserError(
                    f"the folder has no {name}{also}", where=str(folder), fix="Save the SAE with SAELens' save_model."
                )
        config = _object(folder / "cfg.json")
        if not any(key in config for key in ("architecture", "activation_fn_str", "activation_fn")):
            raise UserError("cfg.json names no architecture", where=str(folder))
        beside = {}
        for name, key in (("runner_cfg.json", "sae"), ("manifest.json", "settings")):
            if (folder / name).is_file():
                found = _object(folder / name).get(key)
                beside[name] = found if isinstance(found, dict) else {}
        return cls(config, str(folder), _weights(folder / "sae_weights.safetensors"), beside)

    def meta(self, key: str) -> Any:
        """Returns an entry of the metadata, wherever SAELens' versions have put it; `None` if there is none."""
        config = self.config
        return (config.get("metadata") or {}).get(key, config.get(key, config.get(key.replace("name", "point"))))

    @property
    def details(self) -> Mapping[str, Any]:
        """How it was trained, as its metadata say."""
        return self.meta("training_architecture_details") or self.config.get("activation_fn_kwargs") or {}

    @property
    def architecture(self) -> str:
        """SAELens' name of what it is loaded as."""
        old = self.config.get("activation_fn", self.config.get("activation_fn_str"))
        named = self.config.get("architecture", "standard")
        return "topk" if named == "standard" and old == "topk" else str(named)

    @property
    def k(self) -> float | None:
        """How many latents were active a token in training, or were to be; `None` where nothing says."""
        said = [self.config.get("k"), self.details.get("k"), self.details.get("target_l0")]
        said += [s.get("k") for s in self.beside.values()] + [self.meta("l0")]
        return next((float(k) for k in said if k), None)

    def site(self, asked: Site | None) -> Site:
        """Returns where it reads.

        Raises:
            UserError: if that is not where it is asked for, or it does not say.
            CheckError: if hook name and layer contradict each other.
        """
        name, layer = self.meta("hook_name"), self.meta("hook_layer")
        if name is None:
            if asked is None:
                raise UserError(
                    "the SAE does not say where it reads (no hook_name)", where=self.where, fix="Give the site."
                )
            return asked
        said = site_of_hook(str(name))
        if layer is not None and layer != said.layer:
            raise CheckError(
                f"its hook name is {name!r}, and its layer {layer}", where=self.where, fix="Correct cfg.json."
            )
        if asked is not None and said != asked:
            raise UserError(
                f"this SAE reads {said} (hook name {name!r}), not {asked}",
                where=self.where,
                fix=f"Read {said}, or load another.",
            )
        return said

    def check_width(self, d_in: Any, width: int | None) -> None:
        """Raises if it reads activations of another width than the model's."""
        if width is not None and d_in != width:
            raise UserError(
                f"this SAE reads activations of width {d_in}, the model's are {width} wide",
                where=self.where,
                fix="It was trained on another model.",
            )

    def check_architecture(self) -> None:
        """Raises if it would be loaded with another activation function than it was trained with."""
        k = self.config.get("k", self.details.get("k"))
        trained = self.meta("training_architecture")
        if self.architecture == "standard":
            found = None
            if "threshold" in self.weights:
                found = "its weights hold thresholds, so it is a JumpReLU SAE"
            elif trained in _SPARSE:
                found = f"it was trained as {trained}"
            elif k:
                found = f"its configuration has k = {k}, so it is a TopK SAE"
            if found:
                raise CheckError(
                    f"the configuration says 'standard' (ReLU), but {found}; loaded as ReLU its latents mean nothing",
                    where=self.where,
                    fix="Correct 'architecture' in cfg.json.",
                )
        if self.architecture == "topk" and not k:
            fix = "Put the k it was trained with into cfg.json."
            raise CheckError("a TopK SAE without k", where=self.where, fix=fix)
        if self.architecture == "jumprelu" and not {"threshold", "log_threshold"} & set(self.weights):
            raise CheckError("a JumpReLU SAE without thresholds in its weights", where=self.where)

    def check_complete(self) -> None:
        """Raises if the configuration has lost an entry that SAELens would fill in without a word."""
        lost = [key for key in _ALWAYS if key not in self.config]
        if lost and self._of_version_6:
            raise CheckError(
                f"cfg.json has lost {lost[0]!r}, which SAELens always writes and would guess",
                where=self.where,
                fix="Put it back, with the value that the SAE was trained with.",
            )

    @property
    def _of_version_6(self) -> bool:
        return isinstance(self.config.get("metadata"), dict)

    def check_shapes(self) -> None:
        """Raises if weights and configuration are of two different SAEs."""
        d_in, d_sae = self.config.get("d_in"), self.config.get("d_sae")
        for name, shape in {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}.items():
            if name not in self.weights:
                raise CheckError(f"the weights lack {name!r}", where=self.where)
            if self.weights[name].shape != shape:
                raise CheckError(
                    f"{name} has shape {self.weights[name].shape}, and the configuration says {shape}",
                    where=self.where,
                    fix="Weights and cfg.json are of two different SAEs.",
                )

    def check_dtype(self, given: str | None) -> None:
        """Raises if the weights are stored in another dtype than `given`, by default the configuration's."""
        said = str(given or self.config.get("dtype", "float32")).removeprefix("torch.")
        dtype = self.weights["W_enc"].dtype
        if (found := _DTYPES.get(dtype, str(dtype))) != said:
            raise CheckError(
                f"the weights are stored in {found}, and the configuration says {said}",
                where=self.where,
                fix=f"If they were cast on purpose, pass dtype={found!r}.",
            )

    def check_agreement(self) -> None:
        """Raises if two places say different things of it, or its measured L0 is more than k allows."""
        for key in _SAME:
            (first, value), *others = list(self._sources(key)) or [("", None)]
            for source, other in others:
                if value != other and not self._folded(key, value, other):
                    raise CheckError(
                        f"{first} says {key} = {value}, and {source} say{'s' * (source[-1] != 's')} {other}",
                        where=self.where,
                        fix="Find out with which it was trained, and correct the other.",
                    )
        k, l0 = self.config.get("k"), self.meta("l0")
        # TopK keeps k latents and then drops those below 0, so that L0 is at most k
        if self.architecture == "topk" and k and l0 and l0 > 1.01 * k:
            raise CheckError(
                f"cfg.json says k = {k}, and {l0:.1f} latents were active a token when its training ended",
                where=self.where,
                fix="Put the k it was trained with into cfg.json.",
            )

    def _sources(self, key: str) -> Iterator[tuple[str, Any]]:
        places = {"cfg.json": self.config, "its training's details": self.details, **self.beside}
        for name, place in places.items():
            if (value := place.get(key)) is not None:
                yield name, value

    def _folded(self, key: str, value: Any, other: Any) -> bool:
        """Returns whether what it is read with may differ from what it was trained with: saving folds the rest in."""
        if key == "normalize_activations":
            return value == "none" and other in _FOLDED
        if key == "rescale_acts_by_decoder_norm":  # rescaling by norms that are all 1 changes nothing
            return "W_dec" in self.weights and self.weights["W_dec"].off_unit <= _UNIT
        return False

    @property
    def doubts(self) -> tuple[str, ...]:
        """What the files leave open, as sentences; the fidelity gate shows them."""
        found = [
            f"cfg.json does not say {key}: {_SILENT[key]} is assumed"
            for key in _SILENT
            if key not in self.config and not self._of_version_6
        ]
        k, l0 = self.config.get("k"), self.meta("l0")
        if self.architecture == "topk" and k and l0 and l0 < k / 2:
            found.append(f"k is {k}, and {l0:.1f} latents were active a token when training ended")
        # SAELens folds the norms in as it saves, or says that they are to be divided by; old TopK SAEs do neither
        off_unit = self.weights["W_dec"].off_unit if "W_dec" in self.weights else 0.0
        silent = self.architecture == "topk" and "rescale_acts_by_decoder_norm" not in self.config
        if silent and off_unit > _UNIT:
            found.append("its decoder rows are not of norm 1, and cfg.json does not say what becomes of their norms")
        return tuple(found)


def _object(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path.name} is no JSON object", where=str(path.parent))
    return found


def _weights(path: Path) -> dict[str, Weight]:
    try:
        with safe_open(path, framework="pt") as f:
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    except SafetensorError as e:
        raise CheckError(f"the SAE's weights are damaged ({e})", where=str(path)) from None
    if broken := sorted(n for n, t in tensors.items() if not bool(torch.isfinite(t).all())):
        raise CheckError(f"weight {broken[0]!r} is not finite", where=str(path))
    off = {n: float((t.float().norm(dim=-1) - 1).abs().max()) for n, t in tensors.items() if n == "W_dec"}
    return {n: Weight(tuple(t.shape), t.dtype, off.get(n, 0.0)) for n, t in tensors.items()}
