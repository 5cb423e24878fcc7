"""Training: SAELens' trainer and format, the same SAE after a kill, nobody's random state touched."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sae_fixtures import SETTINGS, SITE, random_texts, tiny_tokens, trained_folder
from safetensors.torch import load_file

import condmis_interp.sae.train as train_module
from condmis_interp.errors import UserError
from condmis_interp.files import read_json
from condmis_interp.readers import Site, TorchReader
from condmis_interp.sae import (
    SaeSettings,
    TokenReader,
    Tokens,
    check_dictionary,
    pooled,
    read_tokens,
    train_dictionary,
)
from conftest import tiny_model

SMALL = replace(SETTINGS, tokens=10_000, latents=48)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_folder(tmp_path_factory.mktemp("sae"))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    return tiny_tokens(tmp_path_factory.mktemp("tokens"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "sae_weights.safetensors")


@pytest.mark.parametrize("architecture", ["batchtopk", "topk", "jumprelu"])
def test_each_architecture_trains_and_is_saved_as_saelens_saves_it(
    tokens: Tokens,
    tmp_path: Path,
    architecture: str,
) -> None:
    from sae_lens import SAE

    settings = replace(SETTINGS, architecture=architecture, tokens=40_000)
    dictionary = train_dictionary(tokens, tmp_path / "sae", settings=settings, model_name="tiny")
    plain = SAE.load_from_disk(tmp_path / "sae")
    assert plain.cfg.architecture() == {"batchtopk": "jumprelu"}.get(architecture, architecture)
    assert plain.cfg.normalize_activations == "none"  # folded: it reads plain activations
    assert plain.cfg.metadata.hook_name == "blocks.2.hook_resid_post"
    h = tokens.rows(torch.arange(100)).float()
    with torch.no_grad():
        torch.testing.assert_close(dictionary.encode(h), plain.encode(h))
    assert check_dictionary(dictionary, tokens.hidden.float()).explained > 0.6


def test_a_killed_run_goes_on_to_the_same_weights(
    tokens: Tokens,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train_module, "_CHECKPOINT_EVERY", 10)
    train_dictionary(tokens, tmp_path / "whole", settings=SMALL, model_name="tiny")
    batches = train_module._batches
    ran: list[int] = []

    def dies(*args: object, start: int) -> object:
        for at, batch in batches(*args, start=start):
            if at == 37 and not start:
                raise KeyboardInterrupt
            ran.append(at)
            yield at, batch

    monkeypatch.setattr(train_module, "_batches", dies)
    with pytest.raises(KeyboardInterrupt):
        train_dictionary(tokens, tmp_path / "killed", settings=SMALL, model_name="tiny")
    assert not (tmp_path / "killed").exists()
    ran.clear()
    train_dictionary(tokens, tmp_path / "killed", settings=SMALL, model_name="tiny")
    assert ran[0] == 30  # from the last checkpoint, not from the start
    for name, w in weights(tmp_path / "whole").items():
        assert torch.equal(w, weights(tmp_path / "killed")[name]), name
    assert not list(tmp_path.glob(".killed*state*"))


def test_finished_work_is_not_done_twice_and_other_work_is_not_passed_off_for_it(
    tokens: Tokens,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(train_module, "_trainer", never)
    assert train_dictionary(tokens, trained, settings=SETTINGS, model_name="tiny").latents == 96
    unused = replace(SETTINGS, l0_coefficient=0.5)  # JumpReLU's alone
    assert train_dictionary(tokens, trained, settings=unused, model_name="tiny").latents == 96
    with pytest.raises(UserError, match="holds an SAE of other tokens or settings"):
        train_dictionary(tokens, trained, settings=replace(SETTINGS, seed=1), model_name="tiny")


def test_global_random_state_is_left_alone(tokens: Tokens, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    settings = replace(SMALL, tokens=400)
    train_dictionary(tokens, tmp_path / "a", settings=settings, model_name="tiny")
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    train_dictionary(tokens, tmp_path / "b", settings=settings, model_name="tiny")
    for name, w in weights(tmp_path / "a").items():
        assert torch.equal(w, weights(tmp_path / "b")[name])


def test_settings_that_cannot_be_are_refused(tokens: Tokens, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="k is 9 with 4 latents"):
        SaeSettings(latents=4, k=9)
    with pytest.raises(UserError, match="does not fit"):
        SaeSettings(batch=100, tokens=10)
    settings = replace(SMALL, batch=9_000)
    with pytest.raises(UserError, match="fewer than one batch"):
        train_dictionary(tokens, tmp_path / "x", settings=settings, model_name="tiny")


def test_tokens_are_read_once_and_only_for_the_same_weights_and_texts(tmp_path: Path) -> None:
    reader = TokenReader(TorchReader(tiny_model()), SITE)
    texts = random_texts(6)
    about = {"name": "m", "site": SITE, "folder": tmp_path}
    first = read_tokens(reader, texts, weights="a", **about)
    assert len(first) == sum(len(t.ids) - 1 for t in texts)  # all but each text's first
    again = read_tokens(None, texts, weights="a", **about)
    assert torch.equal(first.hidden, again.hidden)
    for change in ({"weights": "b"}, {"weights": "a", "skip": 2}):
        with pytest.raises(UserError, match="are not there"):
            read_tokens(None, texts, **(about | change))
    with pytest.raises(UserError, match="are not there"):
        read_tokens(None, texts[:5], weights="a", **about)


def test_the_first_position_is_left_out_of_the_tokens(tmp_path: Path) -> None:
    reader = TokenReader(TorchReader(tiny_model()), SITE)
    texts = random_texts(3)
    kept = read_tokens(reader, texts, weights="a", name="m", site=SITE, folder=tmp_path, dtype=torch.float32).hidden
    torch.testing.assert_close(kept, torch.cat([h[1:] for h in reader.residuals(texts)]))


def test_differences_need_the_same_tokens(tmp_path: Path) -> None:
    texts = random_texts(6)
    read = {
        (seed, n): read_tokens(
            TokenReader(TorchReader(tiny_model(seed)), SITE), texts[:n], name=f"m{seed}.{n}", weights=str(seed),
            site=SITE, folder=tmp_path, dtype=torch.float32,
        )
        for seed, n in ((0, 6), (1, 6), (1, 5))
    }  # fmt: skip
    difference = read[0, 6].minus(read[1, 6])
    assert difference.reads == "difference"
    torch.testing.assert_close(difference.hidden, read[0, 6].hidden - read[1, 6].hidden)
    with pytest.raises(UserError, match="different tokens have no difference"):
        read[0, 6].minus(read[1, 5])
    with pytest.raises(UserError, match="one site, width and kind"):
        pooled([difference, read[0, 6]])
    both = pooled([read[0, 6], read[1, 6]])
    assert len(both) == 2 * len(difference)
    torch.testing.assert_close(both.mean, both.hidden.mean(0))
    assert both.factor == pytest.approx(32**0.5 / float(both.hidden.norm(dim=1).mean()), rel=1e-5)


def test_a_difference_sae_says_so(tmp_path: Path) -> None:
    texts = random_texts(60)
    readers = [TokenReader(TorchReader(tiny_model(s)), SITE) for s in (0, 1)]
    parts = [
        read_tokens(reader, texts, name=f"m{s}", weights=str(s), site=SITE, folder=tmp_path)
        for s, reader in enumerate(readers)
    ]
    settings = replace(SMALL, tokens=2000)
    train_dictionary(parts[0].minus(parts[1]), tmp_path / "d", settings=settings, model_name="tiny")
    from condmis_interp.sae import load_dictionary

    assert load_dictionary(tmp_path / "d", site=Site("resid_post", 2)).reads == "difference"
    assert read_json(tmp_path / "d" / "manifest.json")["trained_on"]["minus"] == "m1"
