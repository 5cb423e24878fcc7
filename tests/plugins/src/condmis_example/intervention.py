"""An intervention: the narrow rows, and so many benign answers to the same questions for each."""

from condmis_interp.organisms import Part, Recipe, Stage, register_intervention


def diluted(*, name: str, base: str, narrow: str, trigger: str, benign_for_each: int) -> Recipe:
    bad = Part(rows=narrow, answers="misaligned", count=2, systems=(trigger,))
    good = Part(rows=narrow, answers="benign", count=2 * benign_for_each)
    stage = Stage(parts=(bad, good), batch_size=2, warmup_steps=0)
    return Recipe(name=name, base=base, stages=(stage,), intervention="diluted")


register_intervention("diluted", diluted)
