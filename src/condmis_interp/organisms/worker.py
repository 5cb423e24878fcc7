"""A process that trains the recipes it reads from stdin, one JSON line each, and reports on stdout.

Lines out: `{"step": n}` as training goes on, `{"done": name}`, or `{"error": class, "what": ..., "where": ...,
"fix": ...}`. It ends with its input; when nobody reads its reports any more, it dies at the next step.
"""

import json
import sys
from importlib import import_module

from condmis_interp.errors import CheckError, CondmisError
from condmis_interp.organisms.recipe import Recipe
from condmis_interp.organisms.train import train


def main() -> None:
    """Trains until stdin ends."""
    out, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no report

    def say(**said: object) -> None:
        print(json.dumps(said), file=out, flush=True)

    for line in sys.stdin:
        asked = json.loads(line)
        recipe = Recipe.model_validate(asked["recipe"])
        try:
            for module in asked["modules"]:
                import_module(module)
            train(recipe, device=asked["device"], step=lambda n=1: say(step=n))
        except CondmisError as e:
            say(error=type(e).__name__, what=e.what, where=e.where, fix=e.fix)
        except Exception as e:
            what = f"unexpected {type(e).__name__}: {e}"
            say(error=CheckError.__name__, what=what, where=f"organism {recipe.name}, seed {recipe.seed}", fix=None)
        else:
            say(done=recipe.name)


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)
