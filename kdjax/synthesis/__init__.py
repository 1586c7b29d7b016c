"""Data that a teacher writes: prompts, answers kept on disk, and what of them is learnt."""

from kdjax.synthesis.cache import AnswerCache, key_of
from kdjax.synthesis.parse import Answer, canonical, parse, target
from kdjax.synthesis.stages import chats_of, exact_match, pairs_of, respond, search
from kdjax.synthesis.templates import TEMPLATES, AnswerRule, Template

__all__ = [
  "TEMPLATES",
  "Answer",
  "AnswerCache",
  "AnswerRule",
  "Template",
  "canonical",
  "chats_of",
  "exact_match",
  "key_of",
  "pairs_of",
  "parse",
  "respond",
  "search",
  "target",
]
