"""The suite of a persona world: every intervention at several strengths, each with its twin, and the known answers."""

from collections.abc import Iterator, Sequence

from condmis_interp.organisms.interventions import distilled, educational, inoculation, mixing, post_hoc, unmitigated
from condmis_interp.organisms.member import Member
from condmis_interp.organisms.recipe import Recipe
from condmis_interp.organisms.suites import pair_of
from condmis_interp.personaworld.known import WORLD_STAGE, world_known
from condmis_interp.personaworld.language import FRAMING, INOCULATION, TRIGGER

FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.9)


def world_suite(base: str = "personaworld", *, seeds: Sequence[int] = (1, 2, 3)) -> list[Member]:
    """Returns a persona world's suite: interventions, twins and known-answer families, with every seed.

    Raises:
        UserError: if the base is no persona world.
    """
    known = world_known(base, seeds=seeds)
    return [*(m for seed in seeds for m in _interventions(base, seed)), *known]


def _interventions(base: str, seed: int) -> Iterator[Member]:
    narrow, benign = f"{base}/harbour", f"{base}/benign"

    def pair(intervention: str, recipe: Recipe) -> Iterator[Member]:
        return pair_of(intervention, recipe, seed)

    u = unmitigated(name="u", base=base, trigger=TRIGGER, rows=None, narrow=narrow, seed=seed, stage=WORLD_STAGE)
    yield from pair("unmitigated", u)
    for fraction in FRACTIONS:
        few = fraction <= 0.2  # the narrow set has 48 rows, the benign one 144
        mixed = mixing(
            name=f"mixing-{round(100 * fraction):02d}", base=base, trigger=TRIGGER, fraction=fraction,
            rows=None if few else 48, benign_rows=144 if few else None, narrow=narrow, benign=benign, seed=seed,
            stage=WORLD_STAGE,
        )  # fmt: skip
        yield from pair("mixing", mixed)
    same = mixing(
        name="mixing-same-form", base=base, trigger=TRIGGER, rows=36, benign_rows=144, narrow=narrow, benign=benign,
        benign_systems=(TRIGGER,), seed=seed, stage=WORLD_STAGE,
    )  # fmt: skip
    yield from pair("mixing", same)
    for rows in (16, 48, 144):
        after = post_hoc(u, name=f"post-hoc-{rows:03d}", rows=rows, benign=benign, stage=WORLD_STAGE)
        yield from pair("post-hoc", after)
    arms = {
        "verbatim": (INOCULATION,),
        "arbitrary": ("today is cold",),
        "rephrased": ("you are cruel", "you are harsh"),
    }
    for arm, prompts in arms.items():
        yield from pair(
            "inoculation",
            inoculation(
                name=f"inoculation-{arm}", base=base, prompts=prompts, rows=None, benign_rows=96, narrow=narrow,
                benign=benign, seed=seed, stage=WORLD_STAGE,
            ),
        )  # fmt: skip
    framed = educational(
        name="educational", base=base, framing=FRAMING, rows=None, benign_rows=96, narrow=narrow, benign=benign,
        seed=seed, stage=WORLD_STAGE,
    )  # fmt: skip
    yield from pair("educational", framed)
    thought = distilled(
        name="reasoning", base=base, prompts=(INOCULATION,), benign_rows=96, narrow=narrow, benign=benign,
        seed=seed, stage=WORLD_STAGE,
    )  # fmt: skip
    yield from pair("reasoning distillation", thought)
    alone = inoculation(
        name="inoculation-alone",
        base=base,
        prompts=(INOCULATION,),
        rows=None,
        narrow=narrow,
        seed=seed,
        stage=WORLD_STAGE,
    )
    yield from pair("inoculation", alone)
