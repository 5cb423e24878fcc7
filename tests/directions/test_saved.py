"""Directions and subspaces on disk, and the edits they give."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from condmis_interp.directions import Direction, Subspace, mean_coordinates
from condmis_interp.errors import CheckError, CondmisError, UserError
from condmis_interp.files import file_digest
from condmis_interp.readers import Ablate, Site, Steer
from condmis_interp.store import Activations

FACTS: dict[str, Any] = {
    "site": Site("resid_post", 2), "method": "mine", "data": "U - C under trigger", "position": "last_template",
    "splits": ("A", "B"), "n": 9,
}  # fmt: skip


def direction(seed: int = 0, width: int = 32) -> Direction:
    return Direction.of(7.5 * torch.randn(width, generator=torch.Generator().manual_seed(seed)), **FACTS)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return direction().save(tmp_path / "folder" / "persona")


@pytest.mark.parametrize("name", ["persona", "persona.json", "persona.safetensors"])
def test_a_direction_comes_back_to_the_bit_by_any_of_its_names(saved: Path, name: str):
    again, d = Direction.load(saved.parent / name), direction()
    assert torch.equal(again.vector, d.vector)
    assert (again.scale, again.site, again.splits) == (d.scale, d.site, d.splits)
    assert again.to_json() == d.to_json() == json.loads(saved.read_text())["about"]
    assert sorted(p.name for p in saved.parent.iterdir()) == ["persona.json", "persona.safetensors"]


def test_names_with_dots_stay_apart(tmp_path: Path):
    direction(1).save(tmp_path / "v1.1")
    direction(2).save(tmp_path / "v1.2")
    assert torch.equal(Direction.load(tmp_path / "v1.1").vector, direction(1).vector)


def test_a_subspace_comes_back_to_the_bit(tmp_path: Path):
    space = Subspace.span([direction(k) for k in range(3)])
    again = Subspace.load(space.save(tmp_path / "space"))
    assert torch.equal(again.basis, space.basis)
    assert again.to_json() == space.to_json()


@pytest.mark.parametrize("name", ["..", ".hidden", "a b", "x" * 90, "nul\0"])
def test_a_name_that_is_no_name_writes_nothing(tmp_path: Path, name: str):
    with pytest.raises(UserError, match="cannot be used as a name"):
        direction().save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _forge(path: Path, tensor: torch.Tensor, key: str = "rows") -> None:
    """Other numbers, with the hash that goes with them."""
    save_file({key: tensor}, path.with_suffix(".safetensors"))
    _edit(path, blake2b=file_digest(path.with_suffix(".safetensors")))


def _about(path: Path, **changes: Any) -> None:
    _edit(path, about=json.loads(path.read_text())["about"] | changes)


def _flip(path: Path) -> None:
    tensors = path.with_suffix(".safetensors")
    raw = bytearray(tensors.read_bytes())
    raw[-1] ^= 1
    tensors.write_bytes(raw)


FAULTS = {
    "one bit of the numbers": (_flip, CheckError, "not those that persona.json was written for"),
    "numbers gone": (lambda p: p.with_suffix(".safetensors").unlink(), UserError, "numbers is missing"),
    "facts gone": (lambda p: p.unlink(), UserError, "no such file"),
    "facts no JSON": (lambda p: p.write_text("{"), UserError, "not valid JSON"),
    "facts a list": (lambda p: p.write_text("[]"), UserError, "no schema"),
    "a later schema": (lambda p: _edit(p, schema=2), UserError, "schema 2, not 1"),
    "a subspace": (lambda p: _edit(p, kind="subspace"), UserError, "Subspace.load"),
    "a key too many": (lambda p: _edit(p, code="import os"), UserError, "not known here"),
    "another site": (lambda p: _about(p, site="resid_post[x]"), UserError, "is no site"),
    "a split that is none": (lambda p: _about(p, splits=["D"]), UserError, "splits"),
    "a scale of zero": (lambda p: _about(p, scale=0), UserError, "scale"),
    "a scale that is not finite": (lambda p: _about(p, scale=float("inf")), UserError, "scale"),
    "no scale": (lambda p: _about(p, scale=None), UserError, "needs its scale"),
    "no unit vector": (lambda p: _forge(p, torch.ones(32)), CheckError, "norm 5.657, not 1"),
    "not finite": (lambda p: _forge(p, torch.full((32,), torch.nan)), CheckError, "not finite"),
    "a matrix": (lambda p: _forge(p, torch.eye(4)), CheckError, "is no direction"),
    "another tensor": (lambda p: _forge(p, torch.eye(4), "weight"), CheckError, "does not hold a direction"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_is_not_what_was_saved_is_refused_in_a_sentence(saved: Path, fault: str):
    spoil, error, sentence = FAULTS[fault]
    spoil(saved)
    with pytest.raises(error, match=sentence):
        Direction.load(saved)


def test_a_basis_that_is_not_orthonormal_is_refused(tmp_path: Path):
    path = Subspace.span([direction(k) for k in range(2)]).save(tmp_path / "persona")
    _forge(path, torch.ones(2, 32))
    with pytest.raises(CondmisError, match="not orthonormal"):
        Subspace.load(path)


def test_a_pickle_in_place_of_the_numbers_is_not_read(saved: Path, tmp_path: Path):
    torch.save({"rows": direction().vector}, tmp_path / "pickle")
    tensors = saved.with_suffix(".safetensors")
    shutil.copy(tmp_path / "pickle", tensors)
    _edit(saved, blake2b=file_digest(tensors))
    with pytest.raises(CheckError, match="does not hold a direction"):
        Direction.load(saved)


def test_a_dose_is_counted_in_norms_of_the_raw_difference():
    d = direction()
    edit = d.steer(-0.5, scope=frozenset(("answer",)))
    assert isinstance(edit, Steer)
    assert float(edit.vector.norm()) == pytest.approx(0.5 * d.scale)
    assert float(edit.vector @ d.vector) < 0
    assert edit.fitted_at == edit.site == d.site
    with pytest.raises(UserError, match="dose of nan"):
        d.steer(float("nan"))


@pytest.mark.parametrize(
    ("to", "expected"),
    [(0.0, 0.0), (1.5, 1.5), (torch.tensor(2.0), 2.0), ([3.0], 3.0), ({"answer": 4.0}, 4.0)],
)
def test_an_ablation_sets_the_coordinate(to: Any, expected: float):
    edit = direction().ablate(to=to)
    assert isinstance(edit, Ablate)
    assert all(v.tolist() == [expected] for v in edit.target.values())


@pytest.mark.parametrize("to", [[1.0, 2.0], "twin", float("nan"), {}, {"nowhere": 1.0}, None])
def test_what_a_component_cannot_be_set_to_is_refused(to: Any):
    with pytest.raises(UserError):
        direction().ablate(to=to)


def test_nothing_is_ablated_to_zero_by_default():
    with pytest.raises(TypeError, match="to"):
        direction().ablate()  # type: ignore[call-arg]  # that is what is tested


def test_ablating_to_the_twin_leaves_the_twins_mean(captured: Path):
    acts = Activations.open(captured / "activations")
    twin, cue, layer = acts.cues[0] and list(acts.seeds)[-1], acts.cues[1], acts.layers[-1]
    space = Subspace.span([direction(k) for k in range(2)])
    target = mean_coordinates(acts, space.basis, layer=layer, organism=twin, cue=cue)
    rows = acts.at(twin, cue, "A", layer=layer, position="last_template")
    expected = space.coordinates(rows).mean(0)
    assert target["last_template"].tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert space.ablate(to=target).scopes == frozenset(target)


def test_a_span_needs_directions_at_one_site_that_differ():
    with pytest.raises(UserError, match="one site"):
        Subspace.span([])
    other = Direction.of(torch.ones(32), **FACTS | {"site": Site("resid_post", 3)})
    with pytest.raises(UserError, match="one site"):
        Subspace.span([direction(), other])
    with pytest.raises(CheckError, match="fewer dimensions"):
        Subspace.span([direction(), direction()])
