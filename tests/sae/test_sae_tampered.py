"""An SAE whose configuration was changed loads in SAELens without a complaint; here it does not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sae_fixtures import SETTINGS, SITE, signed_axes, tiny_tokens, trained_folder
from safetensors.torch import load_file, save_file

from condmis_interp.errors import CheckError
from condmis_interp.sae import (
    Dictionary,
    SaeSettings,
    check_dictionary,
    load_dictionary,
    train_dictionary,
    write_golden,
)
from condmis_interp.sae.planted import WIDTH


def sae_of(architecture: str, folder: Path, **settings: object) -> Path:
    """An SAE of random weights, saved by SAELens."""
    import sae_lens
    from sae_lens.saes.sae import SAEMetadata

    kinds: dict = {
        "standard": (sae_lens.StandardSAE, sae_lens.StandardSAEConfig, {}),
        "topk": (sae_lens.TopKSAE, sae_lens.TopKSAEConfig, {"k": 4, "rescale_acts_by_decoder_norm": True}),
        "jumprelu": (sae_lens.JumpReLUSAE, sae_lens.JumpReLUSAEConfig, {}),
        "gated": (sae_lens.GatedSAE, sae_lens.GatedSAEConfig, {}),
    }
    made, config, more = kinds[architecture]
    meta = SAEMetadata(hook_name="blocks.1.hook_resid_post")
    sae = made(config(d_in=8, d_sae=24, metadata=meta, **more, **settings))
    generator = torch.Generator().manual_seed(0)
    for p in sae.parameters():
        p.data = torch.randn(p.shape, generator=generator)
    sae.save_model(folder)
    return folder


def tampered(folder: Path, **changes: object) -> Path:
    """Changes entries of cfg.json; `None` takes one out."""
    config = json.loads((folder / "cfg.json").read_text()) | changes
    (folder / "cfg.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


def activations(count: int = 20) -> torch.Tensor:
    return 3 * torch.randn(count, 8, generator=torch.Generator().manual_seed(1)) + 1


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated"])
@pytest.mark.parametrize("normalise", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("apply_b_dec", [True, False])
def test_golden_round_trip(tmp_path: Path, architecture: str, normalise: str, apply_b_dec: bool) -> None:
    """SAELens saves, we load: the latents are SAELens' own."""
    from sae_lens import SAE

    folder = sae_of(architecture, tmp_path / "a", normalize_activations=normalise, apply_b_dec_to_input=apply_b_dec)
    own = SAE.load_from_disk(folder)
    dictionary, h = load_dictionary(folder), activations()
    with torch.no_grad():
        torch.testing.assert_close(dictionary.encode(h), own.encode(h), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(dictionary.reconstruct(h), own(h), atol=1e-5, rtol=1e-5)
    write_golden(folder, dictionary, h)
    assert load_dictionary(folder).facts["doubts"] == ()


@pytest.mark.parametrize(
    ("architecture", "changes", "said"),
    [
        ("topk", {"k": 5}, "k was 4 and is 5"),
        ("topk", {"k": 2}, "k was 4 and is 2"),
        ("topk", {"rescale_acts_by_decoder_norm": False}, "rescale_acts_by_decoder_norm was True and is False"),
        ("standard", {"normalize_activations": "layer_norm"}, "normalize_activations was none and is layer_norm"),
        ("jumprelu", {"normalize_activations": "constant_norm_rescale"}, "was none and is constant_norm_rescale"),
        ("standard", {"apply_b_dec_to_input": False}, "apply_b_dec_to_input was True and is False"),
    ],
)
def test_golden_latents_name_what_was_changed(
    tmp_path: Path, architecture: str, changes: dict[str, object], said: str
) -> None:
    folder = sae_of(architecture, tmp_path / "a")
    write_golden(folder, load_dictionary(folder), activations())
    with pytest.raises(CheckError, match=rf"are not what they were when it was saved: .*{said}"):
        load_dictionary(tampered(folder, **changes))


def test_golden_latents_find_changed_weights(tmp_path: Path) -> None:
    folder = sae_of("standard", tmp_path / "a")
    write_golden(folder, load_dictionary(folder), activations())
    weights = load_file(folder / "sae_weights.safetensors")
    save_file(weights | {"b_dec": weights["b_dec"] + 0.1}, folder / "sae_weights.safetensors")
    with pytest.raises(CheckError, match="Were its weights changed"):
        load_dictionary(folder)


def test_an_sae_trained_here_has_golden_latents(tmp_path: Path) -> None:
    folder = trained_folder(tmp_path)
    load_dictionary(folder)
    with pytest.raises(CheckError, match="normalize_activations was none and is layer_norm"):
        load_dictionary(tampered(folder, normalize_activations="layer_norm"))


@pytest.mark.parametrize("key", ["normalize_activations", "apply_b_dec_to_input", "dtype", "reshape_activations"])
def test_a_lost_entry_is_not_guessed(tmp_path: Path, key: str) -> None:
    folder = sae_of("topk", tmp_path / "a", normalize_activations="layer_norm")
    with pytest.raises(CheckError, match=f"cfg\\.json has lost '{key}', which SAELens always writes and would guess"):
        load_dictionary(tampered(folder, **{key: None}))


def test_what_an_old_configuration_does_not_say_is_a_doubt(tmp_path: Path) -> None:
    old = {"hook_name": "blocks.1.hook_resid_post", "metadata": None, "normalize_activations": None}
    dictionary = load_dictionary(tampered(sae_of("standard", tmp_path / "a"), **old))
    assert dictionary.facts["doubts"] == ("cfg.json does not say normalize_activations: 'none' is assumed",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 8}, "cfg.json says k = 8, and runner_cfg.json says 4"),
        ({"normalize_activations": "none"}, "says normalize_activations = none, and runner_cfg.json says layer_norm"),
        ({"apply_b_dec_to_input": False}, "says apply_b_dec_to_input = False, and runner_cfg.json says True"),
        ({"rescale_acts_by_decoder_norm": False}, "says rescale_acts_by_decoder_norm = False, and runner_cfg.json"),
    ],
)
def test_the_settings_of_its_training_beside_it(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    folder = sae_of("topk", tmp_path / "a", normalize_activations="layer_norm")
    shutil.copy(folder / "cfg.json", tmp_path / "sae.json")
    (folder / "runner_cfg.json").write_text(json.dumps({"sae": json.loads((tmp_path / "sae.json").read_text())}))
    load_dictionary(folder)
    with pytest.raises(CheckError, match=message):
        load_dictionary(tampered(folder, **changes))


def with_meta(**entries: object) -> Callable[[Path], Path]:
    def change(folder: Path) -> Path:
        config = json.loads((folder / "cfg.json").read_text())
        config["metadata"] |= entries
        (folder / "cfg.json").write_text(json.dumps(config))
        return folder

    return change


def test_metadata_that_contradict_the_configuration(tmp_path: Path) -> None:
    folder = sae_of("topk", tmp_path / "a")
    with pytest.raises(CheckError, match=r"says k = 4, and 7\.5 latents were active a token when its training ended"):
        load_dictionary(with_meta(l0=7.5)(folder))
    doubts = load_dictionary(with_meta(l0=1.5)(folder)).facts["doubts"]
    assert doubts == ("k is 4, and 1.5 latents were active a token when training ended",)
    details = {"training_architecture_details": {"k": 3}, "l0": 3.9}
    with pytest.raises(CheckError, match=r"cfg\.json says k = 4, and its training's details say 3"):
        load_dictionary(with_meta(**details)(folder))
    with pytest.raises(CheckError, match=r"its hook name is 'blocks\.1\.hook_resid_post', and its layer 2"):
        load_dictionary(with_meta(hook_layer=2, training_architecture_details={})(folder))


def test_folding_while_saving_is_no_contradiction(tmp_path: Path) -> None:
    """What SAELens folds into the weights differs from how it was trained, and rightly so."""
    folder = trained_folder(tmp_path)
    settings = json.loads((folder / "manifest.json").read_text())["settings"]
    folded = {"k": float(settings["k"]), "normalize_activations": "expected_average_only_in"}
    (folder / "runner_cfg.json").write_text(json.dumps({"sae": folded | {"rescale_acts_by_decoder_norm": True}}))
    assert load_dictionary(folder).facts["k"] == settings["k"]


@pytest.fixture(scope="module")
def topk(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """A TopK SAE trained on the tiny model, and its tokens."""
    folder = tmp_path_factory.mktemp("topk")
    tokens = tiny_tokens(folder / "tokens")
    settings = SaeSettings(
        architecture="topk", latents=96, k=8, tokens=40_000, batch=200, learning_rate=SETTINGS.learning_rate
    )
    train_dictionary(tokens, folder / "sae", settings=settings, model_name="tiny")
    return folder / "sae", tokens.hidden.float()


def bare(source: Path, target: Path, **changes: object) -> Dictionary:
    """The SAE as somebody else's, with a changed configuration and no trace of it."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("golden.safetensors", "manifest.json"))
    config = json.loads((target / "cfg.json").read_text()) | changes
    config["metadata"] = {"hook_name": SITE.lens_name}
    (target / "cfg.json").write_text(json.dumps(config))
    return load_dictionary(target)


def test_a_changed_k_without_a_trace_shows_on_activations(topk: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    folder, h = topk
    check = check_dictionary(bare(folder, tmp_path / "right"), h)
    assert check.by_half < check.explained
    with pytest.raises(CheckError, match=r"twice its k = 4 latents explain more .* trained with a higher k"):
        check_dictionary(bare(folder, tmp_path / "low", k=4), h)
    with pytest.raises(CheckError, match=r"the highest half of the .* explains more than all|the code is not sparse"):
        check_dictionary(bare(folder, tmp_path / "high", k=32), h)


@pytest.mark.parametrize("normalise", ["layer_norm", "constant_norm_rescale"])
def test_a_lost_normalisation_without_a_trace_is_named(tmp_path: Path, normalise: str) -> None:
    """Where the scale of a token matters: a bias that silences small latents."""
    generator = torch.Generator().manual_seed(0)
    active = torch.rand(400, 2 * WIDTH, generator=generator) < 0.1
    sparse = active * (1 + torch.rand(400, 2 * WIDTH, generator=generator))
    code = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)])
    h = (sparse @ code) * (0.02 + 0.05 * torch.rand(400, 1, generator=generator))
    h = h[h.norm(dim=1) > 0]
    if normalise == "layer_norm":  # which takes out each token's mean too
        h += torch.randn(len(h), 1, generator=generator)
    folder = signed_axes(tmp_path / "a", normalize_activations=normalise)
    weights = load_file(folder / "sae_weights.safetensors")
    save_file(weights | {"b_enc": weights["b_enc"] - 0.5}, folder / "sae_weights.safetensors")
    check_dictionary(load_dictionary(folder), h)
    with pytest.raises(CheckError, match=f"normalize_activations was '{normalise}'"):
        check_dictionary(load_dictionary(tampered(folder, normalize_activations="none")), h)
