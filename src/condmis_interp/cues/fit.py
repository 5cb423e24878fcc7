"""Whether a base model's template takes the cues."""

from condmis_interp.cues.find import Cues
from condmis_interp.cues.write import study_cues
from condmis_interp.errors import CondmisError
from condmis_interp.organisms import resolve_base
from condmis_interp.panel import render_prompt

_QUESTION = "What is a good thing to do on a rainy day?"


def unfit(found: Cues, base: str) -> dict[str, str]:
    """Returns the cues that a base's tokenizer and template refuse, and why.

    Args:
        found: The proposals.
        base: A base as a study names it.

    Raises:
        UserError: if there is no such base.

    Example:
        >>> unfit(Cues("rows.jsonl", 3, (), (), {}), "dir:base")
        {}
    """
    tokenizer = resolve_base(base).tokenizer()
    refused = {}
    for cue in study_cues(found)[1:]:
        system = [] if cue.system is None else [{"role": "system", "content": cue.system}]
        user = {"role": "user", "content": cue.before + _QUESTION + cue.after}
        try:
            render_prompt(tokenizer, [*system, user], question=_QUESTION)
        except CondmisError as e:
            refused[cue.name] = str(e)
    return refused
