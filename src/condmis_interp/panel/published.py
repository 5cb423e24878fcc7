"""Reader for the question files that the emergent-misalignment papers published.

Such a file is a YAML list of entries with `id`, `type`, `paraphrases`, optional `system`, and judge prompts. These
questions have no answer pairs: they are for sampled answers and a judge, not for LD.
"""

from dataclasses import dataclass
from pathlib import Path

from condmis_interp.calls import checked
from condmis_interp.errors import UserError
from condmis_interp.files import read_yaml


@dataclass(frozen=True)
class PublishedQuestion:
    """One entry of a published question file.

    Attributes:
        id: Name of the entry.
        paraphrases: The wordings; one is drawn for each sample.
        system: System prompt, if the entry has one.
        samples_per_paraphrase: How many answers the authors sampled for each wording.
        judge_prompts: Judge templates by metric, with `{question}` and `{answer}` slots.

    Example:
        >>> PublishedQuestion("hi", ("Hello?", "Hi?"), None, 10, judge_prompts={}).paraphrases
        ('Hello?', 'Hi?')
    """

    id: str
    paraphrases: tuple[str, ...]
    system: str | None
    samples_per_paraphrase: int
    judge_prompts: dict[str, str]


@checked
def read_published_questions(path: str | Path) -> list[PublishedQuestion]:
    """Reads a published question file (`first_plot_questions.yaml`, `preregistered_evals.yaml`).

    Raises:
        UserError: if the file is missing, is not a list of entries, an entry lacks `id` or `paraphrases`, a system
            prompt is no text, or an id repeats.

    Example:
        >>> Path("questions.yaml").write_text('[{"id": "hi", "paraphrases": ["Hello there?", "Hi?"]}]')
        54
        >>> [q.id for q in read_published_questions("questions.yaml")]
        ['hi']
    """
    path = Path(path)
    entries = read_yaml(path)
    if not isinstance(entries, list):
        raise UserError("a published question file is a list of entries", where=str(path))
    questions: list[PublishedQuestion] = []
    for i, entry in enumerate(entries):
        where = f"{path}, entry {i}"
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
            raise UserError("the entry has no text 'id'", where=where)
        wordings = entry.get("paraphrases")
        if (
            not isinstance(wordings, list)
            or not wordings
            or not all(isinstance(w, str) and w.strip() for w in wordings)
        ):
            raise UserError(
                f"{entry['id']!r} has no 'paraphrases'", where=where, fix="Give a list of at least one text."
            )
        if not isinstance(entry.get("system"), str | None):
            raise UserError(f"the 'system' of {entry['id']!r} is no text", where=where)
        questions.append(
            PublishedQuestion(
                id=entry["id"],
                paraphrases=tuple(wordings),
                system=entry.get("system"),
                samples_per_paraphrase=int(entry.get("samples_per_paraphrase", 1)),
                judge_prompts=dict(entry.get("judge_prompts") or {}),
            )
        )
    ids = [q.id for q in questions]
    if twice := sorted({i for i in ids if ids.count(i) > 1}):
        raise UserError(f"id {twice[0]!r} occurs twice", where=str(path))
    return questions
