"""What a run was made with: versions, commit and machine, for manifests."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from condmis_interp.errors import UserError


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


def checked_device(name: str) -> str:
    """Returns a torch device's name, if this machine has it (or `balanced`: all its GPUs).

    Raises:
        UserError: if it has not, or there is no such device.

    Example:
        >>> checked_device("gpu")
        Traceback (most recent call last):
        condmis_interp.errors.UserError: device: there is no device 'gpu' here. Use auto, cpu...
    """
    kind, _, index = name.partition(":")
    here = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    number = int(index) if index.isdigit() else 0 if not index else -1
    if name == "balanced" or 0 <= number < here.get(kind, 0):
        return name
    found = ", ".join(["cpu", *(f"{k}:{i}" for k in ("cuda", "mps") for i in range(here[k]))])
    raise UserError(f"there is no device {name!r} here", where="device", fix=f"Use auto, {found}.")


def machine(home: Path) -> list[tuple[str, str]]:
    """Returns what this machine has and whether the demo can run on it: what, and how much.

    Args:
        home: Where models are kept; it need not be there yet.
    """
    facts = environment()
    bf16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    fast = "fast" if bf16 else "slow: set dtype: float32"
    free = shutil.disk_usage(next(p for p in (home, *home.parents) if p.exists())).free / 1e9
    return [
        ("python", facts["python"]),
        *facts["packages"].items(),
        ("gpu", torch.cuda.get_device_name() if torch.cuda.is_available() else "none (not needed)"),
        ("cpu", f"{facts['cpus']} cores, {facts['threads']} threads, bf16 {fast}"),
        ("models in", str(home)),
        ("free disk there", f"{free:.0f} GB" + ("" if free > 2 else " - the demo needs 2 GB")),
    ]


def _commit() -> dict[str, Any]:
    """Returns the commit the package's source is at and whether it has changes, if it is a checkout."""
    here = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        status = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit.stdout.strip(), "dirty": bool(status.stdout.strip())}
