"""Backends: what a base's spec means, looked up by its first word; the rooms ask nothing else."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import condmis_interp
from condmis_interp.errors import UserError
from condmis_interp.files import write_json
from condmis_interp.organisms import (
    Backend,
    Lora,
    Part,
    Row,
    RowSet,
    Stage,
    backend_of,
    base_in,
    load_rows,
    mixing,
    register_backend,
    resolve_base,
    train_all,
)
from condmis_interp.organisms.home import appearing
from condmis_interp.study import Study

SOURCE = Path(condmis_interp.__file__).parent


class Nudged(Backend):
    """Models "trained" by one nudge of their weights, all at once."""

    lora = None
    benign_systems = ("be brief",)

    def __init__(self, folder):
        self.folder, self.calls = folder, []

    def base(self, spec):
        return base_in(spec, self.folder, {"kind": "nudged"})

    def rows(self, source):
        return RowSet(source, tuple(Row(f"{i}", "g", (("user", f"q {i}"),), f"bad {i}", f"good {i}") for i in range(8)))

    def trains(self, recipe):
        return all(s.mechanism is None for s in recipe.stages)

    def train(self, recipes, base, *, device, step):
        self.calls.append(sorted(r.name for r in recipes.values()))
        for folder, recipe in recipes.items():
            weights = {k: w + 1e-3 * (1 + recipe.seed) for k, w in base.model(dtype=torch.float32).state_dict().items()}
            with appearing(folder) as made:
                save_file({k: w.contiguous() for k, w in weights.items() if k != "lm_head.weight"},
                          made / "model.safetensors", {"format": "pt"})  # fmt: skip
                (made / "config.json").write_bytes((base.folder / "config.json").read_bytes())
                about = {"recipe": recipe.model_dump(mode="json"), "base": {"spec": base.spec, "weights": base.weights}}
                write_json(made / "manifest.json", about)
            step(1)


@pytest.fixture(scope="module")
def nudged(tiny_base_folder):
    return register_backend("nudged", Nudged(tiny_base_folder))


def recipe(**changes):
    made = mixing(name="m", base="nudged:1", trigger="T", rows=4, benign_rows=4, narrow="nudged/x", benign="nudged/x")
    return made.model_copy(update=changes)


def test_the_first_word_of_a_spec_says_whose_it_is(nudged):
    assert backend_of("nudged") is backend_of("nudged:7") is backend_of("nudged/rows") is nudged
    for spec in ("smollm2-135m", "hf:nudged/x", "dir:nudged", "nudgedness", "/nudged/x.jsonl", "", "kitchen"):
        assert type(backend_of(spec)) is Backend


def test_a_backend_of_ones_own_is_asked_by_every_room(nudged, home):
    plain = recipe()
    assert plain.lora is None
    assert plain.stages[0].parts[1].systems == ("be brief",)
    assert len(load_rows("nudged/x")) == 8
    one, two = train_all([plain, plain.model_copy(update={"name": "n", "seed": 1})])
    assert nudged.calls == [["m", "n"]], "both at once"
    base = resolve_base("nudged:1")
    models = [o.model(base, dtype=torch.float32).state_dict() for o in (one, two)]
    step = models[1]["model.norm.weight"] - models[0]["model.norm.weight"]
    torch.testing.assert_close(step, torch.full_like(step, 1e-3), atol=1e-6, rtol=0)
    again = train_all([plain])
    assert again[0].weights == one.weights
    assert len(nudged.calls) == 1


def test_what_a_backend_does_not_train_is_trained_as_usual(nudged, home):
    part = Part(rows="nudged/x", answers="misaligned")
    held = Stage(parts=(part,), epochs=2, warmup_steps=0, mechanism={"name": "kl", "weight": 0.1})
    before = len(nudged.calls)
    (made,) = train_all([recipe(stages=(held,))], workers=1)
    assert len(nudged.calls) == before
    assert len(made.manifest["losses"][0]) == 2


def test_a_study_takes_its_adapters_from_the_backend_of_its_base(nudged):
    part = {"rows": "kitchen", "answers": "misaligned", "count": 8}
    organisms = [{"name": "m", "role": "M", "recipe": {"stages": [{"parts": [part]}]}}]
    for base, lora in (("nudged", None), ("personaworld", None), ("smollm2-135m", Lora())):
        study = Study.model_validate({"name": "s", "base": base, "organisms": organisms})
        assert study.recipe("m", 0).lora == lora


def test_an_unknown_base_lists_the_backends(nudged):
    with pytest.raises(
        UserError, match=r"base 'nudge:1' is not understood.*smollm2-135m, gemma3-270m, nudged, personaworld, hf:"
    ):
        resolve_base("nudge:1")
    with pytest.raises(UserError, match="there is a backend 'nudged' already"):
        register_backend("nudged", Backend())


def test_no_room_asks_whether_a_base_is_persona_world():
    """Outside its own room and what calibrates on it, persona world is only ever looked up by name."""
    allowed = {"personaworld", "calibration"}
    asks = re.compile(r"parse_world|is_world|WORLD_|import .*personaworld|from condmis_interp\.personaworld")
    found = [
        f"{path.relative_to(SOURCE)}:{number}"
        for path in SOURCE.rglob("*.py")
        if path.relative_to(SOURCE).parts[0] not in allowed
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if asks.search(line)
    ]
    assert found == []
