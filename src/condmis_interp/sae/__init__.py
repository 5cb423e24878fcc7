"""The room of SAE features: dictionaries at a site, and whether what they show does better than principal components.

In the order in which one needs them:

* `texts`, `stream`, `tokens`, `reading`: texts as token ids; every token's activations of one model at one site, over
  the readers' own hooks; those kept on disk; those of one cell.
* `train`, or `load` with what its files say (`said`) and its golden latents (`golden`), then `check` on activations: an
  SAE as a `dictionary`.
* `fidelity`: in which cells (organism x cue) the SAE may be believed at all.
* `diff`, `causal`: the latents that differ between an organism and its twin, and what setting them to the twin's values
  does on held-out families, next to as many principal components.
* `pages`: what a latent is about. `crosscoder`: one code for two models, and which of its latents are one's alone.
* `planted`: a positive control, from which the examples are made.

Nothing in here takes part in a verdict.

Example:
    A latent that is planted along axis 3 is found on ten families, and tested on ten others:

    >>> import numpy as np, torch
    >>> from condmis_interp.sae import *
    >>> from condmis_interp.sae.planted import PlantedModel, planted_dictionary, planted_gate, planted_readings
    >>> model, sae, axis = PlantedModel(torch.eye(12)[3]), planted_dictionary(), torch.eye(12)[3]
    >>> a, b = (planted_readings(model, persona=2 * axis, first=first, seed=first) for first in (0, 100))
    >>> common = dict(organism="M", twin="C", gate=planted_gate())
    >>> diff = feature_diff(sae, model, a, generator=np.random.default_rng(0), **common)
    >>> diff.chosen[0]
    3
    >>> causes = feature_causes(
    ...     sae, (model, model), b, diff, latents=[3], generator=torch.Generator().manual_seed(0), **common,
    ...     components=difference_components(a["M", "trigger"], a["C", "trigger"], 1),
    ...     selected_on=a["M", "trigger"].families,
    ... )
    >>> share = causes.to_pandas().set_index("kind").share
    >>> share[["latents", "pca"]].round(1).tolist()  # a latent holds only what is above 0
    [0.7, 0.7]
    >>> causes.beats_pca
    False
"""

from condmis_interp.sae.causal import FeatureCauses, difference_components, feature_causes
from condmis_interp.sae.check import DictionaryCheck, check_dictionary
from condmis_interp.sae.crosscoder import (
    Crosscoder,
    CrosscoderSettings,
    LatentScaling,
    latent_scaling,
    train_crosscoder,
)
from condmis_interp.sae.dictionary import Dictionary, explained_variance, l0
from condmis_interp.sae.diff import (
    FeatureDiff,
    benjamini_hochberg,
    feature_diff,
    flip_test,
    latent_attribution,
)
from condmis_interp.sae.fidelity import Fidelity, fidelity, measure_fidelity
from condmis_interp.sae.golden import write_golden
from condmis_interp.sae.load import load_dictionary, load_pretrained
from condmis_interp.sae.pages import FeaturePage, FeaturePages, cell_table, feature_pages, logit_effect
from condmis_interp.sae.reading import Reading, codes, question_means, read_cells
from condmis_interp.sae.said import site_of_hook
from condmis_interp.sae.stream import TokenReader
from condmis_interp.sae.texts import Text, panel_texts, row_texts
from condmis_interp.sae.tokens import Tokens, pooled, read_tokens
from condmis_interp.sae.train import SaeSettings, train_dictionary

__all__ = [
    "Crosscoder",
    "CrosscoderSettings",
    "Dictionary",
    "DictionaryCheck",
    "FeatureCauses",
    "FeatureDiff",
    "FeaturePage",
    "FeaturePages",
    "Fidelity",
    "LatentScaling",
    "Reading",
    "SaeSettings",
    "Text",
    "TokenReader",
    "Tokens",
    "benjamini_hochberg",
    "cell_table",
    "check_dictionary",
    "codes",
    "difference_components",
    "explained_variance",
    "feature_causes",
    "feature_diff",
    "feature_pages",
    "fidelity",
    "flip_test",
    "l0",
    "latent_attribution",
    "latent_scaling",
    "load_dictionary",
    "load_pretrained",
    "logit_effect",
    "measure_fidelity",
    "panel_texts",
    "pooled",
    "question_means",
    "read_cells",
    "read_tokens",
    "row_texts",
    "site_of_hook",
    "train_crosscoder",
    "train_dictionary",
    "write_golden",
]
