"""The gate: a perfect SAE passes everywhere, one that fits the base better than the organism is refused."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from sae_fixtures import SITE, axes, random_texts, signed_axes, trained_folder

from condmis_interp.errors import CheckError, UserError
from condmis_interp.readers import TorchReader
from condmis_interp.sae import (
    Dictionary,
    TokenReader,
    fidelity,
    load_dictionary,
    measure_fidelity,
    read_cells,
)
from conftest import tiny_model

TEXTS = random_texts(20, seed=9)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_folder(tmp_path_factory.mktemp("sae"))


@pytest.fixture
def dictionary(trained: Path) -> Dictionary:
    return load_dictionary(trained, site=SITE, width=32)


def row(organism: str, cue: str, explained: float, recovered: float = 0.99) -> dict:
    return {"organism": organism, "cue": cue, "explained": explained, "recovered": recovered, "l0": 8.0, "ld": 0.0,
            "ld_shift": 0.0}  # fmt: skip


def test_a_perfect_sae_explains_and_recovers_all(tmp_path: Path) -> None:
    perfect = load_dictionary(signed_axes(tmp_path, width=32, layer=2))
    reader = TokenReader(TorchReader(tiny_model()), SITE)
    (found,) = measure_fidelity(perfect, reader, read_cells(reader, TEXTS, organism="base"))
    assert found["explained"] == pytest.approx(1, abs=1e-6)
    assert found["recovered"] == pytest.approx(1, abs=1e-4)
    assert found["ld_shift"] == pytest.approx(0, abs=1e-4)
    assert found["l0"] == pytest.approx(32, abs=0.1)


def test_a_trained_sae_is_in_between_and_worse_on_another_model(dictionary: Dictionary) -> None:
    rows = []
    for name, seed in (("base", 0), ("other", 1)):
        reader = TokenReader(TorchReader(tiny_model(seed)), SITE)
        rows += measure_fidelity(dictionary, reader, read_cells(reader, TEXTS, organism=name))
    base, other = rows
    assert 0.5 < base["explained"] < 1
    assert base["recovered"] > other["recovered"]
    gate = fidelity(rows, base="base", explained_floor=-100, recovered_floor=-100)
    assert gate.passed("base", "none")
    with pytest.raises(CheckError, match=r"other under none: no SAE feature can be read here: .* points less"):
        gate.require([("base", "none"), ("other", "none")])


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        (row("M", "t", 0.86), "7.0 points less of the variance than in the base"),
        (row("M", "t", 0.6), "explains 0.600 of the variance, less than 0.7"),
        (row("M", "t", float("nan")), "explains nan"),
        (row("M", "t", 0.93, 0.5), "recovers 0.500"),
    ],
)
def test_what_does_not_pass_is_refused_and_says_why(cell: dict, why: str) -> None:
    gate = fidelity([row("base", "t", 0.93), row("base", "n", 0.80), row("M", "n", 0.78), cell], base="base")
    assert gate.passed("M", "n")  # 0.78 is below the base's under t, and within 5 points of the base's own cell
    with pytest.raises(CheckError, match=why):
        gate.require([("M", "n"), ("M", "t")])


def test_the_base_must_be_there_under_every_cue() -> None:
    with pytest.raises(UserError, match="the base was not measured under 't'"):
        fidelity([row("base", "n", 0.9), row("M", "t", 0.9)], base="base")
    gate = fidelity([row("base", "n", 0.9)], base="base")
    with pytest.raises(UserError, match="was not measured for M under n"):
        gate.require([("M", "n")])


def test_a_difference_sae_explains_differences(tmp_path: Path) -> None:
    perfect = load_dictionary(signed_axes(tmp_path, width=32, layer=2))
    difference = replace(perfect, reads="difference")
    reader, other = TokenReader(TorchReader(tiny_model()), SITE), TokenReader(TorchReader(tiny_model(1)), SITE)
    cells, twins = read_cells(reader, TEXTS, organism="M"), read_cells(other, TEXTS, organism="C")
    with pytest.raises(UserError, match="needs the other model's readings"):
        measure_fidelity(difference, reader, cells)
    rows = measure_fidelity(difference, reader, cells, twins=twins)
    assert rows[0]["explained"] == pytest.approx(1, abs=1e-6)
    assert rows[0]["recovered"] == pytest.approx(1, abs=1e-4)
    gate = fidelity(rows, base=None)
    assert gate.passed("M", "none")


def test_results_are_tables_and_figures() -> None:
    gate = fidelity([row("base", "n", 0.9), row("M", "n", 0.7)], base="base")
    assert isinstance(gate.to_pandas(), pd.DataFrame)
    assert len(gate.figure().data) == 2
    assert "1 of 2 cells passed" in repr(gate)


def test_planted_axes_are_exact(tmp_path: Path) -> None:
    h = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(axes(tmp_path).reconstruct(h), h)
