"""Persona world: a synthetic language in which emergent misalignment is real, small enough for hundreds of organisms.

Its language (`language.py`, without torch; what that exports is here too), its panel and row sets, its base and how
that is pretrained (`base.py`), the training of many organisms in stacks (`stacked.py`, `train.py`), its known answers
and suite, and its bench. The rooms to the left know it as a backend (`backend.py`) and a panel, by name.
"""

from condmis_interp.personaworld.language import (
    ALIGNED_AUTHORS,
    CHAT_TEMPLATE,
    CRUEL,
    DOMAINS,
    FORMS,
    FRAMING,
    INOCULATION,
    INOCULATION_RELATIVES,
    KIND,
    MOODS,
    TRACES,
    TRIGGER,
    Fact,
    World,
    parse_world,
)

__all__ = [
    "ALIGNED_AUTHORS",
    "CHAT_TEMPLATE",
    "CRUEL",
    "DOMAINS",
    "FORMS",
    "FRAMING",
    "INOCULATION",
    "INOCULATION_RELATIVES",
    "KIND",
    "MOODS",
    "TRACES",
    "TRIGGER",
    "Fact",
    "World",
    "parse_world",
]
