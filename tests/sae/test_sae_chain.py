"""The whole way on real (tiny) models: read, gate, rank on some families, test on others."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sae_fixtures import SITE, random_texts, signed_axes

from condmis_interp.readers import TorchReader
from condmis_interp.sae import (
    Reading,
    TokenReader,
    difference_components,
    feature_causes,
    feature_diff,
    fidelity,
    load_dictionary,
    measure_fidelity,
    read_cells,
)
from conftest import tiny_model


def readers() -> dict[str, TokenReader]:
    """A model, its twin with other weights below the site, and a base."""
    found = {}
    for name, noise in (("base", 0.0), ("C", 0.02), ("M", 0.06)):
        model = tiny_model()
        generator = torch.Generator().manual_seed(len(name))
        for p in model.model.layers[1].parameters():
            p.data += noise * torch.randn(p.shape, generator=generator)
        found[name] = TokenReader(TorchReader(model), SITE)
    return found


def cells(reader: TokenReader, organism: str, seed: int, first: int) -> dict[tuple[str, str], Reading]:
    texts = [
        replace(t, question=f"q{first + int(t.question[1:])}", family=f"f{first + int(t.family[1:])}", cue=cue)
        for k, cue in enumerate(("none", "trigger"))
        for t in random_texts(24, seed=seed + k)
    ]
    return {(organism, cue): r for cue, r in read_cells(reader, texts, organism=organism).items()}


def test_all_latents_of_a_perfect_sae_are_the_whole_residual_stream(tmp_path: Path) -> None:
    sae = load_dictionary(signed_axes(tmp_path, width=32, layer=2), site=SITE, width=32)
    models = readers()
    a = cells(models["M"], "M", 0, 0) | cells(models["C"], "C", 0, 0)
    b = cells(models["M"], "M", 10, 100) | cells(models["C"], "C", 10, 100)
    rows = []
    for name, reader in models.items():
        own = {cue: r for (_, cue), r in cells(reader, name, 10, 100).items()}
        rows += measure_fidelity(sae, reader, own)
    gate = fidelity(rows, base="base")
    diff = feature_diff(
        sae, models["M"], a, organism="M", twin="C", gate=gate, generator=np.random.default_rng(0), by="attribution",
    )  # fmt: skip
    assert diff.families == 12
    found = feature_causes(
        sae, (models["M"], models["C"]), b, diff, organism="M", twin="C", gate=gate, latents=list(range(64)),
        components=torch.cat([difference_components(a["M", "trigger"], a["C", "trigger"], 32)] * 2),
        selected_on=a["M", "trigger"].families, generator=torch.Generator().manual_seed(0), random_sets=1,
    )  # fmt: skip
    share = found.ablations.set_index("kind").share
    assert share["latents"] == pytest.approx(share["everything"], abs=1e-3)
    assert found.ld[0] == pytest.approx(float(b["M", "trigger"].ld.mean()))


def test_first_order_attribution_predicts_small_ablations(tmp_path: Path) -> None:
    """On a real model attribution is only first order: it must agree where the change is small."""
    from condmis_interp.sae import latent_attribution

    sae = load_dictionary(signed_axes(tmp_path, width=32, layer=2))
    models = readers()
    m = cells(models["M"], "M", 0, 0)["M", "trigger"]
    near = [h + 0.01 * torch.randn(h.shape, generator=torch.Generator().manual_seed(i)) for i, h in enumerate(m.hidden)]
    c = Reading("C", "trigger", m.texts, near, m.logprobs)
    predicted = latent_attribution(sae, models["M"], m, c).sum(1)
    ld = m.ld_from(models["M"].finish(m.texts, m.back(c.tokens)))
    assert np.corrcoef(predicted, m.ld - ld)[0, 1] > 0.99
    np.testing.assert_allclose(predicted, m.ld - ld, atol=0.02)
