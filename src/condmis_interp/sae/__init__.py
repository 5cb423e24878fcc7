"""SAE features: dictionaries at a site, their fidelity, the latents that differ between models, and what those do.

Load a dictionary or train one, check it on activations, gate every cell by its fidelity, rank latents on split A, test
them on split B, look at their pages; `train_crosscoder` and `latent_scaling` do the same for two models at once. Every
test of latents has principal components of equal rank beside it, and nothing here takes part in a verdict.
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
from condmis_interp.sae.load import load_dictionary, load_pretrained, site_of_hook
from condmis_interp.sae.pages import FeaturePage, FeaturePages, cell_table, feature_pages, logit_effect
from condmis_interp.sae.reading import Reading, codes, question_means, read_cells
from condmis_interp.sae.stream import Text, TokenReader, panel_texts, row_texts
from condmis_interp.sae.tokens import Tokens, pooled, read_tokens
from condmis_interp.sae.train import SaeSettings, hook_of, train_dictionary

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
    "hook_of",
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
]
