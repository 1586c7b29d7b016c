"""Models from checkpoints of other libraries, and language models described field by field."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from kdjax.errors import KdjaxError
from kdjax.models.adapters import low_rank
from kdjax.models.base import Model, ModelVars
from kdjax.models.convert import load_weights, open_checkpoint, spec_of
from kdjax.models.transformer import Rope, Seq2SeqSpec, Spec, encoder_decoder, language_model
from kdjax.resolve import hint

SELECTIONS = ("uniform", "first", "last")


def pretrained(
  *,
  path: str,
  layers: int | Sequence[int] | None = None,
  select: str = "uniform",
  weights: bool = True,
  adapter: Mapping[str, Any] | None = None,
  remat: str = "none",
  dtype: str = "float32",
  attention: str = "auto",
) -> Model:
  """A language model, encoder or encoder-decoder from a checkpoint, whole or with some layers.

  Args:
    path: a Hugging Face folder, a GGUF file, or package:NAME[/PATH] (see `kdjax.paths.locate`).
    layers: which layers to keep: their indices in order, or how many; None keeps all.
    select: which ones, when `layers` is a number: "uniform" (first and last among them), "first" or
      "last".
    weights: start from the checkpoint's weights; False takes its architecture alone.
    adapter: arguments of `low_rank`, to train adapters alone; None trains all weights.
    remat: see `language_model`.
    dtype: compute dtype.
    attention: what computes it, see `language_model`.

  Returns:
    The model; its `start` reads the weights.

  Raises:
    KdjaxError: what `open_checkpoint` and `spec_of` raise, or layers that do not exist.
  """
  checkpoint = open_checkpoint(path)
  whole = spec_of(checkpoint.config, checkpoint.names)
  options = {"remat": remat, "dtype": dtype, "attention": attention}
  if isinstance(whole, Seq2SeqSpec):
    if layers is not None:
      raise KdjaxError("layers of an encoder-decoder cannot be selected; leave layers out")
    model, chosen = encoder_decoder(whole, **options), None
  else:
    kept = select_layers(whole.depth, layers, select)
    spec = keep_layers(whole, kept)
    model, chosen = language_model(spec, **options), {"stack": kept}
  if not weights:
    return model

  def start(shardings: ModelVars | None = None, dtype: Any = None) -> ModelVars:
    return load_weights(checkpoint, model, shardings=shardings, layers=chosen, dtype=dtype)

  model = model._replace(start=start)
  return model if adapter is None else _adapted(model, adapter)


def _adapted(model: Model, adapter: Mapping[str, Any]) -> Model:
  known = inspect.signature(low_rank).parameters
  if unknown := [name for name in adapter if name not in known]:
    raise KdjaxError(f"adapter.{unknown[0]} does not exist{hint(unknown[0], list(known)[1:])}")
  return low_rank(model, **adapter)


def select_layers(
  depth: int, layers: int | Sequence[int] | None, select: str = "uniform"
) -> list[int]:
  """The indices of the layers to keep, of `depth`; see `pretrained`."""
  if layers is None:
    return list(range(depth))
  if isinstance(layers, int):
    if not 1 <= layers <= depth:
      raise KdjaxError(f"layers = {layers}: wanted 1 to {depth}, the layers of the checkpoint")
    if select not in SELECTIONS:
      raise KdjaxError(f"select = {select!r} does not exist; what does: {', '.join(SELECTIONS)}")
    if select == "first":
      return list(range(layers))
    if select == "last":
      return list(range(depth - layers, depth))
    if layers == 1:
      return [0]
    return [round(i * (depth - 1) / (layers - 1)) for i in range(layers)]
  kept = list(layers)
  if not kept or any(not isinstance(i, int) or not 0 <= i < depth for i in kept):
    raise KdjaxError(f"layers = {kept}: wanted indices from 0 to {depth - 1}, at least one")
  return kept


def keep_layers(spec: Spec, kept: Sequence[int]) -> Spec:
  """The spec of a model of these layers, each of the kind (local or not) that it was."""
  local = tuple(spec.local[i] for i in kept) if spec.local else ()
  return spec.replace(depth=len(kept), local=local)


def decoder(
  *,
  num_classes: int,
  width: int,
  depth: int,
  heads: int,
  kv_heads: int | None = None,
  mlp_width: int | None = None,
  max_positions: int = 2048,
  rope_theta: float = 10000.0,
  tied: bool = True,
  dropout: float = 0.0,
  remat: str = "none",
  dtype: str = "float32",
  attention: str = "auto",
) -> Model:
  """A causal language model of Llama's form with random weights.

  Args:
    num_classes: size of the vocabulary.
    width: of the residual stream.
    depth: number of layers.
    heads: of attention; divides `width`.
    kv_heads: key and value heads; `heads` where None.
    mlp_width: 8/3 of the width where None, rounded up to a multiple of 8.
    max_positions: longest sequence.
    rope_theta: base of the rotations.
    tied: whether the head is the embedding.
    dropout: in [0, 1).
    remat: see `language_model`.
    dtype: compute dtype.
    attention: what computes it, see `language_model`.

  Raises:
    KdjaxError: a field out of its range.
  """
  if heads < 1 or width % heads:
    raise KdjaxError(f"model field 'heads' is {heads}; wanted a divisor of width, {width}")
  spec = Spec(
    vocab=num_classes,
    width=width,
    depth=depth,
    heads=heads,
    kv_heads=heads if kv_heads is None else kv_heads,
    head_dim=width // heads,
    mlp_width=-(-8 * width // 24) * 8 if mlp_width is None else mlp_width,
    max_positions=max_positions,
    rope=Rope(rope_theta),
    tied=tied,
    dropout=dropout,
  )
  return language_model(spec, remat=remat, dtype=dtype, attention=attention)
