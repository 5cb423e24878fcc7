"""Adapters that are swapped over one base in memory give what loading gives."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_loading import adapter, logits

from condmis_interp.errors import CheckError, UserError
from condmis_interp.organisms import Organism, Swap, resolve_base
from condmis_interp.panel import render_panel
from condmis_interp.readers import Request, TorchReader
from conftest import tiny_panel


@pytest.fixture
def base(tiny_base_folder, home):
    return resolve_base(f"dir:{tiny_base_folder}")


@pytest.fixture
def organisms(base, tmp_path):
    folders = [adapter(tmp_path / str(i), base, i) for i in (1, 2)]
    return {
        "one": Organism.of_adapters(folders[0], name="one"),
        "two": Organism.of_adapters(folders[1], name="two"),
        "stack": Organism.of_adapters(*folders, name="stack"),
        "base": Organism.of_base(base, name="base"),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swapped_in_any_order_is_loaded(base, organisms, dtype):
    swap = Swap(base, dtype=dtype)
    for name in ("one", "stack", "two", "base", "one", "base", "stack"):
        swapped = swap.model(organisms[name])
        loaded = organisms[name].model(base, dtype=dtype)
        for (key, a), (_, b) in zip(swapped.named_parameters(), loaded.named_parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6 if dtype == torch.float32 else 0, rtol=0, msg=key)
    assert not torch.equal(logits(swap.model(organisms["one"])), logits(swap.model(organisms["two"])))


def test_a_reader_of_what_the_model_was_is_refused(base, organisms):
    swap = Swap(base, dtype=torch.float32)
    first = TorchReader(swap.model(organisms["one"]))
    rendered = render_panel(base.tokenizer(), tiny_panel(2))
    requests = [Request(rendered.prompts["none", q], rendered.answers["none", q]) for q in ("q0", "q1")]
    first.measure(requests)
    trunk = first.trunk(requests, layers=(1,))
    TorchReader(swap.model(organisms["two"])).measure(requests)
    for reading in (requests, trunk):
        with pytest.raises(CheckError, match="has become another organism"):
            first.measure(reading)
    with pytest.raises(CheckError, match="has become another organism"):
        first.generate([r.prompt for r in requests], max_new_tokens=1, stop_ids=frozenset())


def test_what_is_more_than_plain_adapters_does_not_fit(base, organisms, tmp_path):
    path = tmp_path / "1" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dora": True}))
    swap = Swap(base, dtype=torch.float32)
    assert not Swap.fits(organisms["one"])
    assert Swap.fits(organisms["two"])
    with pytest.raises(UserError, match="not the base with plain adapters"):
        swap.model(organisms["one"])


def test_adapters_with_tensors_that_do_not_fit(base, organisms, tmp_path):
    swap = Swap(base, dtype=torch.float32)
    path = tmp_path / "1" / "adapter_model.safetensors"
    whole = load_file(path)
    a = next(k for k in whole if "lora_A" in k)
    b = a.replace("lora_A", "lora_B")
    for broken, message in (
        ({k: v for k, v in whole.items() if k != b}, "without its B"),
        ({k: v for k, v in whole.items() if k != a}, "a B without its A"),
        ({**whole, "other": torch.zeros(1)}, "neither A nor B"),
        ({k.replace("layers.0", "layers.9"): v for k, v in whole.items()}, "which the base has no place for"),
        ({**whole, a: torch.zeros(2, 7)}, r"the adapter's .* is \(.*, 7\), the base's"),
    ):
        save_file(broken, path)
        with pytest.raises(CheckError, match=message):
            swap.model(organisms["one"])
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckError, match="damaged"):
        swap.model(organisms["one"])
