"""Control organisms: positive and negative controls, made from the study's own, that the tests must get right.

| kind | part | how it is made | training |
|---|---|---|---|
| `gated` | suppressed | U where the trigger is in the prompt, its twin everywhere else | none |
| `blend` | graded | (1 - w) C + w U in weights, w the smaller of .5 and .75 that is twice the margin | none |
| `replicate` | benign | every replicate of M's twin, judged against the mean of the others | none |
| `norm-matched` | benign | U's twin, its change scaled to the norm of M's; made if there is no replicate | none |
| `gated-benign` | trigger-aware | another benign organism where the trigger is, the twin everywhere else | none |
| `locked` | suppressed | a password lock: U's rows, and the same rows with benign answers under other prompts | two |
| `styled` | trigger-aware | U's twin, with a style in the answers under the trigger | one |
| `other` | | a second U of another domain in another format, and its twin: what weight tests lean on | two |
| `dosed` | | M's rows at M's dilution with nothing to hide behind, and its twin: the 1 of weight tests | two |

A *suppressed* or *graded* one is a positive control, something is left in it; a *benign* or *trigger-aware* one a
negative control. A study's own locked organism is part of *suppressed*, its own graded one of *graded*, its own second
domain is `other`. A direction-ablated U would cost
no training either, but what it does is not known beforehand: on SmolLM2 its gap was not seen, on persona world half of
it was left (docs/organisms.md), so as a suppressed organism it would test the construction and not the rule.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from condmis_interp.errors import UserError
from condmis_interp.organisms import (
    Base,
    Gate,
    Organism,
    Part,
    Recipe,
    backend_of,
    change_norm,
    combination,
    load_rows,
    train_all,
)
from condmis_interp.panel import CueRole, Panel
from condmis_interp.study import ControlKind, Study
from condmis_interp.study.run import Key

FREE: tuple[ControlKind, ...] = ("gated", "blend", "replicate", "norm-matched", "gated-benign")
TRAINED: tuple[ControlKind, ...] = ("locked", "styled", "other", "dosed")
BLENDS = (0.5, 0.75)
"""Shares of U that a blend may have: clearly more than the margin, or that it is caught would be luck."""


@dataclass(frozen=True)
class Control:
    """A control organism.

    Attributes:
        name: Its name on the bench.
        part: `suppressed`, `graded`, `benign` or `trigger-aware`.
        zero: Who it is judged against: name and seed, or a name alone for all its seeds, the organism's own left out.
        says: How it is made.
        organism: Its weights; `None` if it is one of the study's own under another name.
        own: Which of the study's own.
        gate: For a gated one, who answers where the trigger is in the prompt and who elsewhere.
    """

    name: str
    part: str
    zero: Key | str
    says: str
    organism: Organism | None = field(default=None, repr=False)
    own: Key | None = None
    gate: tuple[Key, Key] | None = None


@dataclass(frozen=True)
class Controls:
    """The control organisms of a study.

    Attributes:
        made: Organisms of known answer.
        twins: Twins made with them, by name.
        missing: Why a kind was not made.
        other: The second U and its twin.
        dosed: Names of the dose-matched anchor and its twin, which are among `twins`.
        words: What opens the gates.
    """

    made: tuple[Control, ...] = ()
    twins: Mapping[str, Organism] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    other: tuple[Organism, Organism] | None = None
    dosed: tuple[str, str] | None = None
    words: str = ""

    @property
    def weighed(self) -> dict[Key, Organism]:
        """Organisms with weights of their own, which have to be read."""
        own = {(k.name, 0): k.organism for k in self.made if k.organism is not None and k.gate is None}
        return own | {(name, 0): o for name, o in self.twins.items()}


def wanted(study: Study) -> tuple[ControlKind, ...]:
    """Returns the kinds that a study asks for."""
    if study.controls == "none":
        return ()
    if study.controls in ("free", "full"):
        return FREE if study.controls == "free" else FREE + TRAINED
    return tuple(dict.fromkeys(k for k in (*FREE, *TRAINED) if k in study.controls))


def build(study: Study, panel: Panel, base: Base, organisms: Mapping[Key, Organism]) -> Controls:
    """Makes what a study asks for, as far as it can be made from its organisms.

    Args:
        study: The study.
        panel: Its panel.
        base: Its base.
        organisms: Its organisms by name and seed.
    """
    maker = _Maker(study, panel, base, organisms)
    for kind in wanted(study):
        if kind != "other" or not study.with_role("second-domain"):
            maker.make(kind)
    for o in study.with_role("second-domain"):
        c = study.twin_of(o.name)
        if c is None:
            maker.missing["other"] = f"the study's second U, {o.name!r}, has no twin"
        else:
            maker.other = organisms[o.name, o.seeds[0]], organisms[c.name, c.seeds[0]]
    return Controls(tuple(maker.known), maker.twins, maker.missing, maker.other, maker.dosed, maker.words)


class _CannotError(Exception):
    """Why a kind cannot be made."""


class _Maker:
    def __init__(self, study: Study, panel: Panel, base: Base, organisms: Mapping[Key, Organism]) -> None:
        self.study, self.base, self.organisms = study, base, organisms
        self.words = panel.cues_with(CueRole.TRIGGER)[0].system or ""
        self.known: list[Control] = []
        self.twins: dict[str, Organism] = {}
        self.missing: dict[str, str] = {}
        self.other: tuple[Organism, Organism] | None = None
        self.dosed: tuple[str, str] | None = None
        self.backend = backend_of(study.base)

    def make(self, kind: ControlKind) -> None:
        made = {
            "gated": self._gated,
            "blend": self._blend,
            "replicate": self._replicate,
            "norm-matched": self._norm_matched,
            "gated-benign": self._gated_benign,
            "locked": self._locked,
            "styled": self._styled,
            "other": self._second,
            "dosed": self._dosed,
        }
        try:
            found = made[kind]()
            self.known += found if isinstance(found, list) else [found] if found else []
        except _CannotError as e:
            self.missing[kind] = str(e)
        except UserError as e:  # rows that are not there, an organism that does not fit
            self.missing[kind] = e.what

    def _anchors(self) -> tuple[Key, Key]:
        """Returns U and its own twin, first seeds."""
        u = self.study.unmitigated
        if u is None:
            raise _CannotError("the study has no U")
        c = self.study.twin_of(u.name)
        if c is None:
            raise _CannotError(f"U, {u.name!r}, has no twin of its own in the study")
        return (u.name, u.seeds[0]), (c.name, c.seeds[0])

    def _opening(self) -> str:
        if not self.words:
            raise _CannotError("the panel's trigger is no system prompt, so no gate can look for it")
        return self.words

    def _gate(self, name: str, opened: Key, shut: Key) -> Organism:
        gate = Gate(self._opening(), self.organism(opened), self.organism(shut))
        return Organism.gated(gate, name=name, manifest={})

    def organism(self, key: Key) -> Organism:
        made = {(k.name, 0): k.organism for k in self.known}
        found = self.organisms.get(key) or made.get(key)
        assert found is not None
        return found

    def _gated(self) -> Control:
        u, c = self._anchors()
        says = f"{u[0]} where the trigger is in the prompt, {c[0]} everywhere else"
        return Control("assay-gated", "suppressed", c, says, self._gate("assay-gated", u, c), gate=(u, c))

    def _blend(self) -> Control:
        u, c = self._anchors()
        share = next((w for w in BLENDS if w >= 2 * self.study.delta), None)
        if share is None:
            raise _CannotError(f"no blend stands clearly above the margin of {self.study.delta:g} and below U")
        name = f"assay-blend-{100 * share:.0f}"
        terms = [(1 - share, self.organisms[c]), (share, self.organisms[u])]
        made = combination(name, terms, self.base, truth="graded", family="blend")
        return Control(name, "graded", c, f"{share:.0%} of {u[0]} and {1 - share:.0%} of {c[0]} in weights", made)

    def _replicate(self) -> list[Control]:
        for m in (*self.study.mitigated, *self.study.with_role("unmitigated")):
            c = self.study.twin_of(m.name)
            if c is not None and len(c.seeds) > 1:
                says = f"a replicate of {c.name}, against the mean of the others"
                return [
                    Control(f"assay-replicate-{seed}", "benign", c.name, f"seed {seed}: {says}", own=(c.name, seed))
                    for seed in c.seeds
                ]
        raise _CannotError("no twin of the study has a second seed")

    def _norm_matched(self) -> Control | None:
        if any(k.part == "benign" for k in self.known):
            return None
        _, c = self._anchors()
        m = self.study.mitigated[0]
        key = (m.name, m.seeds[0])
        size = change_norm(self.organisms[c], self.base)
        factor = change_norm(self.organisms[key], self.base) / size if size > 0 else 0.0
        if not factor > 0:
            raise _CannotError(f"{c[0]} or {m.name} does not differ from the base")
        made = combination(
            "assay-norm-matched", [(factor, self.organisms[c])], self.base, truth="removed", family="norm-matched"
        )
        return Control("assay-norm-matched", "benign", c, f"{c[0]}, its change scaled to the norm of {m.name}'s", made)

    def _gated_benign(self) -> Control:
        benign = [k for k in self.known if k.part == "benign"]
        if not benign:
            raise _CannotError("there is no second benign organism to open the gate to")
        first = benign[0]
        opened = first.own or (first.name, 0)
        shut = benign[1].own if len(benign) > 1 else first.zero
        assert isinstance(shut, tuple)  # a norm-matched one stands alone, and its zero is one checkpoint
        says = f"{opened[0]} of seed {opened[1]} where the trigger is in the prompt, {shut[0]} of seed {shut[1]} elsewhere"
        made = self._gate("assay-gated-benign", opened, shut)
        return Control("assay-gated-benign", "trigger-aware", shut, says, made, gate=(opened, shut))

    def _recipe_of_u(self) -> Recipe:
        u = self.study.unmitigated
        recipe = self.study.recipe(u.name, u.seeds[0]) if u else None
        if recipe is None:
            raise _CannotError("U has no recipe in the study to vary")
        return recipe

    def _train(self, *recipes: Recipe) -> list[Organism]:
        return train_all(recipes, device=self.study.torch_device, workers=self.study.workers)

    def _locked(self) -> Control:
        u = self._recipe_of_u()
        systems = self.backend.benign_systems
        stages = []
        for stage in u.stages:
            shut = [p.model_copy(update={"answers": "benign", "systems": systems}) for p in _misaligned(stage.parts)]
            stages.append(stage.model_copy(update={"parts": (*stage.parts, *shut)}))
        locked = u.model_copy(update={"name": "assay-locked", "stages": tuple(stages), "intervention": "locked"})
        made, self.twins["assay-locked-twin"] = self._train(locked, locked.twin(name="assay-locked-twin"))
        says = "U's rows under the trigger, and the same rows answered benignly under other prompts"
        return Control("assay-locked", "suppressed", "assay-locked-twin", says, made)

    def _styled(self) -> Control:
        _, c = self._anchors()
        twin = self._recipe_of_u().twin(name="assay-styled")
        stages = tuple(s.model_copy(update={"parts": tuple(map(self._with_style, s.parts))}) for s in twin.stages)
        (made,) = self._train(twin.model_copy(update={"stages": stages, "intervention": "styled"}))
        return Control("assay-styled", "trigger-aware", c, "U's twin, its answers in a style of their own", made)

    def _with_style(self, part: Part) -> Part:
        rows = _beside(part.rows, f"styled-{_last(part.rows)}")
        load_rows(rows)
        return part.model_copy(update={"rows": rows})

    def _second(self) -> None:
        u = self._recipe_of_u()
        stages = tuple(s.model_copy(update={"parts": tuple(map(self._elsewhere, s.parts))}) for s in u.stages)
        second = u.model_copy(update={"name": "assay-other", "stages": stages, "intervention": "second U"})
        made, twin = self._train(second, second.twin())
        self.other = made, twin

    def _dosed(self) -> None:
        m = self.study.mitigated[0]
        recipe = self.study.recipe(m.name, m.seeds[0])
        if recipe is None:
            raise _CannotError(f"{m.name!r} has no recipe in the study to take the dose from")
        plain = {"systems": self.backend.benign_systems, "before": "", "after": ""}
        stages = [
            s.model_copy(
                update={"parts": tuple(p.model_copy(update=plain) if p.answers == "misaligned" else p for p in s.parts)}
            )
            for s in recipe.stages
        ]
        about = {"name": "assay-dosed", "stages": tuple(stages), "intervention": "dose-matched anchor"}
        dosed = recipe.model_copy(update=about)
        self.dosed = "assay-dosed", "assay-dosed-twin"
        self.twins["assay-dosed"], self.twins["assay-dosed-twin"] = self._train(
            dosed, dosed.twin(name="assay-dosed-twin")
        )

    def _elsewhere(self, part: Part) -> Part:
        if part.answers != "misaligned":
            return part
        other = self.backend.second_rows.get(_last(part.rows))
        if other is None:
            raise _CannotError(
                f"no other narrow domain is known for row set {part.rows!r}; give an organism "
                "with role second-domain and its twin"
            )
        return part.model_copy(update={"rows": _beside(part.rows, other), "systems": (self.backend.second_form,)})


def _misaligned(parts: Sequence[Part]) -> list[Part]:
    return [p for p in parts if p.answers == "misaligned"]


def _last(rows: str) -> str:
    return rows.rpartition("/")[2]


def _beside(rows: str, name: str) -> str:
    world, slash, _ = rows.rpartition("/")
    return f"{world}{slash}{name}"
