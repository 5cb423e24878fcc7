"""Names on the hub: what they mean, what is fetched, what the cache gives, and every way in which the hub fails."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from condmis_interp.errors import UserError
from condmis_interp.organisms import Organism, check_adapter, resolve_base
from condmis_interp.organisms.hub import HubName, as_hub, fetch, hub_name
from condmis_interp.study import Study
from conftest import tiny_model
from hub import COMMIT, OLDER, Hub, lay_out, served
from untrained import write_study


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    for name in ("HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_TOKEN", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hub(cache, monkeypatch):
    made = Hub()
    with served(made) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield made


@pytest.fixture
def offline(cache, monkeypatch) -> Path:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    return cache


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    """An adapter of plain peft, made outside the package."""
    folder = tmp_path_factory.mktemp("adapter")
    made = get_peft_model(tiny_model(), LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]))
    generator = torch.Generator().manual_seed(5)
    for name, p in made.named_parameters():
        if "lora_B" in name:
            p.data.normal_(generator=generator)
    made.save_pretrained(folder)
    return folder


class TestWhatANameMeans:
    @pytest.mark.parametrize(
        ("spec", "name"),
        [
            ("hf:o/n", HubName("o/n")),
            ("hf:o/n@v1.0", HubName("o/n", "", "v1.0")),
            ("hf:o/n/sub", HubName("o/n", "sub")),
            ("hf:o/n/a/b@refs/pr/3", HubName("o/n", "a/b", "refs/pr/3")),
        ],
    )
    def test_it_is_parsed_and_written_again(self, spec, name):
        assert hub_name(spec) == name
        assert str(name) == spec

    @pytest.mark.parametrize(
        "spec", ["hf:", "hf:o", "hf:o/n/../x", "hf:o/..", "hf:o/n//x", "hf:o n/x", "hf:o/n@", "hf:/o/n", "hf:o/n\n"]
    )
    def test_what_is_none_is_refused(self, spec):
        with pytest.raises(UserError, match="is no name on the hub"):
            hub_name(spec)

    def test_a_path_that_exists_is_a_path(self, tmp_path):
        (tmp_path / "o" / "n").mkdir(parents=True)
        assert as_hub("o/n", tmp_path) is None
        assert as_hub("p/n", tmp_path) == "hf:p/n"
        assert as_hub("o/n/deeper", tmp_path) is None
        assert as_hub("../o/x", tmp_path) is None

    def test_a_name_beside_a_folder_of_its_owner_is_ambiguous(self, tmp_path):
        (tmp_path / "adapters").mkdir()
        with pytest.raises(UserError, match=r"no 'bad' in the folder 'adapters' here.*write hf:adapters/bad"):
            as_hub("adapters/bad", tmp_path)

    def test_a_base_that_is_a_folder_says_how_to_write_it(self, tmp_path, monkeypatch):
        (tmp_path / "o" / "n").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UserError, match=r"this is a folder here. Write dir:o/n; or, .* hf:o/n"):
            resolve_base("o/n")


class TestFetching:
    def test_a_base_is_the_folder_that_was_put_there(self, hub, tiny_base_folder):
        hub.put("o/n", tiny_base_folder)
        base = resolve_base("o/n")
        assert base.content == resolve_base(f"dir:{tiny_base_folder}").content
        assert base.source == {"kind": "hf", "name": "o/n", "revision": COMMIT}

    def test_a_revision_is_kept_as_asked_and_as_the_commit_it_meant(self, hub, tiny_base_folder):
        hub.put("o/n", tiny_base_folder, commit=OLDER)
        assert resolve_base("hf:o/n@older").source == {
            "kind": "hf",
            "name": "o/n",
            "revision": OLDER,
            "asked": "older",
        }

    def test_only_what_stands_in_the_named_folder_is_fetched(self, hub, adapter, tmp_path):
        for under in ("one/", "two/"):
            hub.put("o/n", adapter, under=under)
        found = fetch("hf:o/n/two", "adapter")
        assert found.source == {"kind": "hf", "name": "o/n", "revision": COMMIT, "subfolder": "two"}
        assert not [p for p in hub.asked if "/resolve/" in p and "/one/" in p]
        assert Organism.of_adapters(found.folder, name="m").weights == Organism.of_adapters(adapter, name="m").weights

    def test_two_adapters_and_no_subfolder_lists_them(self, hub, adapter):
        for under in ("one/", "two/"):
            hub.put("o/n", adapter, under=under)
        with pytest.raises(UserError, match=r"It holds 2; name one: hf:o/n/one, hf:o/n/two"):
            fetch("hf:o/n", "adapter")

    def test_an_adapter_is_no_model_and_a_model_no_adapter(self, hub, adapter, tiny_base_folder):
        hub.put("o/a", adapter)
        hub.put("o/b", tiny_base_folder)
        with pytest.raises(UserError, match=r"no config.json\). It is an adapter"):
            fetch("hf:o/a", "model")
        with pytest.raises(UserError, match=r"no adapter_config.json\). It is a whole model"):
            fetch("hf:o/b", "adapter")

    @pytest.mark.parametrize("pickle", ["adapter_model.bin", "adapter.pt"])
    def test_a_pickle_is_refused_by_name_before_anything_is_fetched(self, hub, pickle):
        hub.repositories["o/n"] = {COMMIT: {"adapter_config.json": b"{}", pickle: b"code"}}
        with pytest.raises(UserError, match=rf"pickle \({pickle}\), which can run code"):
            fetch("hf:o/n", "adapter")
        assert not [p for p in hub.asked if "/resolve/" in p]

    @pytest.mark.parametrize(
        ("fault", "said"),
        [
            ("gated", r"gated, and the hub does not let this account in.*Accept its terms"),
            ("private", r"has no model repository 'o/n', or it is private"),
            ("absent", r"has no model repository 'o/n'"),
            ("down", r"is down \(it answered 503\), and the cache does not hold this"),
        ],
    )
    def test_a_fault_is_a_sentence(self, hub, tiny_base_folder, fault, said):
        hub.put("o/n", tiny_base_folder)
        hub.faults["o/n"] = fault
        with pytest.raises(UserError, match=said):
            resolve_base("hf:o/n")

    def test_a_revision_that_is_gone(self, hub, tiny_base_folder):
        hub.put("o/n", tiny_base_folder)
        with pytest.raises(UserError, match=r"no revision 'gone'.*deleted or renamed"):
            resolve_base("hf:o/n@gone")

    def test_nobody_answers(self, cache, monkeypatch):
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(UserError, match=r"cannot be reached or is down \(ConnectError"):
            resolve_base("hf:o/n")

    def test_a_hub_that_goes_down_leaves_what_was_fetched(self, hub, tiny_base_folder, capsys):
        hub.put("o/n", tiny_base_folder)
        before = resolve_base("hf:o/n")
        hub.faults["o/n"] = "down"
        assert resolve_base("hf:o/n") == before
        assert "what was fetched before is used" in "".join(capsys.readouterr())

    def test_a_repository_that_became_gated_is_not_read_from_the_cache_in_silence(self, hub, tiny_base_folder):
        hub.put("o/n", tiny_base_folder)
        hub.faults["o/n"] = "private"
        with pytest.raises(UserError, match="private"):
            resolve_base("hf:o/n")


class TestTheCacheAlone:
    def test_a_base_and_an_adapter_in_a_subfolder(self, offline, tiny_base_folder, adapter, home):
        lay_out(offline, "o/base", tiny_base_folder)
        lay_out(offline, "p/two", adapter, under="final")
        base = resolve_base("hf:o/base")
        assert base.content == resolve_base(f"dir:{tiny_base_folder}").content
        found = fetch("hf:p/two/final@main", "adapter")
        assert found.source["revision"] == COMMIT
        assert check_adapter(found.folder, base) > 0

    def test_hf_home_holds_the_cache_as_well(self, offline, tiny_base_folder, monkeypatch, tmp_path):
        monkeypatch.delenv("HF_HUB_CACHE")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        lay_out(tmp_path / "hf" / "hub", "o/base", tiny_base_folder)
        assert resolve_base("o/base").source["revision"] == COMMIT

    def test_what_the_hubs_own_client_fetched_is_found(self, hub, tiny_base_folder, monkeypatch):
        hub.put("o/n", tiny_base_folder)
        before = resolve_base("hf:o/n")
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert resolve_base("hf:o/n") == before
        assert resolve_base(f"hf:o/n@{COMMIT}").content == before.content

    def test_what_is_not_there_is_a_sentence(self, offline, tiny_base_folder):
        lay_out(offline, "o/n", tiny_base_folder)
        with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set.*revision 'v2'.*it holds main"):
            resolve_base("hf:o/n@v2")
        with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set.*Fetch it once while online"):
            resolve_base("hf:o/other")

    @pytest.mark.parametrize("revision", ["../../../x", "a/../../x"])
    def test_a_revision_leads_out_of_no_cache(self, offline, tiny_base_folder, revision):
        lay_out(offline, "o/n", tiny_base_folder)
        with pytest.raises(UserError):
            resolve_base(f"hf:o/n@{revision}")


def test_a_study_names_everything_on_the_hub_and_its_manifest_keeps_the_commits(
    offline, tiny_base_folder, adapter, home, tmp_path
):
    lay_out(offline, "o/base", tiny_base_folder)
    lay_out(offline, "p/m", adapter, under="final")
    tiny_model(7).save_pretrained(tmp_path / "u")
    lay_out(offline, "p/u", tmp_path / "u")
    path = write_study(
        tmp_path / "study",
        tiny_base_folder,
        base="hf:o/base",
        organisms=[
            {"name": "m", "role": "M", "adapter": "hf:p/m/final"},
            {"name": "u", "role": "U", "checkpoint": "p/u"},
        ],
    )
    run = Study.from_yaml(path).open(tmp_path / "run")
    run.train()
    assert run.manifest["hub"] == {
        "m.s0": [{"kind": "hf", "name": "p/m", "revision": COMMIT, "subfolder": "final"}],
        "u.s0": [{"kind": "hf", "name": "p/u", "revision": COMMIT}],
        "base": {"kind": "hf", "name": "o/base", "revision": COMMIT},
    }
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["hub"] == run.manifest["hub"]
