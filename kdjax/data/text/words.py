"""Words as spans: which tokens begin and end inside a word, read off the vocabulary alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdjax.data.text.warping import spelled
from kdjax.data.tokenizers import vocab_size

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerFast


def word_pieces(
  tokenizer: PreTrainedTokenizerFast,
) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
  """(begins, ends) by id: whether a token's first and last character are those of a word.

  Words are runs of letters, digits and underscores, so that an identifier is one. A token goes on
  with the word of the token before it where that one ends and this one begins with such a
  character. A token that is no text (an end of text) is in no word. The bytes of characters outside
  ASCII, in vocabularies of bytes, count as what stands for them, which is a letter for most.
  """
  special = set(tokenizer.all_special_ids)
  begins, ends = [], []
  for index, token in enumerate(
    tokenizer.convert_ids_to_tokens(list(range(vocab_size(tokenizer))))
  ):
    text = "" if token is None or index in special else spelled(token)
    begins.append(bool(text) and _of_word(text[0]))
    ends.append(bool(text) and _of_word(text[-1]))
  return tuple(begins), tuple(ends)


def _of_word(character: str) -> bool:
  return character.isalnum() or character == "_"
