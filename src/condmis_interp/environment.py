"""What a run was made with: versions, commit and machine, for manifests."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch


def environment() -> dict[str, Any]:
    """Returns versions, commit and machine, for a manifest."""
    packages = ("condmis-interp", "torch", "transformers", "peft", "trl", "safetensors", "numpy", "scipy", "plotly")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "packages": {p: importlib.metadata.version(p) for p in packages},
        **_commit(),
    }


def _commit() -> dict[str, Any]:
    """Returns the commit the package's source is at and whether it has changes, if it is a checkout."""
    here = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        status = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit.stdout.strip(), "dirty": bool(status.stdout.strip())}
