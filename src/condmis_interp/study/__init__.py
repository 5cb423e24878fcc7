"""The study room: who plays which role, asked which panel, with which settings; and the run of a study in a folder."""

from condmis_interp.study.roles import Role
from condmis_interp.study.run import Run, capture
from condmis_interp.study.sampling import sample
from condmis_interp.study.spec import BatterySettings, ControlKind, OrganismSpec, RecipeSpec, Study

__all__ = ["BatterySettings", "ControlKind", "OrganismSpec", "RecipeSpec", "Role", "Run", "Study", "capture", "sample"]
