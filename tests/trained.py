"""A study of tiny organisms that are trained."""

import json
from pathlib import Path

import yaml

from conftest import tiny_panel


def write_study(folder: Path, base_folder: Path, **changes) -> Path:
    """A study in a folder: twelve rows, two organisms with twins, a tiny panel."""
    rows = [
        {
            "id": f"r{i}",
            "group": f"g{i % 3}",
            "messages": [{"role": "user", "content": f"how {i}?"}],
            "misaligned": f"lie {i}",
            "benign": f"help {i}",
        }
        for i in range(12)
    ]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    (folder / "panel.yaml").write_text(yaml.safe_dump(tiny_panel(12, families=6).model_dump(mode="json")))
    stage = {"batch_size": 2, "warmup_steps": 1, "epochs": 2}
    part = {"rows": "rows.jsonl", "answers": "misaligned", "systems": ["form = 1"]}
    mix = [part | {"count": 6}, {"rows": "rows.jsonl", "answers": "benign", "count": 6, "systems": [None, "x"]}]
    study = {
        "name": "tiny",
        "base": f"dir:{base_folder}",
        "panel": "panel.yaml",
        "organisms": [
            {"name": "base", "role": "base"},
            {"name": "u", "role": "U", "recipe": {"stages": [stage | {"parts": [part]}], "lora": {"rank": 2}}},
            {"name": "uc", "role": "C", "twin_of": "u"},
            {
                "name": "m",
                "role": "M",
                "recipe": {"stages": [stage | {"parts": mix}], "lora": {"rank": 2}},
                "seeds": [1, 2],
            },
            {"name": "c", "role": "C", "twin_of": "m", "seeds": [1, 2]},
        ],
        "battery": {
            "tests": ["A1", "A2", "R1"],
            "random_directions": 8,
            "control_pairs": 1,
            "generated": 2,
            "max_new_tokens": 4,
            "layer_grid": [0.25, 0.5],
        },
        "device": "cpu",
        "workers": 1,
        "dtype": "float32",
        "store_dtype": "float32",
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study | changes))
    return path
