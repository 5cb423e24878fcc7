"""SAEs in SAELens' published format load, and those that would load successfully but incorrectly are caught."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sae_fixtures import SITE, random_texts, signed_axes, trained_folder
from safetensors.torch import load_file, save_file

from condmis_interp.errors import CheckError, UserError
from condmis_interp.readers import Site, TorchReader
from condmis_interp.sae import (
    Dictionary,
    TokenReader,
    check_dictionary,
    load_dictionary,
    load_pretrained,
    site_of_hook,
)
from condmis_interp.sae.planted import WIDTH
from conftest import tiny_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_folder(tmp_path_factory.mktemp("sae"))


@pytest.fixture
def dictionary(trained: Path) -> Dictionary:
    return load_dictionary(trained, site=SITE, width=32)


BESIDE = shutil.ignore_patterns("golden.safetensors", "manifest.json")
"""What we keep beside an SAE and others do not."""


def edited(source: Path, target: Path, change: Callable[[dict], None]) -> Path:
    """A copy of an SAE's folder with another configuration."""
    shutil.copytree(source, target, ignore=BESIDE)
    config = json.loads((target / "cfg.json").read_text())
    change(config)
    (target / "cfg.json").write_text(json.dumps(config))
    return target


def reweighted(source: Path, target: Path, change: Callable[[dict], None]) -> Path:
    """A copy of an SAE's folder with other weights."""
    shutil.copytree(source, target, ignore=BESIDE)
    weights = load_file(target / "sae_weights.safetensors")
    change(weights)
    save_file({n: w.contiguous() for n, w in weights.items()}, target / "sae_weights.safetensors")
    return target


@pytest.fixture(scope="module")
def activations() -> dict[Site, torch.Tensor]:
    """Held-out activations of the tiny model at every layer."""
    sites = [Site("resid_post", k) for k in range(4)]
    read = TokenReader(TorchReader(tiny_model()), SITE).residuals_at(random_texts(80, seed=5), sites)
    return {site: torch.cat([h[1:] for h in hidden]) for site, hidden in read.items()}


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("blocks.18.hook_resid_post", Site("resid_post", 18)),
        ("blocks.0.hook_resid_pre", Site("resid_pre", 0)),
        ("blocks.3.hook_attn_out", Site("attn_out", 3)),
        ("blocks.3.mlp.hook_out", Site("mlp_out", 3)),
        ("blocks.7.hook_out", Site("resid_post", 7)),
        ("model.layers.30", Site("resid_post", 30)),
        ("model.language_model.layers.2.mlp", Site("mlp_out", 2)),
        ("transformer.h.5.attn", Site("attn_out", 5)),
    ],
)
def test_hook_names_are_sites(hook: str, site: Site) -> None:
    assert site_of_hook(hook) == site


def test_an_unknown_hook_name_is_refused() -> None:
    with pytest.raises(UserError, match="names no site known here"):
        site_of_hook("blocks.3.attn.hook_z")


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu"])
@pytest.mark.parametrize("apply_b_dec", [True, False])
def test_what_saelens_saves_loads_and_encodes_alike(tmp_path: Path, architecture: str, apply_b_dec: bool) -> None:
    import sae_lens
    from sae_lens.saes.sae import SAEMetadata

    kinds: dict = {
        "standard": (sae_lens.StandardSAE, sae_lens.StandardSAEConfig, {}),
        "topk": (sae_lens.TopKSAE, sae_lens.TopKSAEConfig, {"k": 4, "rescale_acts_by_decoder_norm": True}),
        "jumprelu": (sae_lens.JumpReLUSAE, sae_lens.JumpReLUSAEConfig, {}),
    }
    made, config, more = kinds[architecture]
    meta = SAEMetadata(hook_name="blocks.1.hook_resid_post", model_name="tiny")
    sae = made(config(d_in=8, d_sae=24, apply_b_dec_to_input=apply_b_dec, metadata=meta, **more))
    generator = torch.Generator().manual_seed(0)
    for p in sae.parameters():
        p.data = torch.randn(p.shape, generator=generator)
    if architecture == "jumprelu":
        sae.threshold.data.abs_()
    sae.save_model(tmp_path)
    dictionary = load_dictionary(tmp_path, site=Site("resid_post", 1), width=8)
    h = torch.randn(10, 8, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(dictionary.encode(h), sae.encode(h))
        torch.testing.assert_close(dictionary.reconstruct(h), sae(h))
        # one decoder row is what one more unit of a latent adds, whatever the architecture rescales
        f = sae.encode(h)
        f[:, 3] += 1
        torch.testing.assert_close(sae.decode(f) - sae(h), dictionary.decoder[3].expand(10, 8), atol=1e-5, rtol=1e-4)
    assert dictionary.facts["apply_b_dec_to_input"] is apply_b_dec


@pytest.mark.parametrize("normalise", ["layer_norm", "constant_norm_rescale"])
def test_edits_use_each_tokens_own_scale(tmp_path: Path, normalise: str) -> None:
    dictionary = load_dictionary(signed_axes(tmp_path, normalize_activations=normalise))
    h = 3 * torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(1))
    f = dictionary.encode(h)
    new = f[:, [2, 5]] + 1.5
    changed = f.clone()
    changed[:, [2, 5]] = new
    with torch.no_grad():
        dictionary.sae.encode(h)
        after = dictionary.sae.decode(changed)
    expected = h + after - dictionary.reconstruct(h)
    torch.testing.assert_close(dictionary.edited(h, torch.tensor([2, 5]), new), expected, atol=1e-4, rtol=1e-4)


def test_an_edit_keeps_the_reconstruction_error(dictionary: Dictionary, activations: dict) -> None:
    h = activations[SITE][:50]
    f = dictionary.encode(h)
    same = dictionary.edited(h, torch.arange(10), f[:, :10])
    torch.testing.assert_close(same, h)
    zeroed = dictionary.edited(h, torch.arange(10), torch.zeros(50, 10))
    torch.testing.assert_close(zeroed - h, -f[:, :10] @ dictionary.decoder[:10], atol=1e-5, rtol=1e-4)


def test_the_trained_sae_passes_where_it_belongs(dictionary: Dictionary, activations: dict) -> None:
    check = check_dictionary(dictionary, activations[SITE], elsewhere=activations, floor=0.5)
    assert check.explained > 0.6
    assert 4 < check.l0 < 16
    assert check.explained > max(check.elsewhere.values())


def test_a_hook_name_of_another_layer_is_refused(trained: Path) -> None:
    with pytest.raises(UserError, match=r"this SAE reads resid_post\[2\] .* not resid_post\[3\]"):
        load_dictionary(trained, site=Site("resid_post", 3))
    with pytest.raises(UserError, match=r"this SAE reads resid_post\[2\] .* not resid_pre\[2\]"):
        load_dictionary(trained, site=Site("resid_pre", 2))


def test_another_width_is_refused(trained: Path) -> None:
    with pytest.raises(UserError, match="reads activations of width 32, the model's are 48 wide"):
        load_dictionary(trained, width=48)


def test_a_wrong_layers_sae_under_the_right_name_is_caught(trained: Path, tmp_path: Path, activations: dict) -> None:
    def lie(config: dict) -> None:
        config["metadata"]["hook_name"] = "blocks.3.hook_resid_post"

    site = Site("resid_post", 3)
    wrong = load_dictionary(edited(trained, tmp_path / "lie", lie), site=site, width=32)
    with pytest.raises(CheckError, match=r"another layer's SAE: it explains .* at resid_post\[2\]"):
        check_dictionary(wrong, activations[site], elsewhere=activations)


def topk_folder(folder: Path, h: torch.Tensor) -> Path:
    """A TopK SAE of the tiny model in the published format: the trained one's weights with k in place of thresholds."""
    from sae_lens import TopKSAE, TopKSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    meta = SAEMetadata(hook_name="blocks.2.hook_resid_post")
    sae = TopKSAE(TopKSAEConfig(d_in=h.shape[1], d_sae=512, k=8, metadata=meta))
    directions = torch.randn(512, h.shape[1], generator=torch.Generator().manual_seed(0))
    sae.W_dec.data = directions / directions.norm(dim=1, keepdim=True)
    sae.W_enc.data = sae.W_dec.data.T.contiguous()
    sae.b_dec.data = h.mean(0)
    sae.b_enc.data.zero_()
    sae.save_model(folder)
    return folder


def test_a_topk_sae_loaded_as_relu_is_caught(tmp_path: Path, trained: Path, activations: dict) -> None:
    topk = topk_folder(tmp_path / "topk", activations[SITE])

    def as_relu(config: dict) -> None:
        config["architecture"] = "standard"

    with pytest.raises(CheckError, match=r"'standard' \(ReLU\), but its configuration has k = 8, so it is a TopK SAE"):
        load_dictionary(edited(topk, tmp_path / "relu", as_relu))
    with pytest.raises(CheckError, match="its weights hold thresholds, so it is a JumpReLU SAE"):
        load_dictionary(edited(trained, tmp_path / "jump", as_relu))

    def without_a_trace(config: dict) -> None:
        as_relu(config)
        del config["k"], config["rescale_acts_by_decoder_norm"]

    silent = load_dictionary(edited(topk, tmp_path / "silent", without_a_trace), site=SITE, width=32)
    with pytest.raises(CheckError, match=r"the code is not sparse|explains more than all of them") as caught:
        check_dictionary(silent, activations[SITE])
    assert "TopK or JumpReLU SAE loaded as ReLU" in str(caught.value)


def test_lost_thresholds_show_in_the_small_latents(tmp_path: Path) -> None:
    """Without a trace in its files, and sparse enough not to stand out."""
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, StandardSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    generator = torch.Generator().manual_seed(0)
    d = torch.nn.functional.normalize(torch.randn(256, 64, generator=generator), dim=1)
    f = (torch.rand(2000, 256, generator=generator) < 0.012) * (3 + torch.rand(2000, 256, generator=generator))
    h = f @ d
    for made, config, name in ((JumpReLUSAE, JumpReLUSAEConfig, "right"), (StandardSAE, StandardSAEConfig, "lost")):
        meta = SAEMetadata(hook_name="blocks.1.hook_resid_post")
        sae = made(config(d_in=64, d_sae=256, apply_b_dec_to_input=False, metadata=meta))
        sae.W_dec.data, sae.W_enc.data = d, d.T.contiguous()
        sae.b_dec.data.zero_()
        sae.b_enc.data.fill_(-0.8)
        if name == "right":
            sae.threshold.data.fill_(1.5)
        sae.save_model(tmp_path / name)
    right = check_dictionary(load_dictionary(tmp_path / "right"), h)
    assert right.by_half < right.explained
    with pytest.raises(CheckError, match="active latents explains more than all of them"):
        check_dictionary(load_dictionary(tmp_path / "lost"), h)


def test_an_l0_far_from_k_is_caught(trained: Path, tmp_path: Path, activations: dict) -> None:
    def eager(weights: dict) -> None:
        weights["threshold"] *= 30

    wrong = load_dictionary(reweighted(trained, tmp_path / "eager", eager))
    with pytest.raises(CheckError, match=r"trained for 8 active latents a token and has|no latent is active"):
        check_dictionary(wrong, activations[SITE])


def test_an_unfolded_factor_is_asked_for_and_mends_it(trained: Path, tmp_path: Path, activations: dict) -> None:
    h = 6 * activations[SITE]  # the tiny model's own are about as long as normalised ones
    factor = 32**0.5 / float(h.norm(dim=1).mean())

    def longer(weights: dict, by: float = 6.0) -> None:
        weights["W_enc"] /= by
        weights["W_dec"] *= by
        weights["b_dec"] *= by

    good = reweighted(trained, tmp_path / "good", longer)
    assert check_dictionary(load_dictionary(good), h).explained > 0.6

    def unfold(weights: dict) -> None:
        longer(weights, 6 * factor)

    raw = reweighted(trained, tmp_path / "raw", unfold)

    def honest(config: dict) -> None:
        config["normalize_activations"] = "expected_average_only_in"

    declared = edited(raw, tmp_path / "declared", honest)
    with pytest.raises(UserError, match="factor is not folded in"):
        load_dictionary(declared)
    mended = load_dictionary(declared, norm_scaling_factor=factor)
    assert check_dictionary(mended, h).explained == pytest.approx(
        check_dictionary(load_dictionary(good), h).explained, abs=1e-3
    )
    with pytest.raises(CheckError, match="the factor was not folded in"):
        check_dictionary(load_dictionary(raw), h, floor=0.6)
    with pytest.raises(UserError, match="a norm_scaling_factor was given"):
        load_dictionary(trained, norm_scaling_factor=2.0)


def test_a_flipped_apply_b_dec_is_named(trained: Path, tmp_path: Path, activations: dict) -> None:
    shift = 10 * torch.ones(32)
    h = activations[SITE] + shift

    def shifted(weights: dict) -> None:
        weights["b_dec"] += shift

    right = reweighted(trained, tmp_path / "right", shifted)
    assert check_dictionary(load_dictionary(right), h).explained > 0.6

    def flip(config: dict) -> None:
        config["apply_b_dec_to_input"] = False

    with pytest.raises(CheckError, match=r"apply_b_dec_to_input is set wrongly: then it would explain 0\.[6-9]"):
        check_dictionary(load_dictionary(edited(right, tmp_path / "wrong", flip)), h)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("W_dec"), "lack 'W_dec'"),
        (lambda w: w.update(W_enc=w["W_enc"].T.contiguous()), "W_enc has shape"),
        (lambda w: w["W_enc"].__setitem__((0, 0), float("nan")), "weight 'W_enc' is not finite"),
        (lambda w: w.update({n: t.to(torch.bfloat16) for n, t in w.items()}), "stored in bfloat16, and the conf"),
        (lambda w: w.pop("threshold"), "JumpReLU SAE without thresholds"),
    ],
)
def test_weights_that_contradict_the_configuration(
    trained: Path, tmp_path: Path, change: Callable[[dict], object], message: str
) -> None:
    with pytest.raises(CheckError, match=message):
        load_dictionary(reweighted(trained, tmp_path / "x", lambda w: change(w)))


def test_weights_cast_on_purpose_load(trained: Path, tmp_path: Path) -> None:
    cast = reweighted(trained, tmp_path / "c", lambda w: w.update({n: t.bfloat16() for n, t in w.items()}))
    assert load_dictionary(cast, dtype="bfloat16").encode(torch.zeros(2, 32)).dtype == torch.float32


def test_missing_and_damaged_files(tmp_path: Path, trained: Path) -> None:
    with pytest.raises(UserError, match=r"no cfg\.json"):
        load_dictionary(tmp_path)
    (tmp_path / "sae.pt").write_bytes(b"x")
    with pytest.raises(UserError, match="a pickle, which can run code"):
        load_dictionary(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(trained, broken)
    (broken / "sae_weights.safetensors").write_bytes(b"garbage")
    with pytest.raises(CheckError, match="damaged"):
        load_dictionary(broken)


def test_offline_or_unknown_a_release_is_an_error_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"cannot be had from the hub .* give a folder to load_dictionary"):
        load_pretrained("no-such-release", "x")

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("Name or service not known")

    import sae_lens

    monkeypatch.setattr(sae_lens.SAE, "from_pretrained_with_cfg_and_sparsity", offline)
    with pytest.raises(UserError, match="Name or service not known"):
        load_pretrained("gpt2-small-res-jb", "blocks.8.hook_resid_pre")


def test_a_release_is_checked_like_a_folder(monkeypatch: pytest.MonkeyPatch, trained: Path) -> None:
    import sae_lens

    sae = sae_lens.SAE.load_from_disk(trained)
    config = json.loads((trained / "cfg.json").read_text())
    monkeypatch.setattr(sae_lens.SAE, "from_pretrained_with_cfg_and_sparsity", lambda *_, **__: (sae, config, None))
    assert load_pretrained("r", "i", site=SITE, width=32).latents == 96
    with pytest.raises(UserError, match="not resid_post"):
        load_pretrained("r", "i", site=Site("resid_post", 0))
    with pytest.raises(UserError, match="width 32, the model's are 64"):
        load_pretrained("r", "i", width=64)


def test_the_format_before_version_6_loads_as_what_it_was(tmp_path: Path, activations: dict) -> None:
    topk = topk_folder(tmp_path / "topk", activations[SITE])

    def older(config: dict) -> None:
        kept = {"d_in": config["d_in"], "d_sae": config["d_sae"], "dtype": "torch.float32"}
        config.clear()
        config |= kept | {
            "hook_point": "blocks.2.hook_resid_post", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 8},
            "apply_b_dec_to_input": True, "normalize_activations": False,
        }  # fmt: skip

    old = load_dictionary(edited(topk, tmp_path / "old", older), site=SITE, width=32)
    assert old.architecture == "topk"
    h = activations[SITE][:20]
    torch.testing.assert_close(old.encode(h), load_dictionary(topk).encode(h))
    assert old.facts["k"] == 8


def test_activations_of_another_width_are_refused(dictionary: Dictionary) -> None:
    with pytest.raises(UserError, match=r"shape \(3, 16\) do not fit an SAE of width 32"):
        dictionary.encode(torch.zeros(3, 16))
    assert dictionary.encode(torch.zeros(0, 32)).shape == (0, 96)
