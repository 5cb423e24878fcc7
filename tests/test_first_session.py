"""A first session: what is there, what it is, and a direction fitted, saved, loaded and steered with."""

import pydoc
from pathlib import Path

import pytest
import torch

import condmis_interp as ci


@pytest.mark.parametrize("name", sorted(set(dir(ci)) - {"__version__"}))
def test_help_says_what_a_name_is(name):
    text = pydoc.plain(pydoc.render_doc(getattr(ci, name)))
    assert len(text.splitlines()) > 3


def test_from_a_study_to_a_model_that_is_steered(study_file: Path, tmp_path: Path, tiny_base_folder: Path):
    out = tmp_path / "run"
    acts = ci.capture(study_file, out)
    assert isinstance(acts, ci.Activations)

    found = ci.difference_in_differences(
        acts, layer=1, organism="u", twin="c", trigger="trigger", position="last_template"
    )
    found.save(tmp_path / "persona")
    direction = ci.Direction.load(tmp_path / "persona")
    assert torch.equal(direction.vector, found.vector)
    assert direction.to_json() == found.to_json()

    run = ci.Study.from_yaml(study_file).open(out)
    asked = [run.ask("m", "none", ("C",), [direction.steer(dose)]) for dose in (-4, 4)]
    plain = run.ask("m", "none", ("C",))
    assert abs(asked[0] - plain).max() > 1e-3
    assert abs(asked[1] - asked[0]).max() > 1e-3

    ablated = run.ask("m", "none", ("C",), [direction.ablate(to=0.0)])
    assert abs(ablated - plain).max() > 1e-4
