"""What the package loads before it is used: nothing that takes seconds."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "trl", "datasets", "peft", "sklearn", "scipy", "pandas", "plotly", "matplotlib")
HELP = "import contextlib, sys; sys.argv = ['condmis', '--help']\nfrom condmis_interp.cli import main\n"


def loaded(code: str, names: tuple[str, ...]) -> list[str]:
    """The modules of `names` that a fresh Python has loaded after `code`."""
    told = f"\nimport sys\nprint(*[n for n in {names!r} if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code + told], capture_output=True, text=True, check=True)
    return found.stdout.splitlines()[-1].split()


@pytest.mark.parametrize(
    "code", ["import condmis_interp", HELP + "with contextlib.redirect_stdout(sys.stderr):\n    main()"]
)
def test_it_is_there_at_once(code):
    assert loaded(code, HEAVY) == []


@pytest.mark.slow  # imports everything anew
def test_what_trains_and_what_draws_pngs_is_loaded_by_that_alone():
    assert loaded("import condmis_interp.auditing", ("trl", "datasets", "wandb", "matplotlib", "torch")) == ["torch"]
