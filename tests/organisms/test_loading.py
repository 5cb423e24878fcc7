"""Others' models: adapter stacks and full checkpoints, and what is refused."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from condmis_interp.errors import CheckError, UserError
from condmis_interp.organisms import Organism, check_checkpoint, resolve_base
from conftest import tiny_model, tiny_tokenizer


@pytest.fixture
def base(tiny_base_folder, home):
    return resolve_base(f"dir:{tiny_base_folder}")


def adapter(folder, base, seed, scale=0.2):
    """A LoRA adapter with random weights."""
    model = get_peft_model(base.model(dtype=torch.float32), LoraConfig(r=2, target_modules="all-linear"))
    model.save_pretrained(folder)
    path = folder / "adapter_model.safetensors"
    g = torch.Generator().manual_seed(seed)
    save_file({k: scale * torch.randn(v.shape, generator=g) for k, v in load_file(path).items()}, path)
    return folder


def logits(model):
    return model(input_ids=torch.arange(2, 20)[None]).logits


def test_a_stack_of_adapters_is_merged_in_order(base, tmp_path):
    folders = [adapter(tmp_path / str(i), base, i) for i in (1, 2)]
    stacked = logits(Organism.of_adapters(*folders, name="s").model(base, dtype=torch.float32))
    by_hand = base.model(dtype=torch.float32)
    for folder in folders:
        w = load_file(folder / "adapter_model.safetensors")
        scaling = json.loads((folder / "adapter_config.json").read_text())["lora_alpha"] / 2
        with torch.no_grad():
            for name, p in by_hand.named_parameters():
                key = f"base_model.model.{name.removesuffix('.weight')}"
                if f"{key}.lora_A.weight" in w:
                    p += scaling * w[f"{key}.lora_B.weight"] @ w[f"{key}.lora_A.weight"]
    torch.testing.assert_close(stacked, logits(by_hand), atol=1e-3, rtol=1e-3)
    one = logits(Organism.of_adapters(folders[0], name="s").model(base, dtype=torch.float32))
    assert not torch.allclose(stacked, one)


def test_a_stack_that_cannot_be_is_refused(base, tmp_path):
    a, b = (adapter(tmp_path / str(i), base, i) for i in (1, 2))
    with pytest.raises(UserError, match="the same adapter twice"):
        Organism.of_adapters(a, a, name="s")
    below = Organism.of_adapters(a, name="s").weights
    (b / "manifest.json").write_text(json.dumps({"on": [below]}))
    Organism.of_adapters(a, b, name="s")
    with pytest.raises(UserError, match="on top of other adapters"):
        Organism.of_adapters(b, a, name="s")
    save_file(
        {k: v[:, :1].contiguous() for k, v in load_file(a / "adapter_model.safetensors").items()},
        b / "adapter_model.safetensors",
    )
    with pytest.raises(CheckError, match="does not fit base"):
        Organism.of_adapters(a, b, name="s").model(base, dtype=torch.float32)


class TestCheckpoint:
    @pytest.fixture
    def folder(self, tmp_path):
        tiny_model(5).save_pretrained(tmp_path / "full")
        return tmp_path / "full"

    def test_it_is_loaded_as_it_is(self, base, folder):
        organism = Organism.of_checkpoint(folder, name="x")
        torch.testing.assert_close(logits(organism.model(base, dtype=torch.float32)), logits(tiny_model(5)))
        assert organism.weights != base.weights
        assert check_checkpoint(folder, base) > 0

    def test_the_bases_own_weights_are_no_organism(self, base, tiny_base_folder):
        with pytest.raises(CheckError, match="the base's own logits"):
            check_checkpoint(tiny_base_folder, base)

    def test_weights_that_are_not_finite(self, base, folder):
        path = folder / "model.safetensors"
        save_file({k: v * torch.nan for k, v in load_file(path).items()}, path, {"format": "pt"})
        with pytest.raises(CheckError, match="not finite"):
            check_checkpoint(folder, base)

    def test_a_pickle_and_a_folder_without_weights(self, folder, tmp_path):
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        with pytest.raises(UserError, match="pickle"):
            Organism.of_checkpoint(folder, name="x")
        (folder / "pytorch_model.bin").unlink()
        with pytest.raises(UserError, match="it has no weights"):
            Organism.of_checkpoint(folder, name="x")
        shutil.rmtree(folder)
        with pytest.raises(UserError, match="no such model folder"):
            Organism.of_checkpoint(folder, name="x")

    def test_another_vocabulary(self, folder, tmp_path):
        tiny_model(0).save_pretrained(tmp_path / "other")
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens([f"new{i}" for i in range(9)])
        tokenizer.save_pretrained(tmp_path / "other")
        other = resolve_base(f"dir:{tmp_path / 'other'}")
        with pytest.raises(UserError, match="knows 258 tokens, its base's tokenizer 267"):
            Organism.of_checkpoint(folder, name="x").model(other, dtype=torch.float32)
