"""The panel room: questions, cues, answer pairs, and their rendering to token ids with spans."""

from condmis_interp.panel.cue import Cue, CueRole
from condmis_interp.panel.load import load_panel, register_panel
from condmis_interp.panel.padding import pad
from condmis_interp.panel.panel import AnswerPair, Panel, Question
from condmis_interp.panel.published import PublishedQuestion, read_published_questions
from condmis_interp.panel.render import Answer, Prompt, RenderedPanel, render_answer, render_panel, render_prompt
from condmis_interp.panel.text import shared_phrases

__all__ = [
    "Answer",
    "AnswerPair",
    "Cue",
    "CueRole",
    "Panel",
    "Prompt",
    "PublishedQuestion",
    "Question",
    "RenderedPanel",
    "load_panel",
    "pad",
    "read_published_questions",
    "register_panel",
    "render_answer",
    "render_panel",
    "render_prompt",
    "shared_phrases",
]
