"""The organisms room: bases, row sets, recipes, interventions, training, loading."""

from condmis_interp.organisms.backend import BENIGN_SYSTEMS, Backend, register_backend
from condmis_interp.organisms.bases import Base, base_in, resolve_base
from condmis_interp.organisms.derived import change_norm, combination
from condmis_interp.organisms.home import home
from condmis_interp.organisms.interventions import (
    distilled,
    educational,
    inoculation,
    mixing,
    post_hoc,
    unmitigated,
)
from condmis_interp.organisms.known import make
from condmis_interp.organisms.mechanism import KL, Batch, Mechanism, mechanism_of, register_mechanism
from condmis_interp.organisms.member import Member
from condmis_interp.organisms.organism import Gate, Organism, catalogue, check_adapter, check_checkpoint, versions
from condmis_interp.organisms.recipe import Lora, Part, Recipe, Stage, TrainingRow
from condmis_interp.organisms.registry import backend_of, register_intervention
from condmis_interp.organisms.rows import Row, RowSet, read_chats, read_rows
from condmis_interp.organisms.rowsets import load_rows
from condmis_interp.organisms.sampling import answered_by
from condmis_interp.organisms.suites import chat_suite, sampled_suite
from condmis_interp.organisms.swap import Swap
from condmis_interp.organisms.together import train_all
from condmis_interp.organisms.train import organism_folder, train

__all__ = [
    "BENIGN_SYSTEMS",
    "KL",
    "Backend",
    "Base",
    "Batch",
    "Gate",
    "Lora",
    "Mechanism",
    "Member",
    "Organism",
    "Part",
    "Recipe",
    "Row",
    "RowSet",
    "Stage",
    "Swap",
    "TrainingRow",
    "answered_by",
    "backend_of",
    "base_in",
    "catalogue",
    "change_norm",
    "chat_suite",
    "check_adapter",
    "check_checkpoint",
    "combination",
    "distilled",
    "educational",
    "home",
    "inoculation",
    "load_rows",
    "make",
    "mechanism_of",
    "mixing",
    "organism_folder",
    "post_hoc",
    "read_chats",
    "read_rows",
    "register_backend",
    "register_intervention",
    "register_mechanism",
    "resolve_base",
    "sampled_suite",
    "train",
    "train_all",
    "unmitigated",
    "versions",
]
