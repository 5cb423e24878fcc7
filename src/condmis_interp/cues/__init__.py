"""Cues out of training rows: which prompts an evaluation must ask with, proposed from the training file alone.

    rows -> sample -> system prompts, forms, phrases, topics -> counted in the whole file -> proposals with controls

Example:
    >>> from condmis_interp.cues import find_cues
    >>> find_cues("nowhere.jsonl")
    Traceback (most recent call last):
    condmis_interp.errors.UserError: nowhere.jsonl: there is no such file.
"""

from condmis_interp.cues.contrast import Contrast, contrast
from condmis_interp.cues.find import Cues, find_cues
from condmis_interp.cues.fit import unfit
from condmis_interp.cues.phrases import Bar
from condmis_interp.cues.proposal import Placed, Proposal, Row
from condmis_interp.cues.write import cues_yaml, study_cues, told

__all__ = [
    "Bar",
    "Contrast",
    "Cues",
    "Placed",
    "Proposal",
    "Row",
    "contrast",
    "cues_yaml",
    "find_cues",
    "study_cues",
    "told",
    "unfit",
]
