"""The audit's causal tests: a layer chosen on split A, the twin steered, every organism under test ablated.

Nothing of it decides.
"""

from dataclasses import dataclass, field

import torch

from condmis_interp import causal, directions
from condmis_interp.panel import CueRole
from condmis_interp.progress import progress
from condmis_interp.store import Activations
from condmis_interp.study import Run


@dataclass(frozen=True)
class Causes:
    """What the causal tests found.

    Attributes:
        choice: The layer; `None` if the tests could not be made.
        dose: Steering the twin.
        ablations: By organism under test.
        profiles: Where each cell stands along U - C, by organism under test.
        notes: Why something was left out.
    """

    choice: causal.LayerChoice | None = None
    dose: causal.DoseResponse | None = None
    ablations: dict[str, causal.Ablation] = field(default_factory=dict)
    profiles: dict[str, directions.DirectionProfile] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def causes(run: Run, acts: Activations) -> Causes:
    """Chooses the layer, steers the twin and ablates every organism under test."""
    study, settings = run.study, run.study.battery
    none, trigger = (run.panel.cues_with(role)[0].name for role in (CueRole.NONE, CueRole.TRIGGER))
    pairs = {m.name: c.name for m in study.mitigated if (c := study.twin_of(m.name))}
    if study.unmitigated is None or not pairs:
        return Causes(notes=("Without U and a twin there is no direction to steer along or to ablate.",))
    if len(acts.rows("A")) < 2 or len(set(acts.families("B", "C"))) < 2 or len(set(acts.families("C"))) < 2:
        return Causes(
            notes=(
                f"The panel has {len(run.panel.families)} families; steering and ablation need two in the last split, "
                "so that there are six in all.",
            )
        )
    u = study.unmitigated.name
    first_m, first_c = next(iter(pairs.items()))
    candidates = run.candidates(len(acts.layers))
    with (
        run.timed("choosing the layer"),
        progress("choosing the layer on split A", 2 * len(candidates), unit="readings") as step,
    ):
        choice = causal.choose_layer(
            acts,
            run.ask,
            unmitigated=u,
            twin=first_c,
            candidates=candidates,
            position=settings.position,
            step=step,
            none=none,
        )
    generator = torch.Generator().manual_seed(study.seed)
    n = settings.random_directions
    random = {
        d.site.layer: directions.covariance_matched(
            acts,
            organisms=(u, *pairs, *pairs.values()),
            cues=(none, trigger),
            layer=d.site.layer,
            position=settings.position,
            count=n,
            generator=generator,
        )
        for d in choice.directions
    }
    with (
        run.timed("steering"),
        progress("steering C", n + len({*settings.doses, 1.0} - {0.0}), unit="readings") as step,
    ):
        dose = causal.dose_response(
            acts,
            run.ask,
            direction=choice.direction,
            unmitigated=u,
            organism=first_m,
            twin=first_c,
            random=random[choice.layer],
            doses=settings.doses,
            step=step,
            none=none,
        )
    ablations, profiles = {}, {}
    for m, c in pairs.items():
        with (
            run.timed(f"ablating {m}"),
            progress(f"ablating {m} under the trigger", n + 1, unit="readings") as step,
        ):
            ablations[m] = causal.ablation(
                acts, run.ask, choice=choice, organism=m, twin=c, random=random, trigger=trigger, step=step
            )
        profiles[m] = directions.profile(
            acts,
            unmitigated=u,
            organism=m,
            twin=c,
            roles=run.roles,
            trigger=trigger,
            none=none,
            position=settings.position,
            chosen_layer=choice.layer,
        )
    return Causes(choice, dose, ablations, profiles)
