"""Questions must be apart from training: what an organism was trained on says nothing of what it generalised to."""

from condmis_interp.errors import UserError
from condmis_interp.organisms import Recipe
from condmis_interp.panel import Panel


def check_apart(panel: Panel, recipe: Recipe) -> None:
    """Checks that an organism is not trained on what a panel asks.

    Args:
        panel: What is asked.
        recipe: What is trained.

    Raises:
        UserError: naming a row that ends in a question of the panel, or whose answer (of more than three words) is one
            of the panel's.
    """
    asked = {_plain(q.question): q.id for q in panel.questions}
    answers = {_plain(a): q.id for q in panel.questions for p in q.pairs for a in (p.aligned, p.misaligned)}
    for row in recipe.rows():
        said, answered = _plain(row.row.messages[-1][1]), _plain(row.answer)
        if said in asked or (answered in answers and len(answered.split()) > 3):
            hit = asked.get(said) or answers[answered]
            raise UserError(
                f"row {row.row.id!r} trains on what question {hit!r} of the panel asks",
                where=f"organism {recipe.name}, panel {panel.name}",
                fix="Questions must be apart from training: leave the row or the question out.",
            )


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
