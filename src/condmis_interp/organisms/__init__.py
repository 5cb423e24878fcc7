"""The organisms room: bases, row sets, recipes, interventions, training, loading."""

from condmis_interp.organisms.bases import Base, resolve_base
from condmis_interp.organisms.home import home
from condmis_interp.organisms.interventions import BENIGN_SYSTEMS, mixing, unmitigated
from condmis_interp.organisms.organism import Organism, check_adapter, versions
from condmis_interp.organisms.recipe import Lora, Part, Recipe, Stage, TrainingRow
from condmis_interp.organisms.rows import Row, RowSet, load_rows, read_chats, read_rows
from condmis_interp.organisms.together import train_all
from condmis_interp.organisms.train import organism_folder, train

__all__ = [
    "BENIGN_SYSTEMS",
    "Base",
    "Lora",
    "Organism",
    "Part",
    "Recipe",
    "Row",
    "RowSet",
    "Stage",
    "TrainingRow",
    "check_adapter",
    "home",
    "load_rows",
    "mixing",
    "organism_folder",
    "read_chats",
    "read_rows",
    "resolve_base",
    "train",
    "train_all",
    "unmitigated",
    "versions",
]
