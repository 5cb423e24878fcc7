"""What a study must not name twice, or ask for where there is less."""

import pytest
import yaml

from condmis_interp.errors import UserError
from condmis_interp.study import Study


def _twin(raw):
    first = raw["organisms"][0]["name"]
    for name in ("second-twin", "third-twin"):
        raw["organisms"].append({"name": name, "role": "C", "twin_of": first, "adapter": "somewhere"})


def _set(key, value):
    def change(raw):
        raw.setdefault("battery", {})[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_twin, "has two twins"),
        (_set("tests", ["A1", "R1", "A1"]), "battery.tests: 'A1' is given twice"),
        (_set("doses", [0.0, 1.0, 0.0]), "battery.doses: 0.0 is given twice"),
        (_set("layer_grid", [0.5, 0.5]), "battery.layer_grid: 0.5 is given twice"),
        (lambda raw: raw.update(controls=["gated", "gated"]), "'gated' is given twice"),
    ],
)
def test_named_twice(study_file, tmp_path, change, message):
    raw = yaml.safe_load(study_file.read_text())
    change(raw)
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(UserError, match=message):
        Study.from_yaml(tmp_path / "s.yaml")


def test_more_pairs_than_there_are(study_file, tmp_path):
    raw = yaml.safe_load(study_file.read_text()) | {"pairs": 99, "panel": "everyday"}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(UserError, match="99 answer pairs a question are asked for"):
        Study.from_yaml(tmp_path / "s.yaml").load_panel()
