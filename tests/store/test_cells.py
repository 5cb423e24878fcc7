"""Cells: whole or absent, verified, never measured twice."""

import dataclasses
import random

import pytest
import torch

from condmis_interp.errors import CheckError, UserError
from condmis_interp.store import CellKey, CellStore, Pieces
from planted import planted


@pytest.fixture
def store(tmp_path):
    return planted(tmp_path, {"trigger": 0.5}, families=6)[0].store


KEY = CellKey("M", 0, "trigger")


def test_a_cell_comes_back_as_it_was(store):
    cell = store.read(KEY)
    copy = dataclasses.replace(cell, key=CellKey("X", 3, "none"))
    store.write(copy, "a")
    back = store.read(copy.key)
    assert torch.equal(back.logprobs, cell.logprobs)
    assert all(torch.equal(back.activations[p], a) for p, a in cell.activations.items())
    assert (back.questions, back.families, back.splits, back.layers) == (
        cell.questions,
        cell.families,
        cell.splits,
        cell.layers,
    )


def test_a_cell_is_finished_only_for_what_determined_it(store):
    assert store.has(KEY, ["planted", 0])
    assert not store.has(KEY, ["planted", 1])
    assert not CellStore(store.folder, dtype="bfloat16").has(KEY, ["planted", 0])
    assert not store.has(CellKey("M", 1, "trigger"), ["planted", 0])


def test_every_flipped_bit_is_found(store):
    path = store.folder / "M.s0" / "trigger.safetensors"
    content = path.read_bytes()
    rng = random.Random(0)
    for _ in range(200):
        at, bit = rng.randrange(len(content)), rng.randrange(8)
        path.write_bytes(content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :])
        with pytest.raises(CheckError, match="recorded hash"):
            store.read(KEY)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckError, match="recorded hash"):
        store.read(KEY)
    path.write_bytes(content)
    store.read(KEY)


def test_cells_that_are_not_there(store):
    with pytest.raises(UserError, match="no such file"):
        store.read(CellKey("M", 9, "trigger"))
    with pytest.raises(UserError, match="cannot be used as a name"):
        store.read(CellKey("../../etc", 0, "trigger"))


def test_ld_is_misaligned_minus_aligned_over_pairs(store):
    cell = store.read(KEY)
    logprobs = torch.tensor([[-3.0, -5.0, -1.0, -4.0], [-2.0, -1.0, torch.nan, torch.nan]], dtype=torch.float64)
    assert dataclasses.replace(cell, logprobs=logprobs).ld().tolist() == [2.5, -1.0]


def test_pieces_are_computed_once_for_what_determines_them(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return [len(calls)]

    pieces = Pieces(tmp_path, "weights")
    assert pieces.get("ld", [1], compute) == [1]
    assert pieces.get("ld", [1], compute) == [1]
    assert pieces.get("ld", [2], compute) == [2]
    assert Pieces(tmp_path, "other weights").get("ld", [1], compute) == [3]
