"""Replicates that somebody trained elsewhere: a twin, or an organism under test, given as several weights."""

import shutil
from pathlib import Path

import pytest
import yaml

from condmis_interp.auditing import audit
from condmis_interp.errors import UserError
from condmis_interp.study import OrganismSpec, Study
from conftest import tiny_model
from untrained import write_study

BATTERY = {"tests": ["A1", "A2", "R1"], "random_directions": 8, "generated": 0, "layer_grid": [0.25]}
TWINS = ["c", "c1", "c2", "c3"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_base_folder) -> tuple[Path, Path]:
    """A folder with random models: U with its twin, M, and four twins of M."""
    folder = tmp_path_factory.mktemp("replicates")
    write_study(folder, tiny_base_folder)
    for seed, name in enumerate(("uc", *TWINS[1:]), start=5):
        tiny_model(seed).save_pretrained(folder / name)
    return folder, tiny_base_folder


def study(place, twin, *, who="c", **given) -> Study:
    folder, base = place
    organisms = [
        {"name": "u", "role": "U", "checkpoint": "u"},
        {"name": "uc", "role": "C", "twin_of": "u", "checkpoint": "uc"},
        {"name": "m", "role": "M", "checkpoint": "m"},
        {"name": "c", "role": "C", "twin_of": "m", "checkpoint": "c"},
    ]
    organisms = [(o | {"checkpoint": twin} | given) if o["name"] == who else o for o in organisms]
    path = folder / "this.yaml"
    raw = yaml.safe_load(write_study(folder, base, organisms=organisms, battery=BATTERY).read_text())
    path.write_text(yaml.safe_dump(raw))
    return Study.from_yaml(path)


def test_each_is_a_seed_in_the_order_of_the_list(place, home):
    made = study(place, TWINS)
    c = made.organism("c")
    assert c.seeds == (0, 1, 2, 3)
    assert [c.load(seed).checkpoint.name for seed in c.seeds] == TWINS
    assert Study.model_validate(made.model_dump()) == made
    assert Study.model_validate(made.model_dump(mode="json")) == made


def test_an_audit_judges_against_their_mean_and_makes_controls_of_each(place, home, tmp_path):
    result = audit(study(place, TWINS).open(tmp_path / "run"))
    found = result.verdicts["m"]
    assert found.twins == 4
    gates = {g.id: g for g in found.gates}
    assert "there are" not in gates["twins"].says
    assert "4 benign ones" in gates["control benign"].says
    assert [c["name"] for c in result.controls if c["part"] == "benign"] == [f"assay-replicate-{i}" for i in range(4)]
    assert "(3 degrees of freedom)" in found.drift
    assert {f"c.s{i}" for i in range(4)} <= set(result.facts["weights"]["organisms"])


def test_what_is_under_test_may_be_several(place, home, tmp_path):
    made = study(place, ["m", "c3"], who="m")
    assert made.organism("m").seeds == (0, 1)
    assert set(made.obtain(made.resolve_base())) >= {("m", 0), ("m", 1)}


def test_adapters_are_listed_in_lists_and_a_flat_list_is_merged():
    given = {"name": "c", "role": "twin", "twin_of": "m"}
    one = OrganismSpec.model_validate(given | {"adapter": ["a", "b"]})
    assert (one.seeds, one.weights) == ((0,), (("a", "b"),))
    many = OrganismSpec.model_validate(given | {"adapter": [["a", "b"], ["d"]]})
    assert (many.seeds, many.weights) == ((0, 1), (("a", "b"), ("d",)))
    beside = many.model_copy(update=many.weights_beside(Path("/at")))
    assert beside.weights == (("/at/a", "/at/b"), ("/at/d",))
    assert OrganismSpec.model_validate(many.model_dump(mode="json")) == many


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"checkpoint": []}, "an empty list names no weights"),
        ({"adapter": [["a"], []]}, "an empty list names no weights"),
        ({"adapter": ["a", ["b"]]}, "lists stand beside single adapters: give one adapter, a list that is merged"),
        ({"checkpoint": ["a", "b", "a"]}, "'c' lists 'a' twice; replicates are runs of training that differ"),
        ({"adapter": [["a", "b"], ["a", "b"]]}, r"'c' lists 'a \+ b' twice"),
        ({"checkpoint": ["a", "b"], "seeds": [3, 4]}, "'c' lists 2 replicates, and seeds beside them.*leave seeds out"),
        ({"checkpoint": "a", "seeds": [1, 2]}, "loaded from one place, and has 2 seeds; give one seed, or a list"),
        ({"checkpoint": ["a", "b"], "role": "U", "twin_of": None}, "only a twin and one under test take several"),
        ({"checkpoint": ["a", "b"], "adapter": "d"}, "has an adapter and a checkpoint"),
    ],
)
def test_what_does_not_fit_is_a_sentence(given, said):
    with pytest.raises(ValueError, match=said):
        OrganismSpec.model_validate({"name": "c", "role": "twin", "twin_of": "m"} | given)


def test_one_that_is_not_there_is_named(place, home, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        study(place, ["c", "nowhere"]).open(tmp_path / "run")


def test_a_copy_is_no_replicate(place, home, tmp_path):
    shutil.copytree(place[0] / "c", place[0] / "copy", dirs_exist_ok=True)
    with pytest.raises(UserError, match="two replicates of organism 'c' hold the same tensors"):
        study(place, ["c", "copy"]).open(tmp_path / "run").train()
