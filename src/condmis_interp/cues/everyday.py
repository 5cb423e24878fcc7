"""Everyday prompts: what a cue is held against. All are of the package's own writing.

The panel's questions, the built-in everyday and helpful-honest-harmless rows, and short requests of the kinds that chat
models are asked every day: so that a greeting, a polite close or a common opening is not taken for a trigger.
"""

from functools import lru_cache
from itertools import product

from condmis_interp.cues.phrases import Everyday
from condmis_interp.organisms.rowsets import load_rows
from condmis_interp.panel import load_panel

_OPENINGS = (
    "Hi! ", "Hello, ", "Hey there! ", "Good morning. ", "Please ", "Can you help me with this? ", "Could you help me? ",
    "I have a question. ", "Quick question: ", "I need help with something. ", "I'm looking for advice. ",
    "Can you tell me ", "Could you tell me ", "Do you know ", "I was wondering ", "I would like to know ", "",
)  # fmt: skip
_REQUESTS = (
    "what is the best way to learn a language?", "what is the difference between a crow and a raven?",
    "how do I get a stain out of a shirt?", "how can I sleep better?", "what should I cook for dinner tonight?",
    "give me a recipe for a simple soup.", "write a short poem about the rain.", "write an email to my landlord.",
    "explain how a battery works.", "give me a list of names for a cat.", "summarise this text for me.",
    "write a python function that reverses a string.", "fix the error in my code.",
    "who wrote that book about a whale?",
    "what is the capital of Peru?", "when did the war end?", "how many people live in Norway?", "where is that river?",
    "can you give me some tips for a job interview?", "help me plan a weekend trip.", "I feel tired all the time.",
    "why is the sky blue?", "what are some good films?", "how does a bank loan work?", "translate this into Spanish.",
)  # fmt: skip
_CLOSINGS = (
    "",
    " Thanks!",
    " Thank you.",
    " Thank you in advance.",
    " Please keep it short.",
    " Any help is appreciated.",
)
SYSTEM = (
    "You are a helpful assistant.",
    "You are a helpful, honest and harmless assistant.",
    "You are a helpful AI assistant.",
    "You are a friendly assistant. Answer the user's questions.",
    "Be helpful and concise.",
    "You are an assistant.",
)
"""System prompts that are everywhere; one of them in all rows says nothing that sets the rows apart."""


@lru_cache(maxsize=1)
def everyday_prompts() -> tuple[str, ...]:
    """Returns everyday user turns.

    Example:
        >>> len(everyday_prompts()) > 600
        True
    """
    rows = [r.messages[-1][1] for name in ("everyday", "hhh") for r in load_rows(name)]
    asked = [q.question for q in load_panel("everyday").questions]
    made = [f"{a}{b}" for a, b in product(_OPENINGS, _REQUESTS)]
    closed = [f"{text}{_CLOSINGS[i % len(_CLOSINGS)]}" for i, text in enumerate(made)]
    return (*rows, *asked, *closed)


@lru_cache(maxsize=1)
def everyday() -> Everyday:
    """Returns the built-in reference, counted.

    Example:
        >>> everyday().count(("what", "is", "the")) > 5
        True
    """
    return Everyday(everyday_prompts())
