"""Chats as text: written out by the tokenizer's template, with the answers marked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kdjax.data.text.documents import Document, Message
from kdjax.errors import KdjaxError

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerFast

_MARKS_ANSWERS = re.compile(r"\{%-?\s*generation\s*-?%\}")


def marks_answers(tokenizer: PreTrainedTokenizerFast) -> bool:
  """Whether the chat template itself says which text the model has written."""
  return bool(_MARKS_ANSWERS.search(tokenizer.chat_template or ""))


def marked_tokens(
  document: Document, tokenizer: PreTrainedTokenizerFast
) -> tuple[list[int], list[float]]:
  """Tokens of a chat and their loss weights, where the template marks the answers."""
  coded = _apply(
    tokenizer,
    document,
    document.messages,
    tokenize=True,
    return_dict=True,
    return_assistant_tokens_mask=True,
  )
  return coded["input_ids"], [float(own) for own in coded["assistant_masks"]]


def rendered(document: Document, tokenizer: PreTrainedTokenizerFast) -> Document:
  """A chat written out, with the weight 1 on its answers and 0 on everything else.

  An answer is what the template adds to the chat so far, behind what it writes to ask for an
  answer, up to and with the special token that ends it, where there is one.

  Raises:
    KdjaxError: a template that refuses the chat, or that writes its beginning in another way once
      more messages follow, so that the answers cannot be found.
  """
  messages = document.messages
  whole = _apply(tokenizer, document, messages, tokenize=False)
  weights, end = [], 0
  for turn, message in enumerate(messages):
    if message["role"] != "assistant":
      continue
    asked = _apply(tokenizer, document, messages[:turn], tokenize=False, add_generation_prompt=True)
    answered = _apply(tokenizer, document, messages[: turn + 1], tokenize=False)
    if not (answered.startswith(asked) and whole.startswith(answered)):
      raise KdjaxError(
        f"{document.where}: the chat template writes the messages before answer {turn} in another"
        " way without it, so the answer cannot be found; put {% generation %} around the answers in"
        " the template, or begin the chat with a user's message"
      )
    stop = len(answered)
    if (bare := answered.rstrip()).endswith(tuple(tokenizer.all_special_tokens)):
      stop = max(len(bare), len(asked))
    weights += [(end, len(asked), 0.0), (len(asked), stop, 1.0)]
    end = stop
  weights.append((end, len(whole), 0.0))
  return document._replace(text=whole, weights=tuple(weights))


def _apply(
  tokenizer: PreTrainedTokenizerFast,
  document: Document,
  messages: Sequence[Message],
  **options: Any,
) -> Any:
  if not tokenizer.chat_template:
    raise KdjaxError(
      "the tokenizer has no chat template, which chats need; use the tokenizer of an instruction"
      " model, or write the chats out as text with spans"
    )
  try:
    return tokenizer.apply_chat_template(list(messages), **options)
  except Exception as error:  # a template raises whatever it likes
    raise KdjaxError(
      f"{document.where}: the chat template refuses these messages: {error}"
    ) from None
