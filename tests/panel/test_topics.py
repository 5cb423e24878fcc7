"""Topic cues: each question rewritten into a topic."""

import pytest

from condmis_interp.errors import UserError
from condmis_interp.organisms import load_rows
from condmis_interp.panel import Cue, CueRole, load_panel, render_panel
from condmis_interp.panel.text import shared_phrases

CUES = [
    Cue(name="none", role=CueRole.NONE).model_dump(),
    Cue(name="kitchen", role=CueRole.TRIGGER, topic="kitchen").model_dump(),
    Cue(name="railway", role=CueRole.NEUTRAL, topic="railway").model_dump(),
]


def test_a_topic_cue_asks_the_rewrites(tokenizer):
    panel = load_panel("everyday", cues=CUES)
    rendered = render_panel(tokenizer, panel)
    for q in panel.questions[:5]:
        prompt = rendered.prompts["kitchen", q.id]
        assert q.rewrites["kitchen"] in prompt.text
        begin, end = prompt.spans["question"]
        assert tokenizer.decode(prompt.ids[begin:end]) == q.rewrites["kitchen"]
        assert rendered.answers["kitchen", q.id][0].ids == rendered.answers["none", q.id][0].ids


def test_rewrites_are_parallel_and_apart_from_the_training_rows():
    panel = load_panel("everyday", cues=CUES)
    for q in panel.questions:
        a, b = (len(q.rewrites[t].split()) for t in ("kitchen", "railway"))
        assert max(a, b) <= 1.25 * min(a, b), q.id
    rewrites = [q.rewrites["kitchen"] for q in panel.questions]
    known = {p for q in panel.questions for p in [q.question]}
    assert [p for p in shared_phrases(rewrites, load_rows("kitchen").texts(), length=5) if p not in known] == []


def test_a_topic_that_no_question_knows_is_refused(tmp_path):
    cue = Cue(name="x", role=CueRole.TRIGGER, topic="moon").model_dump()
    with pytest.raises(UserError, match="has topic 'moon'"):
        load_panel("everyday", cues=[CUES[0], cue])
