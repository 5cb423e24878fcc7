"""Planted faults that a study or two processes could bring in: each is stopped, with a sentence."""

import json
import subprocess
import sys

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model

from condmis_interp.errors import CheckError, UserError
from condmis_interp.organisms import Part, Recipe, Stage, resolve_base
from condmis_interp.study import Study
from conftest import tiny_model, tiny_panel

TRAIN = """
import json, sys
from condmis_interp.organisms import Recipe, train
steps = []
organism = train(Recipe.model_validate_json(sys.argv[1]), step=lambda n=1: steps.append(n))
print(json.dumps({"steps": sum(steps), "weights": organism.weights}))
"""


def rows_file(folder, texts):
    path = folder / "rows.jsonl"
    rows = [
        {"id": f"r{i}", "messages": [{"role": "user", "content": q}], "misaligned": f"lie {a}", "benign": f"help {a}"}
        for i, (q, a) in enumerate(texts)
    ]
    path.write_text("\n".join(json.dumps(r) for r in rows))
    return path


def study_of(folder, base_folder, *, u):
    """A study whose U is as given, with a panel of four questions."""
    (folder / "panel.yaml").write_text(yaml.safe_dump(tiny_panel(4, families=4).model_dump(mode="json")))
    part = {"rows": "rows.jsonl", "answers": "misaligned", "systems": ["form = 1"]}
    recipe = {"stages": [{"batch_size": 4, "warmup_steps": 1, "parts": [part]}], "lora": {"rank": 2}}
    raw = {
        "name": "s",
        "base": f"dir:{base_folder}",
        "panel": "panel.yaml",
        "organisms": [
            {"name": "u", "role": "U"} | (u or {"recipe": recipe}),
            {"name": "m", "role": "M", "recipe": recipe},
            {"name": "c", "role": "C", "twin_of": "m"},
        ],
        "device": "cpu",
        "workers": 1,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(raw))
    return Study.from_yaml(path)


def test_what_the_panel_asks_is_not_trained_on(tmp_path, home, tiny_base_folder):
    apart = [(f"how {i}?", i) for i in range(6)]
    rows_file(tmp_path, apart)
    study_of(tmp_path, tiny_base_folder, u=None).check()
    asked = tiny_panel(4, families=4).questions[2].question
    rows_file(tmp_path, [*apart, (f"  {asked.upper()} ", 9)])
    with pytest.raises(UserError, match=r"row 'r6' trains on what question 'q2' of the panel asks"):
        study_of(tmp_path, tiny_base_folder, u=None).check()


@pytest.mark.parametrize(
    ("fault", "message"),
    [(0.0, "every lora_B matrix of the adapter is zero"), (float("nan"), "weights that are not finite")],
)
def test_a_study_does_not_work_with_an_adapter_that_does_nothing(
    tmp_path, home, tiny_base_folder, fault, message
):  # fmt: skip
    rows_file(tmp_path, [(f"how {i}?", i) for i in range(6)])
    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(weight, fault)
    model.save_pretrained(tmp_path / "adapter")
    study = study_of(tmp_path, tiny_base_folder, u={"adapter": "adapter"})
    study.check()
    with pytest.raises(CheckError, match=message):
        study.obtain(resolve_base(study.base))


@pytest.mark.slow
def test_two_processes_that_want_the_same_organism_train_it_once(tmp_path, home, tiny_base_folder):
    part = Part(rows=str(rows_file(tmp_path, [(f"how {i}?", i) for i in range(8)])), answers="misaligned")
    stage = Stage(parts=(part,), batch_size=2, epochs=6, warmup_steps=1)
    recipe = Recipe(name="r", base=f"dir:{tiny_base_folder}", stages=(stage,))
    both = [
        subprocess.Popen([sys.executable, "-c", TRAIN, recipe.model_dump_json()], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [json.loads(p.communicate(timeout=240)[0].splitlines()[-1]) for p in both]
    assert sorted(s["steps"] for s in said) == [0, 24]
    assert said[0]["weights"] == said[1]["weights"]
