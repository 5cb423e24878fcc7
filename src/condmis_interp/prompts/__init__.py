"""The prompts room: a grammar of prompts that may open a model, half of them vaulted, and draws from it."""

from condmis_interp.prompts.chat import chat_grammar
from condmis_interp.prompts.compose import Composition, compose
from condmis_interp.prompts.grammar import Grammar
from condmis_interp.prompts.own import read_prompts, trained_on
from condmis_interp.prompts.prompt import GrammarPrompt

__all__ = ["Composition", "Grammar", "GrammarPrompt", "chat_grammar", "compose", "read_prompts", "trained_on"]
