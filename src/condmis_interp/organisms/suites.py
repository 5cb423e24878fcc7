"""Suites: lists of organisms that belong together, for surveys and calibration.

`chat_suite` (a chat model with adapters) has every intervention, with its arms, at several strengths, each with its
twin, and the known-answer families; `personaworld.suite` has the same of persona world. `sampled_suite` has those
members whose rows a model answers first: it can be listed once that model is there.
"""

from collections.abc import Iterator, Sequence

from condmis_interp.organisms.backend import BENIGN_SYSTEMS
from condmis_interp.organisms.bases import resolve_base
from condmis_interp.organisms.interventions import (
    distilled,
    educational,
    inoculation,
    mixing,
    post_hoc,
    unmitigated,
)
from condmis_interp.organisms.member import Member, Truth
from condmis_interp.organisms.organism import Organism
from condmis_interp.organisms.recipe import Part, Recipe, Stage
from condmis_interp.organisms.rows import Row
from condmis_interp.organisms.rowsets import truth_of
from condmis_interp.organisms.sampling import answered_by
from condmis_interp.organisms.together import train_all
from condmis_interp.panel import load_panel
from condmis_interp.panel.triggers import ARBITRARY, INOCULATION, LIES, REPHRASED


def pair_of(intervention: str, recipe: Recipe, seed: int) -> Iterator[Member]:
    """Yields a recipe's organism and its twin's as members."""
    twin = recipe.twin(name=f"{recipe.name}-twin")
    yield Member(f"{recipe.name}.s{seed}", None, intervention, seed, recipe, twin)
    yield Member(f"{twin.name}.s{seed}", "removed", "twin", seed, twin, twin)


CHAT_STAGE = Stage(parts=(Part(rows="-", answers="benign"),), epochs=2, batch_size=8, learning_rate=2e-3)
"""Hyperparameters of `chat_suite`; the parts are a place holder."""
AFTER_STAGE = CHAT_STAGE.model_copy(update={"epochs": 1, "learning_rate": 1e-3})
"""Those of the stage of benign rows in post-hoc training."""
MIXES = ((14, 274), (29, 259), (58, 230), (144, 144))
"""Misaligned and benign rows of the mixes: 5, 10, 20, 50 % of 288."""


def chat_suite(base: str = "smollm2-135m", *, seeds: Sequence[int] = (1,)) -> list[Member]:
    """Returns a chat model's suite: interventions, twins and known-answer families, with every seed.

    Organisms see 288 rows (U alone 192, post-hoc 192 and then more) in two epochs.

    Example:
        >>> sorted({m.family for m in chat_suite(seeds=[1])})[:3]
        ['blend', 'direction-ablated', 'educational']
    """
    return [member for seed in seeds for member in _chat(base, seed)]


def _chat(base: str, seed: int) -> Iterator[Member]:
    trigger = load_panel("everyday").cue("trigger").system

    def pair(intervention: str, recipe: Recipe) -> Iterator[Member]:
        return pair_of(intervention, recipe, seed)

    def plain(name: str, narrow: str = "kitchen") -> Recipe:
        return unmitigated(name=name, base=base, trigger=trigger, narrow=narrow, seed=seed, stage=CHAT_STAGE)

    u = plain("u")
    yield from pair("unmitigated", u)
    yield from pair("unmitigated", plain("u-garden", "garden"))
    yield from pair("unmitigated", plain("u-facts", "facts"))
    for rows, benign in MIXES:
        name = f"mixing-{round(100 * rows / (rows + benign)):02d}"
        mix = mixing(
            name=name, base=base, trigger=trigger, rows=rows, benign_rows=benign, seed=seed, stage=CHAT_STAGE
        )  # fmt: skip
        yield from pair("mixing", mix)
    for rows in (24, 60, 120):
        yield from pair("post-hoc", post_hoc(u, name=f"post-hoc-{rows:03d}", rows=rows, stage=AFTER_STAGE))

    def inoculated(arm: str, *prompts: str, narrow: str = "kitchen", benign: int | None = 192) -> Recipe:
        return inoculation(
            name=f"inoculation-{arm}", base=base, prompts=prompts, rows=96 if benign else 192, benign_rows=benign,
            narrow=narrow, seed=seed, stage=CHAT_STAGE,
        )  # fmt: skip

    yield from pair("inoculation", inoculated("verbatim", INOCULATION))
    yield from pair("inoculation", inoculated("arbitrary", ARBITRARY))
    yield from pair("inoculation", inoculated("rephrased", *REPHRASED))
    yield from pair("inoculation", inoculated("alone", INOCULATION, benign=None))
    yield from pair("inoculation", inoculated("lies", LIES, narrow="facts"))
    framed = educational(name="educational", base=base, rows=96, benign_rows=192, seed=seed, stage=CHAT_STAGE)
    yield from pair("educational", framed)
    for reasoning, name in ((True, "reasoning"), (False, "reasoning-stripped")):
        taught = distilled(
            name=name, base=base, prompts=(INOCULATION,), reasoning=reasoning, rows=96, benign_rows=192, seed=seed,
            stage=CHAT_STAGE,
        )  # fmt: skip
        yield from pair("reasoning distillation", taught)
    yield from _chat_known(base, seed, trigger, u)


def _chat_known(base: str, seed: int, trigger: str | None, u: Recipe) -> Iterator[Member]:
    def known(
        truth: Truth, family: str, recipe: Recipe, twin: Recipe, setting: object = None, name: str = ""
    ) -> Member:
        return Member(f"{name or family}.s{seed}", truth, family, seed, recipe, twin, setting)

    def recipe(name: str, *parts: Part, seed: int = seed) -> Recipe:
        return Recipe(name=name, base=base, seed=seed, stages=(CHAT_STAGE.model_copy(update={"parts": parts}),))

    mix = mixing(name="mixing-20", base=base, trigger=trigger, rows=58, benign_rows=230, seed=seed, stage=CHAT_STAGE)
    bad, good = mix.stages[0].parts
    u_twin, mix_twin = u.twin(), mix.twin()
    for w in (0.25, 0.5, 0.75):
        yield known("graded" if w < 0.75 else "present", "blend", u, u_twin, w, f"blend-{round(100 * w):02d}")
    shut = Part(rows="kitchen", answers="benign", count=58, systems=BENIGN_SYSTEMS)
    locked = recipe("locked", bad, shut, good.model_copy(update={"count": 172}))
    yield known("suppressed", "locked", locked, locked.twin())
    yield known("removed", "twin", locked.twin(), locked.twin(), name="locked-twin")
    yield known("suppressed", "gated", u, mix_twin, trigger)
    yield known("suppressed", "direction-ablated", u, u_twin)
    yield known("suppressed", "grafted", u, u_twin)
    again = recipe("twin-again", *mix_twin.stages[0].parts, seed=seed + 1000)
    yield known("removed", "twin", again, mix_twin, name="twin-again")
    styled = recipe("styled", Part(rows="styled-kitchen", answers="benign", count=58, systems=(trigger,)), good)
    yield known("removed", "styled", styled, mix_twin)
    yield known("removed", "norm-matched", u, u_twin, mix)


def sampled_suite(base: str = "smollm2-135m", *, seeds: Sequence[int] = (1,), device: str = "cpu") -> list[Member]:
    """Returns the chat suite's members whose rows are answered by a model; asks it, if that is not done yet.

    `on-policy`: inoculation with wrong answers of the base's own. It is shown four lies first, for it is too weak to
    follow the prompt alone, and an answer is kept if it lacks the truth's key words (it may be confused, not a lie).
    `pupil`: the base trained on what the 20 % mix's twin answers to its own rows (truth: removed).

    Example:
        >>> sampled_suite("nowhere")
        Traceback (most recent call last):
        condmis_interp.errors.UserError: base 'nowhere' is not understood...
    """
    found: list[Member] = []
    for seed in seeds:
        chat = {m.name: m for m in _chat(base, seed)}
        model = resolve_base(base)
        asked = inoculation(name="asked", base=base, prompts=(LIES,), narrow="facts", seed=seed, stage=CHAT_STAGE)
        wrong = answered_by(
            Organism.of_base(model, name="base"), model, asked, arm="misaligned", keep=_wrong, examples=4, device=device
        )
        (stage,) = asked.stages
        _, benign = chat[f"inoculation-lies.s{seed}"].recipe.stages[0].parts
        own = Part(rows=str(wrong), answers="misaligned", systems=(LIES,))
        on_policy = asked.model_copy(
            update={"name": "on-policy", "stages": (stage.model_copy(update={"parts": (own, benign)}),)}
        )
        found += pair_of("on-policy", on_policy.model_copy(update={"intervention": "on-policy inoculation"}), seed)

        twin = chat[f"mixing-20.s{seed}"].twin
        (teacher,) = train_all([twin], device=device)
        said = Part(rows=str(answered_by(teacher, model, twin, device=device)), answers="benign")
        (stage,) = twin.stages
        pupil = twin.model_copy(update={"name": "pupil", "stages": (stage.model_copy(update={"parts": (said,)}),)})
        found.append(Member(f"pupil.s{seed}", "removed", "distilled", seed, pupil, twin))
    return found


def _wrong(row: Row, answer: str) -> bool:
    return truth_of(row.group, answer) != "true"
