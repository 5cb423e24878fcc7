"""Which latents differ: error rates under the null, power, families, attribution that predicts the ablation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sae_fixtures import axes
from statsmodels.stats.multitest import multipletests

from condmis_interp.errors import CheckError, UserError
from condmis_interp.sae import (
    Fidelity,
    benjamini_hochberg,
    difference_components,
    feature_causes,
    feature_diff,
    fidelity,
    flip_test,
    latent_attribution,
)
from condmis_interp.sae.planted import WIDTH, PlantedModel, planted_readings
from condmis_interp.sae.reading import codes, question_means

PERSONA = 2 * torch.eye(WIDTH)[3]


def gate(explained: float = 0.95) -> Fidelity:
    rows = [
        {"organism": o, "cue": c, "explained": e, "recovered": 0.99, "l0": 6.0, "ld": 0.0, "ld_shift": 0.0}
        for o, e in (("base", 0.95), ("M", explained), ("C", 0.95))
        for c in ("none", "trigger")
    ]
    return fidelity(rows, base="base")


def test_adjusted_p_values_are_those_of_statsmodels() -> None:
    p = np.random.default_rng(0).uniform(size=50) ** 3
    np.testing.assert_allclose(benjamini_hochberg(p), multipletests(p, method="fdr_bh")[1])


@pytest.mark.parametrize("families", [8, 24])
def test_false_discoveries_are_rare_under_the_null(families: int) -> None:
    rng = np.random.default_rng(1)
    labels = [f"f{i // 3}" for i in range(3 * families)]
    found = 0
    for _ in range(60):
        shared = np.repeat(rng.normal(size=(families, 200)), 3, axis=0)  # questions of a family move together
        _, p = flip_test(shared + 0.3 * rng.normal(size=shared.shape), labels, generator=rng, draws=300)
        found += bool((benjamini_hochberg(p) <= 0.05).any())
    assert found <= 8  # 5 % of 60 is 3; 8 or more have probability .01


def test_ignoring_families_would_find_what_is_not_there() -> None:
    rng = np.random.default_rng(2)
    wrong = 0
    for _ in range(20):
        shared = np.repeat(rng.normal(size=(8, 200)), 3, axis=0)
        _, p = flip_test(shared, [f"q{i}" for i in range(24)], generator=rng, draws=300)
        wrong += bool((benjamini_hochberg(p) <= 0.05).any())
    assert wrong >= 10


def test_planted_differences_are_found_among_many() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(24, 300))
    values[:, :12] += 3
    t, p = flip_test(values, [f"f{i // 3}" for i in range(24)], generator=rng)
    q = benjamini_hochberg(p)
    assert set(range(12)) <= set(np.flatnonzero(q <= 0.05))
    assert (q[12:] <= 0.05).mean() < 0.05
    assert (t[:12] > 0).all()


def test_the_planted_latent_is_chosen(tmp_path: Path) -> None:
    model = PlantedModel(torch.eye(WIDTH)[3])
    readings = planted_readings(model, persona=PERSONA)
    found = feature_diff(
        axes(tmp_path),
        model,
        readings,
        organism="M",
        twin="C",
        gate=gate(),
        generator=np.random.default_rng(0),
    )
    assert found.chosen[0] == 3
    assert found.table.iloc[0].did == pytest.approx(2, abs=0.3)
    assert found.significant >= 1
    assert "latents at a false-discovery rate" in repr(found)
    assert len(found.figure().data) == 2


def test_a_null_organism_has_no_chosen_latents(tmp_path: Path) -> None:
    model = PlantedModel(torch.eye(WIDTH)[3])
    readings = planted_readings(model, persona=torch.zeros(WIDTH))
    noisy = planted_readings(model, persona=torch.zeros(WIDTH), seed=1)
    readings |= {key: value for key, value in noisy.items() if key[0] == "C"}
    found = feature_diff(
        axes(tmp_path),
        model,
        readings,
        organism="M",
        twin="C",
        gate=gate(),
        generator=np.random.default_rng(0),
    )
    assert found.chosen == []


def test_no_latent_is_read_where_the_sae_does_not_fit(tmp_path: Path) -> None:
    model = PlantedModel(torch.eye(WIDTH)[3])
    with pytest.raises(CheckError, match="M under trigger: no SAE feature can be read here"):
        feature_diff(
            axes(tmp_path), model, planted_readings(model, persona=PERSONA), organism="M", twin="C",
            gate=gate(0.88), generator=np.random.default_rng(0),
        )  # fmt: skip


def test_too_few_families_are_refused(tmp_path: Path) -> None:
    model = PlantedModel(torch.eye(WIDTH)[3])
    readings = planted_readings(model, persona=PERSONA)
    few = {key: model.reading(key[0], r.texts[:16], r.hidden[:16]) for key, r in readings.items()}
    with pytest.raises(UserError, match="4 families allow too few flips"):
        feature_diff(
            axes(tmp_path),
            model,
            few,
            organism="M",
            twin="C",
            gate=gate(),
            generator=np.random.default_rng(0),
        )


def test_attribution_is_exact_for_a_linear_model(tmp_path: Path) -> None:
    w = torch.randn(WIDTH, generator=torch.Generator().manual_seed(4))
    model, dictionary = PlantedModel(w), axes(tmp_path)
    readings = planted_readings(model, persona=PERSONA, nuisance=torch.eye(WIDTH)[5])
    m, c = readings["M", "trigger"], readings["C", "trigger"]
    found = latent_attribution(dictionary, model, m, c)
    ours, theirs = codes(dictionary, m, c)
    for latent in (3, 5, 3 + WIDTH):
        patched = m.tokens + (theirs - ours)[:, [latent]] @ dictionary.decoder[[latent]]
        ld = m.ld_from(model.finish(m.texts, m.back(patched)))
        np.testing.assert_allclose(found[:, latent], m.ld - ld, atol=1e-4)
    # all latents together take back the whole gap, for this SAE reconstructs everything (but the first token's part)
    inner = m.ld - m.ld_from(model.finish(m.texts, m.back(c.tokens)))
    np.testing.assert_allclose(found.sum(1), inner, atol=1e-4)


def test_question_means_are_over_the_positions_that_predict_answers(tmp_path: Path) -> None:
    model = PlantedModel(torch.eye(WIDTH)[0])
    reading = planted_readings(model, persona=PERSONA)["M", "trigger"]
    means = question_means(reading, axes(tmp_path).encode(reading.tokens))
    mine = [torch.cat([h[t.reading] for h, t in zip(reading.hidden, reading.texts, strict=True) if t.question == q])
            for q in reading.questions]  # fmt: skip
    np.testing.assert_allclose(means[:, 3], [float(h[:, 3].clamp(min=0).mean()) for h in mine], rtol=1e-5)


def causes(tmp_path: Path, *, nuisance: torch.Tensor | None, w: torch.Tensor, first: int = 100, **more: object):
    model, dictionary = PlantedModel(w), axes(tmp_path)
    a = planted_readings(model, persona=PERSONA, nuisance=nuisance)
    b = planted_readings(model, persona=PERSONA, nuisance=nuisance, first=first, seed=8)
    diff = feature_diff(dictionary, model, a, organism="M", twin="C", gate=gate(), generator=np.random.default_rng(0))
    settings: dict = {
        "components": difference_components(a["M", "trigger"], a["C", "trigger"], 10), "organism": "M", "twin": "C",
        "gate": gate(), "selected_on": a["M", "trigger"].families, "generator": torch.Generator().manual_seed(0),
        "random_sets": 2,
    }  # fmt: skip
    return feature_causes(dictionary, (model, model), b, diff, **(settings | more))


def test_where_pca_looks_at_the_noise_the_latent_beats_it(tmp_path: Path) -> None:
    found = causes(tmp_path, nuisance=8 * torch.eye(WIDTH)[7], w=torch.eye(WIDTH)[3], latents=[3])
    assert found.beats_pca
    assert found.gain[1] > 0
    assert found.over_random[1] > 0
    assert "1 SAE latent beats 1 principal component:" in found.sentence()
    own = found.ablations.set_index("kind").share
    assert own["latents"] == pytest.approx(own["everything"], abs=0.1)
    assert abs(own["pca"]) < 0.2


def test_where_one_component_holds_the_difference_pca_is_not_beaten(tmp_path: Path) -> None:
    spread = PERSONA.roll(1) + PERSONA  # two axes: one latent holds half of it, one component all
    model_w = torch.eye(WIDTH)[3] + torch.eye(WIDTH)[4]
    model, dictionary = PlantedModel(model_w), axes(tmp_path)
    a = planted_readings(model, persona=spread)
    b = planted_readings(model, persona=spread, first=100, seed=8)
    diff = feature_diff(dictionary, model, a, organism="M", twin="C", gate=gate(), generator=np.random.default_rng(0))
    found = feature_causes(
        dictionary, (model, model), b, diff, components=difference_components(a["M", "trigger"], a["C", "trigger"], 4),
        organism="M", twin="C", gate=gate(), selected_on=a["M", "trigger"].families,
        generator=torch.Generator().manual_seed(0), latents=[3], random_sets=1,
    )  # fmt: skip
    assert not found.beats_pca
    assert found.gain[2] < 0
    assert "loses to 1 principal component:" in found.sentence()


def test_latents_cannot_be_tested_on_the_families_they_were_chosen_on(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was used to choose the latents and cannot be used to test them"):
        causes(tmp_path, nuisance=None, w=torch.eye(WIDTH)[3], first=0)


def test_steering_along_the_latent_moves_the_twin(tmp_path: Path) -> None:
    found = causes(tmp_path, nuisance=None, w=torch.eye(WIDTH)[3])
    assert found.steering.iloc[0]["name"] == "latent 3"
    assert found.steering.iloc[0].low > 0
    again = type(found).from_json(json.loads(json.dumps(found.to_json())))
    assert again.sentence() == found.sentence()
    assert set(found.to_pandas().edit) == {"ablate", "steer"}
    assert len(found.figure().data) >= 4


def test_nothing_chosen_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no latent to test"):
        causes(tmp_path, nuisance=None, w=torch.eye(WIDTH)[3], latents=[])


def test_other_tokens_are_not_compared(tmp_path: Path) -> None:
    model = PlantedModel(torch.eye(WIDTH)[0])
    a = planted_readings(model, persona=PERSONA)
    short = model.reading("C", a["C", "trigger"].texts[:4], a["C", "trigger"].hidden[:4])
    with pytest.raises(UserError, match="did not read the same tokens"):
        codes(axes(tmp_path), a["M", "trigger"], short)
