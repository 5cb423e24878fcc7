"""Slices: the right rows, read late."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors import safe_open

from condmis_interp.errors import UserError
from condmis_interp.store import Activations, Shards
from planted import CUES, planted
from random_shards import small, write


@pytest.fixture(scope="module")
def acts(captured) -> Activations:
    return Activations.open(captured / "activations")


def test_axes_of_a_single_layer_or_position_are_left_out(acts):
    assert acts.select().shape == (150, 4, 2, 32)
    assert acts.select(layer=1).shape == (150, 2, 32)
    assert acts.select(layer=np.int64(1), position="answer_mean", cue="none", organism="u").shape == (10, 32)
    assert acts.select(layer=[1], position=["answer_mean"], cue=["none", "trigger"]).shape == (60, 1, 1, 32)
    for chosen in (acts.select(layer=1), acts.select(position="last_template", layer=[3, 0]), acts.select(split="A")):
        assert tuple(chosen.torch().shape) == chosen.numpy().shape == chosen.shape
        assert len(chosen) == chosen.shape[0] == chosen.index().num_rows


def test_every_way_of_reading_gives_the_same_numbers(acts):
    chosen = acts.select(organism=["c", "u"], cue="trigger", layer=[3, 0], split=("A", "C"))
    values = chosen.torch()
    np.testing.assert_array_equal(chosen.numpy(), values.numpy())
    assert torch.equal(chosen.torch(torch.bfloat16).float(), values)
    table = chosen.to_polars()
    assert table.columns[-3:] == ["layer", "position", "activation"]
    np.testing.assert_array_equal(table["activation"].to_numpy(), values.flatten(0, 2).numpy())
    frame = chosen.to_pandas()
    np.testing.assert_array_equal(np.stack(frame.activation), values.flatten(0, 2).numpy())
    at = {
        (o, layer, p): acts.at(o, "trigger", "A", "C", layer=layer, position=p)
        for o in "cu"
        for layer in (0, 3)
        for p in ("answer_mean", "last_template")
    }
    for (o, layer, p), expected in at.items():
        here = table.filter((pl.col("organism") == o) & (pl.col("layer") == layer) & (pl.col("position") == p))
        np.testing.assert_array_equal(here["activation"].to_numpy(), expected.numpy())
        np.testing.assert_array_equal(here["ld"].to_numpy(), acts.ld(o, "trigger", "A", "C"))


def test_rows_keep_the_order_of_the_store_whatever_the_shards(tmp_path):
    one, _ = planted(tmp_path / "one", {"trigger": 0.5}, families=6)
    many, _ = planted(tmp_path / "many", {"trigger": 0.5}, families=6, shard=5)
    for named in ({}, {"split": "B"}, {"cue": ["trigger", "none"], "organism": "M", "layer": 0, "split": ("C", "A")}):
        a, b = one.select(**named), many.select(**named)
        assert a.index().equals(b.index())
        assert torch.equal(a.torch(), b.torch())
        assert torch.equal(torch.cat([part.torch() for part in b.parts()]), a.torch())
    assert one.families("B") == many.families("B")


def test_nothing_is_read_before_it_is_asked_for(captured, monkeypatch):
    acts = Activations.open(captured / "activations", verify="used")
    read = []
    tensors = Shards.tensors
    monkeypatch.setattr(Shards, "tensors", lambda s, p, *rest: (read.append(p.stem), tensors(s, p, *rest))[1])
    chosen = acts.select(organism="m", cue="none", layer=2, position="answer_mean")
    assert chosen.shape == (10, 32)
    assert "m.s0; cues none; 10 questions; layers 2" in repr(chosen)
    assert read == []
    first = next(chosen.parts())
    assert len(first) == 3
    first.torch()
    assert read == ["m.s0/none.0000"]


def test_only_the_layers_that_are_named_are_read_from_their_files(tmp_path, monkeypatch):
    opened, got = [], []

    class Watched:
        def __init__(self, path, framework):
            opened.append(Path(path).name)
            self.file = safe_open(path, framework)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def get_tensor(self, name):
            got.append(name)
            return self.file.get_tensor(name)

    manifest = small(parts=2, rows=2, layer_groups=((0, 1), (2, 3)))
    write(tmp_path, manifest, 0, 1)
    monkeypatch.setattr("condmis_interp.store.shards.safe_open", Watched)
    Activations.open(tmp_path).select(layer=2, position="answer_mean").torch()
    assert opened == ["none.0000.l02-03.safetensors", "none.0001.l02-03.safetensors"]
    assert got == ["resid_post[2].answer_mean"] * 2


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"organism": "x"}, "no organism 'x' in this store. It has: u, m, c"),
        ({"cue": ["none", "x"]}, f"no cue 'x' in this store. It has: {', '.join(CUES)}"),
        ({"layer": 4}, "no layer 4 in this store. It has: 0, 1, 2, 3"),
        ({"position": "first"}, "no position 'first' in this store. It has: last_template, answer_mean"),
        ({"split": "D"}, "no split 'D'"),
        ({"organism": "m", "seed": 3}, "no seed of m 3 in this store. It has: 0"),
    ],
)
def test_what_is_not_there(acts, named, message):
    with pytest.raises(UserError) as e:
        acts.select(**named)
    assert message in str(e.value)
