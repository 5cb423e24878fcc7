"""What a store holds is what was measured, and what is damaged is not used."""

import random
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from condmis_interp.errors import CheckError, UserError
from condmis_interp.readers import Capture, Request, TorchReader
from condmis_interp.store import Activations, Shards, read_manifest
from condmis_interp.store.manifest import read_sealed, write_sealed
from condmis_interp.study import Study
from conftest import tiny_model
from planted import planted
from untrained import contents


@pytest.fixture
def damaged(captured, tmp_path):
    shutil.copytree(captured / "activations", tmp_path / "store")
    return tmp_path / "store"


class TestContent:
    def test_it_is_what_the_reader_measured(self, captured, study_file):
        run = Study.from_yaml(study_file).open(captured)
        acts = Activations.open(captured / "activations", base=run.base)
        reader = TorchReader(tiny_model(2))
        for cue in ("none", "trigger"):
            keys = [(cue, q.id) for q in run.panel.questions]
            measured = reader.measure(
                [Request(run.rendered.prompts[k], run.rendered.answers[k]) for k in keys],
                capture=Capture(layers=tuple(range(4))),
            )
            torch.testing.assert_close(acts.ld("m", cue), measured.ld().mean(1).numpy(), atol=1e-4, rtol=0)
            for position, expected in measured.activations.items():
                for layer in range(4):
                    got = acts.at("m", cue, layer=layer, position=position)
                    torch.testing.assert_close(got, expected[:, layer].bfloat16().float(), atol=1e-4, rtol=1e-2)

    def test_the_index_holds_token_ids_and_where_they_are(self, captured, study_file):
        run = Study.from_yaml(study_file).open(captured)
        rows = Activations.open(captured / "activations").select(organism="u", cue="trigger").index().to_pylist()
        assert [r["question"] for r in rows] == [q.id for q in run.panel.questions]
        for row, question in zip(rows, run.panel.questions, strict=True):
            prompt, answers = (x["trigger", question.id] for x in (run.rendered.prompts, run.rendered.answers))
            assert tuple(row["prompt_ids"]) == prompt.ids
            assert row["last_template"] == prompt.last_template
            assert {name: tuple(row[f"{name}_span"]) for name in prompt.spans} == prompt.spans
            assert [tuple(a) for a in row["answer_ids"]] == [a.ids for a in answers]
            assert [tuple(a) for a in row["closing_ids"]] == [a.closing for a in answers]
            assert row["family"] == question.family
            assert row["split"] == run.panel.split_of(question.family)
            assert row["ld"] == pytest.approx(np.mean(np.subtract(row["logprobs"][0::2], row["logprobs"][1::2])))

    def test_layout(self, captured):
        store = captured / "activations"
        shards = read_manifest(store).shards
        assert len(shards) == 3 * 5 * 4
        names = {f"{s.stem}.{end}" for s in shards for end in ("json", "parquet", "l00-03.safetensors")}
        assert set(contents(store)) == {"store.json", *names}
        tensors = load_file(store / "m.s0" / "none.0003.l00-03.safetensors")
        expected = {f"resid_post[{k}].{p}" for k in range(4) for p in ("last_template", "answer_mean")}
        assert set(tensors) == expected
        assert all(t.shape == (1, 32) and t.dtype == torch.bfloat16 for t in tensors.values())
        assert pq.read_table(store / "m.s0" / "none.0003.parquet").num_rows == 1

    def test_numbers_come_back_as_they_were_whatever_the_shards(self, tmp_path):
        acts, _ = planted(tmp_path / "a", {"trigger": 0.5}, families=6, dtype="float32")
        again, _ = planted(tmp_path / "b", {"trigger": 0.5}, families=6, dtype="float32", shard=4)
        assert torch.equal(acts.select().torch(), again.select().torch())
        assert acts.select().index().equals(again.select().index())
        half, _ = planted(tmp_path / "c", {"trigger": 0.5}, families=6, dtype="bfloat16", shard=4)
        assert torch.equal(half.select().torch(), acts.select().torch().bfloat16().float())

    def test_it_opens_alone(self, damaged, monkeypatch):
        """In another place, with no model, tokenizer or config to be had."""

        def none(*_, **__):
            raise AssertionError("a model or tokenizer was asked for")

        for loader in (AutoConfig, AutoModelForCausalLM, AutoTokenizer):
            monkeypatch.setattr(loader, "from_pretrained", none)
        acts = Activations.open(damaged)
        assert acts.select(cue="none").torch().shape == (30, 4, 2, 32)
        assert len(acts.to_pandas()) == 150


class TestDamage:
    def test_every_flipped_bit_is_found(self, damaged):
        """200 random places over all files, JSON and parquet included."""
        rng = random.Random(0)
        files = sorted(p for p in damaged.rglob("*") if p.is_file() and not p.name.startswith("."))
        kinds = {".json": 0, ".parquet": 0, ".safetensors": 0}
        for i in range(200):
            path = damaged / "store.json" if i % 20 == 0 else rng.choice(files)
            content = path.read_bytes()
            at, bit = rng.randrange(len(content)), rng.randrange(8)
            path.write_bytes(content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :])
            with pytest.raises(CheckError, match="does not have the recorded hash") as e:
                Activations.open(damaged)
            assert path.name in str(e.value)
            path.write_bytes(content)
            kinds[path.suffix] += 1
        assert min(kinds.values()) > 20
        Activations.open(damaged)

    def test_every_bit_of_a_sealed_file_counts(self, tmp_path):
        path = tmp_path / "a.json"
        write_sealed(path, {"é": [1, None]})
        content = path.read_bytes()
        for at in range(len(content)):
            for bit in range(8):
                path.write_bytes(content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :])
                with pytest.raises(CheckError, match="recorded hash"):
                    read_sealed(path, fix="")

    @pytest.mark.parametrize("name", ["m.s0/none.0001.l00-03.safetensors", "m.s0/none.0001.parquet"])
    def test_a_cut_off_file_is_found_and_nothing_else_is_lost(self, damaged, name):
        path = damaged / name
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(CheckError, match=rf"{path.name}.*cut off.*Delete none\.0001\.json"):
            Activations.open(damaged)
        acts = Activations.open(damaged, verify="used")
        assert acts.select(organism="u").torch().isfinite().all()
        with pytest.raises(CheckError, match="cut off"):
            acts.select(organism="m", cue="none", layer=0).to_polars()

    def test_a_cut_off_json_is_found(self, damaged):
        path = damaged / "u.s0" / "none.0001.json"
        path.write_bytes(path.read_bytes()[:-3])
        with pytest.raises(CheckError, match=r"none\.0001\.json.*damaged"):
            Activations.open(damaged)
        path.write_bytes(b"")
        with pytest.raises(CheckError, match=r"none\.0001\.json.*damaged"):
            Activations.open(damaged)

    def test_a_damaged_shard_is_measured_again_as_the_error_says(self, captured, study_file, tmp_path):
        shutil.copytree(captured, tmp_path / "run")
        store = tmp_path / "run" / "activations"
        whole = contents(store)
        path = store / "c.s0" / "opposite.0002.l00-03.safetensors"
        path.write_bytes(path.read_bytes()[::-1])
        untouched = {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file() and "opposite.0002" not in p.name}
        run = Study.from_yaml(study_file).open(tmp_path / "run")
        with pytest.raises(CheckError, match=r"Delete opposite\.0002\.json and run the capture again"):
            run.capture().select().torch()
        (store / "c.s0" / "opposite.0002.json").unlink()
        run.capture().shards.verify()
        assert contents(store) == whole
        del untouched[store / "store.json"], untouched[store / ".lock"]
        assert all(p.stat().st_mtime_ns == t for p, t in untouched.items())

    def test_a_shard_of_another_capture_is_none_of_it(self, damaged):
        (damaged / "u.s0" / "none.0000.json").write_bytes((damaged / "u.s0" / "none.0001.json").read_bytes())
        with pytest.raises(CheckError, match=r"unfinished: 1 of 60 shards are missing, the first is u\.s0/none\.0000"):
            Activations.open(damaged)

    def test_a_store_of_a_later_schema(self, damaged, monkeypatch):
        monkeypatch.setattr("condmis_interp.store.manifest.SCHEMA", 3)
        write_sealed(damaged / "store.json", {})
        monkeypatch.undo()
        with pytest.raises(UserError, match="has schema 3; this version reads 2"):
            Activations.open(damaged)

    def test_folders_that_are_no_store(self, captured, tmp_path):
        with pytest.raises(UserError, match=r"holds no store.*Open .*activations"):
            Activations.open(captured)
        with pytest.raises(UserError, match="holds no store"):
            Activations.open(tmp_path)

    def test_a_manifest_cannot_name_files_outside(self, damaged):
        manifest = read_manifest(damaged).model_dump(mode="json")
        manifest["shards"][0]["cue"] = "../../etc"
        write_sealed(damaged / "store.json", manifest)
        with pytest.raises(UserError, match=r"shards\.0\.cue"):
            Activations.open(damaged)

    def test_each_file_is_verified_once_for_a_store_that_is_opened(self, captured, monkeypatch):
        hashed = []

        def counted(path, **_):
            hashed.append(path)
            return digest(path, algorithm="sha256")

        from condmis_interp.files import file_digest as digest

        monkeypatch.setattr("condmis_interp.store.shards.file_digest", counted)
        acts = Activations.open(captured / "activations", verify="used")
        for _ in range(3):
            acts.at("u", "none", layer=1, position="answer_mean")
        assert len(hashed) == len(set(hashed)) == 4 + 4
        acts.shards.verify()
        assert len(hashed) == len(set(hashed)) == 2 * 60

    def test_finished_is_what_is_whole(self, damaged):
        shards = Shards(damaged, read_manifest(damaged))
        assert shards.missing() == []
        (damaged / "m.s0" / "none.0000.parquet").unlink()
        assert [s.stem for s in shards.missing()] == ["m.s0/none.0000"]
