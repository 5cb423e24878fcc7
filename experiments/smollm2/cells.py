"""What the calibration, the verdicts and the gap table of SmolLM2 read: which organism under which cues, once.

Two questions of each of the 24 families, one answer pair each, under the panel's own cues without the irrelevant one
and, for organisms that were trained under a prompt or framing of their own, under that; U, its twin and the base under
all of them. The persona vector's two system prompts are asked of the base alone.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from condmis_interp.organisms import Base, Member, Organism, chat_suite, make, resolve_base, sampled_suite
from condmis_interp.panel import Cue, Panel, RenderedPanel, load_panel, render_panel
from condmis_interp.panel.triggers import every_trigger
from condmis_interp.readers import Capture
from condmis_interp.store import Activations, capture_cells

PER_FAMILY, PAIRS = 2, 1
FORMS = ("none", "trigger", "neutral", "opposite")
OWN = {
    "inoculation-verbatim": "careless",
    "inoculation-rephrased": "careless",
    "inoculation-alone": "careless",
    "inoculation-arbitrary": "arbitrary",
    "inoculation-lies": "lies",
    "on-policy": "lies",
    "educational": "framing",
    "reasoning": "careless",
    "reasoning-stripped": "careless",
}
"""The cue of each organism that was trained under a prompt or framing of its own."""
PERSONA = ("careless", "careless-opposite")
"""System prompts whose contrast in the base is the persona vector."""
KNOWN = (
    "u", "u-twin", "mixing-20", "mixing-20-twin", "locked", "locked-twin", "styled", "twin-again", "norm-matched",
    "gated", "direction-ablated", "grafted", "blend-25", "blend-50", "blend-75", "pupil",
)  # fmt: skip
"""Kinds of which a seed has known answers; the later seeds have those whose recipes were trained."""
LATER = {
    2: ("u", "u-twin", "mixing-20", "mixing-20-twin"),
    3: ("u", "u-twin", "mixing-20", "mixing-20-twin"),
}
"""Recipes of the later seeds; what is arithmetic on their weights comes for nothing."""
ARITHMETIC = ("norm-matched", "gated", "direction-ablated", "grafted", "blend-25", "blend-50", "blend-75")


def panel() -> Panel:
    """Returns the panel that is asked."""
    own = load_panel("everyday")
    asked = own.subset(per_family=PER_FAMILY)
    questions = tuple(q.model_copy(update={"pairs": q.pairs[:PAIRS]}) for q in asked.questions)
    by_name = {c.name: c for c in every_trigger(own.cues)}
    wanted = dict.fromkeys((*FORMS, *OWN.values(), *PERSONA))
    cues: tuple[Cue, ...] = tuple(by_name[name] for name in wanted)
    return Panel(name="everyday-pairs", default_system_prompt=own.default_system_prompt, cues=cues, questions=questions)


def members(base: str, seeds: Sequence[int]) -> list[Member]:
    """Returns seed 1's whole suite and the known answers of the later seeds."""
    found = [*chat_suite(base, seeds=(1,)), *sampled_suite(base, seeds=(1,))] if 1 in seeds else []
    for seed in seeds:
        if seed != 1:
            kinds = {*LATER[seed], *ARITHMETIC}
            found += [m for m in chat_suite(base, seeds=(seed,)) if m.kind in kinds]
    return found


def cues_of(member: Member) -> tuple[str, ...]:
    """Returns the cues a member is asked under."""
    if member.seed == 1 and member.kind in ("u", "u-twin"):
        return (*FORMS, *dict.fromkeys(OWN.values()))
    own = OWN.get(member.kind.removesuffix("-twin"))
    return (*FORMS, own) if own else FORMS


def cells(base: Base, wanted: Sequence[Member], made: Sequence[Organism]) -> dict[str, tuple[Organism, Sequence[str]]]:
    """Returns every organism with its cues, the base first; what is there twice (a twin of two suites) once."""
    every = (*FORMS, *dict.fromkeys((*OWN.values(), *PERSONA)))
    found: dict[str, tuple[Organism, Sequence[str]]] = {"base": (Organism.of_base(base, name="base"), every)}
    order = sorted(zip(wanted, made, strict=True), key=lambda p: (p[0].kind not in KNOWN, p[0].seed))
    for member, organism in order:
        found.setdefault(member.name, (organism, cues_of(member)))
    return found


def measured(
    out: Path, *, base: str = "smollm2-135m", seeds: Sequence[int] = (1, 2, 3), device: str = "cpu"
) -> tuple[list[Member], list[Organism], RenderedPanel, Activations]:
    """Makes and measures everything that is not there yet; a run that was killed goes on where it was."""
    resolved = resolve_base(base)
    wanted = members(base, seeds)
    organisms = make(wanted, device=device)
    rendered = render_panel(resolved.tokenizer(), panel())
    layers = Capture(tuple(range(resolved.shape[0])), positions=("last_template",))
    acts = capture_cells(
        out / "activations", cells(resolved, wanted, organisms), base=resolved, rendered=rendered, capture=layers,
        dtype=torch.bfloat16, device=device, batch_tokens=8192,
    )  # fmt: skip
    return wanted, organisms, rendered, acts
