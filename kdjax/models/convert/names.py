"""Other names that a family's tensors go by: those of old files, and of models without a head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from kdjax.errors import KdjaxError

T = TypeVar("T")


class Aliases(NamedTuple):
  """How a family's other names become those of `mapping.py`.

  Attributes:
    prefix: of the body's tensors in a model with a head.
    body: how their names begin after it.
    head: a tensor that tells that there is a head; where it is absent the prefix is left out. None:
      the prefix is always there.
    endings: ends of names, old to new.
  """

  prefix: str
  body: tuple[str, ...]
  head: str | None = None
  endings: Mapping[str, str] = {}


_ENCODER = ("embeddings.", "encoder.", "pooler.")
# Files converted from TensorFlow keep its names of a norm's scale and shift.
_TENSORFLOW = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_LLAMA = Aliases("model.", ("embed_tokens.", "layers.", "norm."))

ALIASES: dict[str, Aliases] = {
  **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"), _LLAMA),
  "gpt2": Aliases("transformer.", ("wte.", "wpe.", "h.", "ln_f.")),
  "gpt_neox": Aliases("gpt_neox.", ("embed_in.", "layers.", "final_layer_norm.")),
  "bert": Aliases("bert.", _ENCODER, "cls.predictions.bias", _TENSORFLOW),
  "roberta": Aliases("roberta.", _ENCODER, "lm_head.bias", _TENSORFLOW),
  "distilbert": Aliases(
    "distilbert.", ("embeddings.", "transformer."), "vocab_projector.bias", _TENSORFLOW
  ),
}


def canonical(family: Any, tensors: Mapping[str, T]) -> dict[str, T]:
  """The tensors under the names that `mapping.py` has for them; names it does not have stay.

  Raises:
    KdjaxError: two of them are one tensor's.
  """
  aliases = ALIASES.get(family)
  if aliases is None:
    return dict(tensors)
  prefixed = aliases.head is None or aliases.head in tensors
  out: dict[str, T] = {}
  first: dict[str, str] = {}
  for name, tensor in tensors.items():
    own = _canonical(aliases, name, prefixed)
    if own in out:
      raise KdjaxError(f"{first[own]} and {name} are two names of one tensor; remove one of them")
    out[own], first[own] = tensor, name
  return out


def _canonical(aliases: Aliases, name: str, prefixed: bool) -> str:
  for old, new in aliases.endings.items():
    if name.endswith(old):
      name = name.removesuffix(old) + new
  bare = name.removeprefix(aliases.prefix)
  if not bare.startswith(aliases.body):
    return name
  return aliases.prefix + bare if prefixed else bare
