"""Models, tokens and fidelity of the experiment; everything that is kept between runs."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plan import Plan

from condmis_interp.errors import UserError
from condmis_interp.files import read_json, write_json
from condmis_interp.organisms import Member, Organism, chat_suite, make, resolve_base
from condmis_interp.panel import load_panel, render_panel
from condmis_interp.personaworld.suite import world_suite
from condmis_interp.sae import (
    Dictionary,
    Fidelity,
    Text,
    TokenReader,
    Tokens,
    fidelity,
    measure_fidelity,
    panel_texts,
    read_cells,
    read_tokens,
    row_texts,
)
from condmis_interp.store import Pieces


class Experiment:
    """The steps; each says how long it took."""

    def __init__(self, plan: Plan, base: str, seed: int, out: Path, device: str) -> None:
        self.plan, self.out, self.device = plan, out, device
        self.base = resolve_base(base)
        self.tokenizer = self.base.tokenizer()
        suite = (chat_suite if base.startswith("smollm2") else world_suite)(base, seeds=[seed])
        self.members: dict[str, Member] = {m.name.removesuffix(f".s{seed}"): m for m in suite}
        names = [*plan.trained_on, *plan.held_out]
        self.organisms: dict[str, Organism] = {"base": Organism.of_base(self.base, name="base")}
        self.organisms |= dict(zip(names, make([self.members[n] for n in names], device=device), strict=True))
        rendered = render_panel(self.tokenizer, load_panel(plan.panel))
        self.discovery = panel_texts(rendered, "A", pairs=plan.pairs)
        self.held_out = panel_texts(rendered, "B", pairs=plan.pairs)
        few = {f: next(t.question for t in self.held_out if t.family == f) for f in {t.family for t in self.held_out}}
        self.gate_texts = [t for t in self.held_out if t.question in few.values() and t.answer < 2]
        self.cues = [c.name for c in rendered.panel.cues]
        self.seconds: dict[str, dict[str, float]] = {}

    def timed(self, what: str, work: Callable[[], Any]) -> Any:
        """Runs a step and keeps how long it took, over all runs: an interrupted one's share counts."""
        wall, cpu = time.monotonic(), time.process_time()
        try:
            return work()
        finally:
            spent = {"wall": time.monotonic() - wall, "cpu": time.process_time() - cpu}
            path = self.out / "seconds.json"
            seconds = read_json(path) if path.is_file() else {}
            before = seconds.get(what, {"wall": 0.0, "cpu": 0.0})
            self.seconds = seconds | {what: {k: round(before[k] + v, 1) for k, v in spent.items()}}
            write_json(path, self.seconds)
            print(f"{what}: {spent['wall']:.0f} s", flush=True)

    def first_pairs(self, texts: list[Text]) -> list[Text]:
        """Returns the texts without a cue and under the trigger, with the first answer pair."""
        return [t for t in texts if t.answer < 2 and t.cue in ("none", self.plan.trigger)]

    def reader(self, name: str) -> TokenReader:
        """Loads an organism."""
        model = self.organisms[name].model(self.base, dtype=self.plan.dtype, device=self.device)
        return TokenReader(model, self.plan.site)

    def panel_tokens(self, name: str) -> Tokens:
        """Reads an organism on split A, under every cue."""
        return self._tokens(name, self.discovery, "panel")

    def tokens(self, name: str) -> list[Tokens]:
        """Reads an organism's training tokens: split A under every cue, and the rows it was trained on."""
        found = [self.panel_tokens(name)]
        if name in self.members:
            found.append(self._tokens(name, row_texts(self.members[name].recipe, self.tokenizer), "rows"))
        return found

    def _tokens(self, name: str, texts: list[Text], kind: str) -> Tokens:
        about: dict[str, Any] = {
            "name": f"{name}.{kind}", "weights": self.organisms[name].weights, "site": self.plan.site,
            "folder": self.out / "tokens",
        }  # fmt: skip
        try:
            return read_tokens(None, texts, **about)
        except UserError:  # not there yet, or of other texts
            return read_tokens(self.reader(name), texts, **about)

    def fidelity(self, sae: Dictionary, key: str) -> Fidelity:
        """Measures every organism on one question of each family of split B, one answer pair, under every cue."""
        pieces = Pieces(self.out / "fidelity", [key, [list(t.ids) for t in self.gate_texts]])

        def one(name: str) -> list[dict[str, Any]]:
            reader = self.reader(name)
            return measure_fidelity(sae, reader, read_cells(reader, self.gate_texts, organism=name))

        rows = [
            row
            for name, organism in self.organisms.items()
            for row in pieces.get(name, organism.weights, lambda name=name: one(name))
        ]
        return fidelity(rows, base="base")
