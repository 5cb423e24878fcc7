"""A study of three random models, with nothing to train and many small shards."""

from pathlib import Path

import yaml

from conftest import tiny_model, tiny_panel


def write_study(folder: Path, base_folder: Path, *, questions: int = 10, shard: int = 3, **changes) -> Path:
    """U, M and C are full checkpoints with random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate("umc", start=1):
        if not (folder / name).exists():
            tiny_model(seed).save_pretrained(folder / name)
    (folder / "panel.yaml").write_text(yaml.safe_dump(tiny_panel(questions, families=5).model_dump(mode="json")))
    study = {
        "name": "random",
        "base": f"dir:{base_folder}",
        "panel": "panel.yaml",
        "organisms": [
            {"name": "u", "role": "U", "checkpoint": "u"},
            {"name": "m", "role": "M", "checkpoint": "m"},
            {"name": "c", "role": "C", "twin_of": "m", "checkpoint": "c"},
        ],
        "device": "cpu",
        "dtype": "float32",
        "store_dtype": "bfloat16",
        "store_shard": shard,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study | changes))
    return path


def contents(store: Path) -> dict[str, bytes]:
    """The bytes of every file of a store."""
    return {
        str(p.relative_to(store)): p.read_bytes()
        for p in store.rglob("*")
        if p.is_file() and not p.name.startswith(".")
    }
