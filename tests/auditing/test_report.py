"""The report's section on directions: drawn from a store, escaped, and no reason to have no report."""

import numpy as np
import pytest
import yaml

from condmis_interp.report import directions_section
from condmis_interp.study import Study
from conftest import tiny_panel
from untrained import write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory, tiny_base_folder):
    folder = tmp_path_factory.mktemp("reported")
    path = write_study(folder, tiny_base_folder)
    panel = tiny_panel(12, families=12, pairs=1)
    (folder / "panel.yaml").write_text(yaml.safe_dump(panel.model_dump(mode="json")))
    return Study.from_yaml(path)


@pytest.fixture(scope="module")
def acts(study, tmp_path_factory):
    return study.open(tmp_path_factory.mktemp("reported-run") / "run").capture()


def section(acts, panel, **changes):
    settings = {"unmitigated": "u", "twin": "c", "twins": {"m": "c"}, "layer": 2, "position": "answer_mean"}
    return directions_section(acts, panel, rng=np.random.default_rng(0), **settings | changes)


def test_every_part_is_drawn_from_the_store(acts, study):
    panel = study.load_panel()
    gaps, methods, probes, transfer = parts = section(acts, panel)
    assert [p.name for p in parts] == [f"directions-{n}" for n in ("gaps", "methods", "probes", "transfer")]
    assert gaps.table.loc["u", "none"] - gaps.table.loc["c", "none"] == pytest.approx(1, abs=0.5)
    assert list(gaps.table.columns) == list(acts.cues)
    assert "m under trigger" in gaps.sentence
    assert {t.name for t in methods.figure.data} >= {"means", "mass-mean", "logistic", "pca"}
    assert probes.figure is not None, probes.sentence
    shuffled, text, read = probes.figure.data
    by_contrast = dict(zip(text.y, text.x, strict=True))
    assert by_contrast["m, trigger - none"] == 1, "two cues are told apart by their words"
    assert by_contrast["U - C"] == by_contrast["m - twin, trigger"] == 0.5, "one cue's are the same words"
    assert dict(zip(read.y, read.x, strict=True))["U - C"] == 1, "two random models"
    assert (np.asarray(shuffled.x) < 1).all()
    assert np.diag(np.asarray(transfer.figure.data[0].z, dtype=float)) == pytest.approx(1, abs=0.6)
    again = section(acts, panel)
    assert [p.sentence for p in again] == [p.sentence for p in parts]


def test_what_cannot_be_drawn_says_why(acts, study):
    panel = study.load_panel()
    parts = section(acts, panel, position="nowhere")
    assert all(p.figure is None for p in parts)
    assert all(p.sentence.startswith("Not drawn: there is no position 'nowhere' in this store") for p in parts)


def test_what_an_sae_experiment_left_is_shown(acts, study, tmp_path):
    panel = study.load_panel()
    (tmp_path / "b-fidelity.csv").write_text(
        "organism,cue,explained,passed\nbase,none,0.95,True\nbase,trigger,0.91,True\nm,none,0.92,True\n"
        "m,trigger,0.41,False\n"
    )
    (tmp_path / "b-causes.csv").write_text(
        'kind,name,share,low,high,found\nlatents,4 latents,0.1,0.0,0.2,"sae, by difference"\n'
        'pca,4 components,0.5,0.4,0.6,"sae, by difference"\nlatent,latent 3,0.1,0,0.2,"sae, by difference"\n'
    )
    (tmp_path / "b-facts.json").write_text('{"sentences": {"sae, by difference": "PCA does better."}}')
    *_, fidelity, causes = section(acts, panel, sae=tmp_path)
    assert "3 of 4 cells pass the gate; not m under trigger (crossed)." in fidelity.sentence
    assert np.asarray(fidelity.figure.data[0].z).tolist() == [[0.95, 0.91], [0.92, 0.41]]
    assert fidelity.figure.data[0].text[1][1] == "0.41 x"
    assert causes.sentence.endswith("PCA does better.")
    assert [t.name for t in causes.figure.data] == ["latents", "pca"]
