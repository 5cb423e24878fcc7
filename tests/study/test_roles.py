"""Roles in study files: words, letters, either case; and files of version 0.1.0."""

import pytest
import yaml

from condmis_interp.errors import UserError
from condmis_interp.study import Study
from condmis_interp.study.roles import LETTERS, zero_of

OLD = {
    "name": "old",
    "base": "smollm2-135m",
    "organisms": [
        {"name": "u", "role": "U", "adapter": "a"},
        {"name": "m", "role": "M", "adapter": "b"},
        {"name": "c", "role": "C", "twin_of": "m", "adapter": "c"},
        {"name": "s", "role": "S", "adapter": "d"},
        {"name": "d", "role": "D", "adapter": "e"},
        {"name": "o", "role": "O", "adapter": "f"},
        {"name": "b", "role": "base"},
    ],
    "assay": ["gated", "blend"],
}


def read(tmp_path, raw) -> Study:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(raw))
    return Study.from_yaml(path)


def spelled(change) -> dict:
    organisms = [o | {"role": change(o["role"])} for o in OLD["organisms"]]
    return OLD | {"organisms": organisms}


@pytest.mark.parametrize("change", [str, str.lower, lambda r: LETTERS.get(r, r), lambda r: LETTERS.get(r, r).title()])
def test_a_role_is_its_word_however_it_is_written(tmp_path, change):
    study = read(tmp_path, spelled(change))
    words = ["unmitigated", "mitigated", "twin", "locked", "graded", "second-domain", "base"]
    assert [o.role for o in study.organisms] == words
    assert study == read(tmp_path, OLD)
    assert study.model_dump()["controls"] == ("gated", "blend")
    assert Study.model_validate(study.model_dump(mode="json")) == study
    assert {o.name for o in study.asked} == {"u", "m", "c", "s", "d", "b"}


def test_who_is_zero_of_whom(tmp_path):
    organisms = read(tmp_path, OLD).organisms
    assert {n: zero_of(organisms, n) for n in "umsdo"} == {"u": "c", "m": "c", "s": "c", "d": "c", "o": None}


def test_what_is_no_role(tmp_path):
    with pytest.raises(UserError, match=r"organisms\.0\.role: .*'unmitigated'"):
        read(tmp_path, spelled(lambda r: "X"))
    with pytest.raises(UserError, match="controls and assay are the same setting"):
        read(tmp_path, OLD | {"controls": "free"})
