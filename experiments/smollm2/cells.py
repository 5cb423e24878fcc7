"""What the calibration, the verdicts and the gap table of SmolLM2 read, each once.

LD is the survey's (`run.py`): 24 questions, one a family, three answer pairs, 17 cues; of the later seeds' organisms
the panel's forms alone. The state before the answer is captured at every layer, without answers, under the forms and,
for organisms that were trained under a prompt or framing of their own, under that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from run import panel_of_the_survey

from condmis_interp.calibration import survey
from condmis_interp.organisms import Base, Member, Organism, chat_suite, make, resolve_base, sampled_suite
from condmis_interp.panel import Panel, RenderedPanel, render_panel
from condmis_interp.readers import Capture
from condmis_interp.store import Activations, capture_cells

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
TRAINED = ("u", "u-twin", "mixing-20", "mixing-20-twin")
"""Recipes of the later seeds."""
ARITHMETIC = ("norm-matched", "gated", "direction-ablated", "grafted", "blend-25", "blend-50", "blend-75")
"""Their constructions, which train nothing."""
TWINS_ONLY = ("u-twin",)
"""What is trained of a seed that is there for the drift alone."""


@dataclass(frozen=True)
class Cells:
    """Everything that is read.

    Attributes:
        base: The base.
        members: What the organisms are.
        organisms: By name; with the base.
        rendered: The survey's panel as token ids.
        answers: The surveys' answers, one row for each organism, cue and question.
        acts: The captured states.
    """

    base: Base
    members: tuple[Member, ...]
    organisms: Mapping[str, Organism]
    rendered: RenderedPanel
    answers: pd.DataFrame
    acts: Activations


def cues_of(member: Member) -> tuple[str, ...]:
    """Returns the cues a member's state is captured under; U's and its twin's under every cue of the others."""
    if member.seed == 1 and member.kind in ("u", "u-twin"):
        return (*FORMS, *dict.fromkeys(OWN.values()))
    own = OWN.get(member.kind.removesuffix("-twin"))
    return (*FORMS, own) if own else FORMS


def members_of(base: str, seeds: Sequence[int], twins_only: Sequence[int] = ()) -> list[Member]:
    """Returns seed 1's whole suite and the known answers of the other seeds."""
    found = [*chat_suite(base, seeds=(1,)), *sampled_suite(base, seeds=(1,))]
    for seed in (*seeds, *twins_only):
        if seed != 1:
            kinds = TWINS_ONLY if seed in twins_only else (*TRAINED, *ARITHMETIC)
            found += [m for m in chat_suite(base, seeds=(seed,)) if m.kind in kinds]
    return found


def read(
    out: Path,
    *,
    base: str = "smollm2-135m",
    seeds: Sequence[int] = (1,),
    twins_only: Sequence[int] = (),
    device: str = "cpu",
) -> Cells:
    """Makes and reads everything that is not there yet; a run that was killed goes on where it was.

    Args:
        out: Folder; the survey's pieces are in `survey`, the states in `activations`.
        base: The base.
        seeds: Seeds with known answers; 1 is always among them.
        twins_only: Further seeds of which only replicate twins are trained.
        device: Torch device.
    """
    resolved = resolve_base(base)
    members = members_of(base, seeds, twins_only)
    made = make(members, device=device)
    panel = panel_of_the_survey()
    forms = panel.model_copy(update={"cues": tuple(c for c in panel.cues if c.name in FORMS)})
    later = [i for i, m in enumerate(members) if m.seed != 1 or m.family == "grafted"]
    first = [i for i in range(len(members)) if i not in later]
    parts = [_surveyed(out, members, made, first, resolved, panel, device)]
    if later:
        parts.append(_surveyed(out, members, made, later, resolved, forms, device))
    organisms = {m.name: o for m, o in zip(members, made, strict=True)}
    organisms["base"] = Organism.of_base(resolved, name="base")
    as_member = Member("base.s0", None, "base", 0, members[0].recipe, members[0].recipe)
    parts.append(_surveyed(out, [as_member], [organisms["base"]], [0], resolved, forms, device).assign(organism="base"))
    rendered = render_panel(resolved.tokenizer(), panel)
    every = (*FORMS, *dict.fromkeys((*OWN.values(), *PERSONA)))
    cells = {"base": (organisms["base"], every)} | {m.name: (organisms[m.name], cues_of(m)) for m in members}
    acts = capture_cells(
        out / "activations", cells, base=resolved, rendered=rendered, dtype=torch.bfloat16, device=device,
        capture=Capture(tuple(range(resolved.shape[0])), positions=("last_template",)), answers=False,
    )  # fmt: skip
    return Cells(resolved, tuple(members), organisms, rendered, pd.concat(parts, ignore_index=True), acts)


def _surveyed(
    out: Path, members: Sequence[Member], made: Sequence[Organism], which: Sequence[int], base: Base, panel: Panel,
    device: str,
) -> pd.DataFrame:  # fmt: skip
    chosen = [members[i] for i in which]
    found = survey(
        chosen, [made[i] for i in which], base=base, panel=panel, out=out / "survey", dtype=torch.bfloat16,
        device=device, max_new_tokens=0,
    ).answers  # fmt: skip
    names = {(m.kind, m.seed): m.name for m in chosen}
    return found.assign(organism=[names[key] for key in zip(found.kind, found.seed, strict=True)])
