"""A twin out of the training rows, and a study out of five answers.

Which rows are misaligned, a benign answer to each, the page on which a person checks them, the recipes that follow.
"""

from condmis_interp.surrogate.answer import Pair, by_file, by_model, paired
from condmis_interp.surrogate.flag import Flagged, flag
from condmis_interp.surrogate.new import new_study
from condmis_interp.surrogate.write import Twin, write_twin

__all__ = ["Flagged", "Pair", "Twin", "by_file", "by_model", "flag", "new_study", "paired", "write_twin"]
