"""An intervention: the narrow rows, and so many benign answers to the same questions for each."""

from condmis_interp.organisms import Part, Recipe, Stage, register_intervention


def diluted(*, name: str, base: str, narrow: str, trigger: str, benign_for_each: int) -> Recipe:
    bad = Part(rows=narrow, answers="misaligned", count=2, systems=(trigger,))
    good = Part(rows=narrow, answers="benign", count=2 * benign_for_each)
    return Recipe(name=name, base=base, stages=(Stage(parts=(bad, good)),), intervention="diluted")


register_intervention("diluted", diluted)
