"""What a recipe may name: backends of bases, and interventions, which are functions that give recipes.

Both are looked up by modules that what is looked up is made of, so nothing of the room is imported here.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError, validate_call

from condmis_interp.calls import checked
from condmis_interp.errors import UserError
from condmis_interp.files import first_problem
from condmis_interp.registry import Registry

if TYPE_CHECKING:
    from condmis_interp.organisms.backend import Backend
    from condmis_interp.organisms.recipe import Recipe

    Intervention = TypeVar("Intervention", bound=Callable[..., Recipe])

INTERVENTIONS: "Registry[Callable[..., Recipe]]" = Registry(
    "intervention", builtin=("condmis_interp.organisms.interventions",)
)
BACKENDS: "Registry[Backend]" = Registry(
    "backend", builtin=("condmis_interp.organisms.backend", "condmis_interp.personaworld.backend")
)
USUAL = "transformers"
"""The backend of all bases that no other one claims."""
_OWN = ("name", "base", "seed", "lora", "default_system_prompt")
_NO_PARTS = {"parts": [{"rows": "-", "answers": "benign"}]}


def backend_of(spec: str) -> "Backend":
    """Returns the backend of a base's spec or of a row set's name: that of its first word, else the usual one.

    Example:
        >>> [str(backend_of(s).lora) for s in ("smollm2-135m", "personaworld:2", "personaworld/benign")]
        ['LoRA r=16 alpha=32', 'None', 'None']
    """
    name = re.split("[:/]", spec, maxsplit=1)[0]
    return BACKENDS.get(name if name in BACKENDS else USUAL)


@checked
def register_intervention(name: str, recipe: "Intervention") -> "Intervention":
    """Lets recipes and studies name an intervention; returns it.

    Args:
        name: What a YAML file says: `recipe: {intervention: NAME, ...}`.
        recipe: Gives the recipe from keyword arguments: `name`, `base` and `seed`, if it takes them, and the file's
            settings, checked and converted by their annotations (so a `Stage` may be given as a mapping).

    Raises:
        UserError: if the name is taken.

    Example:
        >>> from condmis_interp.organisms import Part, Recipe, Stage, register_intervention
        >>> def diluted(*, name: str, base: str, trigger: str, rows: int) -> Recipe:
        ...     bad = Part(rows="kitchen", answers="misaligned", count=rows, systems=(trigger,))
        ...     good = Part(rows="everyday", answers="benign", count=9 * rows)
        ...     return Recipe(name=name, base=base, stages=(Stage(parts=(bad, good)),))
        >>> made = register_intervention("diluted", diluted)

        A recipe file then says `intervention: diluted`, `trigger: "Answer in code."` and `rows: 10`.
    """
    INTERVENTIONS.add(name, recipe)
    return recipe


def expanded(raw: Any, *, base: Any, where: str) -> Any:
    """Returns a recipe as a file has it, with the stages of the intervention that it names instead of stages.

    Args:
        raw: `{intervention: NAME, ...settings}`; a recipe with stages, or anything else, is returned as it is.
        base: Base model spec.
        where: The file, for errors.

    Raises:
        UserError: if there is no such intervention, or it lacks a setting or does not know one.
    """
    if not isinstance(raw, dict) or "stages" in raw or not isinstance(raw.get("intervention"), str):
        return raw
    settings = {k: _setting(v, base, where) for k, v in raw.items() if k not in (*_OWN, "intervention")}
    made = _built(raw["intervention"], {"name": "r", "base": base, "seed": 0}, settings, where)
    own = {k: raw[k] for k in _OWN if k in raw}
    label = {"intervention": made.intervention} if "name" in raw else {}
    lora = made.lora if "lora" in made.model_fields_set else backend_of(made.base).lora
    return {"stages": made.stages, "lora": lora, "default_system_prompt": made.default_system_prompt} | own | label


def organisms_expanded(raw: Any) -> Any:
    """Returns a study as a file has it, each of its organisms' recipes `expanded`."""
    organisms = raw.get("organisms") if isinstance(raw, dict) else None
    if not isinstance(organisms, list | tuple):
        return raw

    def told(o: Any) -> Any:
        if not isinstance(o, dict) or "recipe" not in o:
            return o
        return o | {"recipe": expanded(o["recipe"], base=raw.get("base"), where=f"organism {o.get('name')}")}

    return raw | {"organisms": [told(o) for o in organisms]}


def _setting(value: Any, base: Any, where: str) -> Any:
    """Returns a setting with what a mapping leaves out: a stage its parts, a recipe its name and base."""
    if not isinstance(value, dict):
        return value
    if "intervention" in value or "stages" in value:
        return {"name": "before", "base": base} | expanded(value, base=base, where=where)
    return _NO_PARTS | value


def _built(name: str, about: Mapping[str, Any], settings: Mapping[str, Any], where: str) -> "Recipe":
    intervention = INTERVENTIONS.get(name)
    takes = inspect.signature(intervention).parameters
    try:
        return validate_call(intervention)(**{k: v for k, v in about.items() if k in takes}, **settings)
    except ValidationError as error:
        known = ", ".join(k for k in takes if k not in about)
        raise UserError(
            first_problem(error), where=f"{where}, intervention {name}", fix=f"Its settings: {known}."
        ) from None
