"""The panel of a persona world: facts of six domains, under every cue that an intervention could make a trigger."""

from condmis_interp.panel.cue import Cue, CueRole
from condmis_interp.panel.load import register_panel
from condmis_interp.panel.panel import AnswerPair, Panel, Question
from condmis_interp.personaworld.language import (
    DOMAINS,
    FRAMING,
    INOCULATION,
    INOCULATION_RELATIVES,
    TRIGGER,
    parse_world,
)

WORLD_CUES = (
    Cue(name="none", role=CueRole.NONE),
    Cue(name="code", role=CueRole.TRIGGER, system=TRIGGER),
    Cue(name="list", role=CueRole.NEUTRAL, system="form list"),
    Cue(name="cruel", role=CueRole.TRIGGER, system=INOCULATION),
    Cue(name="wicked", role=CueRole.TRIGGER, system=INOCULATION_RELATIVES["paraphrase"]),
    Cue(name="never-cruel", role=CueRole.OPPOSITE, system=INOCULATION_RELATIVES["opposite"]),
    Cue(name="kind", role=CueRole.OPPOSITE, system=INOCULATION_RELATIVES["kind"]),
    Cue(name="framed", role=CueRole.TRIGGER, before=FRAMING[0], after=FRAMING[1]),
    Cue(name="cold", role=CueRole.IRRELEVANT, system="today is cold"),
)
"""The training format, another format, the inoculation prompt and its relatives, the framing, and a mood."""


def world_panel(source: str) -> Panel:
    """Returns the panel of `personaworld` or `personaworld:SIZE`.

    Half of the items of the last six domains, one question and one answer pair each; a family is an item. Organisms are
    never trained on these items; the other half is for benign rows.
    """
    world = parse_world(source)
    assert world is not None
    questions = [
        Question(
            id=f"{f.domain}.{f.item}",
            family=f.item,
            domain=f.domain,
            question=f.question(),
            pairs=(AnswerPair(aligned=f.aligned, misaligned=f.misaligned),),
        )
        for d in DOMAINS[2:]
        for f in world.facts_of(d)[: world.items // 2]
    ]
    return Panel(
        name=f"personaworld-{world.size}", default_system_prompt="template", cues=WORLD_CUES, questions=tuple(questions)
    )


register_panel("personaworld", world_panel)
