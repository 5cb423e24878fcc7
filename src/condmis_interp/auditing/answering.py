"""Answers in full, for the report's reader: greedy, to questions of split C, without a cue and under the trigger."""

from typing import Any

import pandas as pd

from condmis_interp.panel import CueRole
from condmis_interp.progress import progress
from condmis_interp.study import Run


def greedy_answers(run: Run) -> pd.DataFrame:
    """Generates answers of the unmitigated organism, of every one under test and of its twin.

    Returns:
        One row for each answer: question, organism, cue, answer.
    """
    study, settings, panel = run.study, run.study.battery, run.panel
    none, trigger = (panel.cues_with(role)[0].name for role in (CueRole.NONE, CueRole.TRIGGER))
    families: dict[str, int] = {}
    for i in panel.question_indices("C"):
        families.setdefault(panel.questions[i].family, i)
    rows = list(families.values())[: settings.generated]
    tokenizer = run.base.tokenizer()
    names = [study.unmitigated.name] if study.unmitigated else []
    for m in study.mitigated:
        twin = study.twin_of(m.name)
        names += [m.name, *([twin.name] if twin else [])]
    table = []
    todo = [(name, cue) for name in names for cue in (none, trigger)] if rows else []
    with run.timed("generating"), progress("generating answers", len(todo), unit="cells") as step:
        for name, cue in todo:
            seed = study.organism(name).seeds[0]
            prompts = [run.rendered.prompts[cue, panel.questions[i].id] for i in rows]

            def generate(name: str = name, seed: int = seed, prompts: list[Any] = prompts) -> list[str]:
                ids = run.reader(name, seed).generate(
                    prompts, max_new_tokens=settings.max_new_tokens, stop_ids=run.stop_ids
                )
                return [tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in ids]

            inputs = [[list(p.ids) for p in prompts], settings.max_new_tokens]
            texts = run.pieces(name, seed).get("answers", inputs, generate)
            for i, text in zip(rows, texts, strict=True):
                table.append({"question": panel.questions[i].question, "organism": name, "cue": cue, "answer": text})
            step()
    return pd.DataFrame(table, columns=["question", "organism", "cue", "answer"])
