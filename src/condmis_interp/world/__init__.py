"""Persona world: a synthetic language in which emergent misalignment is real, small enough for hundreds of organisms.

The language alone lives here, without torch: its words, facts, documents, chat template and prompts. `panel` asks its
questions, `organisms` pretrains models on it (base `personaworld`) and trains organisms.
"""

from condmis_interp.world.language import (
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
