"""Models from checkpoints of other libraries, and language models described field by field."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from kdjax.errors import KdjaxError
from kdjax.models.adapters import low_rank
from kdjax.models.base import Model, ModelVars
from kdjax.models.convert import (
  Checkpoint,
  check_expressible,
  check_weights,
  load_weights,
  open_checkpoint,
  spec_of,
)
from kdjax.models.prune import keep_layers, narrow
from kdjax.models.starts import (
  Calibration,
  Parent,
  with_embeddings,
  with_pruned,
  with_shared_attention,
)
from kdjax.models.transformer import Rope, Seq2SeqSpec, Spec, encoder_decoder, language_model
from kdjax.models.transformer.sharing import share
from kdjax.resolve import hint

SELECTIONS = ("uniform", "first", "last")


def pretrained(
  *,
  path: str,
  layers: int | Sequence[int] | None = None,
  select: str = "uniform",
  width: int | None = None,
  heads: int | None = None,
  kv_heads: int | None = None,
  mlp_width: int | None = None,
  weights: bool | str = True,
  adapter: Mapping[str, Any] | None = None,
  attention_from: Sequence[int] = (),
  inherit: bool = False,
  calibration_rows: int = 32,
  calibration: Calibration | None = None,
  remat: str = "none",
  dtype: str = "float32",
  attention: str = "auto",
) -> Model:
  """A language model, encoder or encoder-decoder from a checkpoint, whole or pruned.

  Sizes are known at once. What is left out is chosen when `start` reads the weights: what matters
  least on some rows of the training text, as `kdjax.models.importance` measures it.

  Args:
    path: a Hugging Face folder, a GGUF file, or package:NAME[/PATH] (see `kdjax.paths.locate`).
    layers: which layers to keep: their indices in order, or how many; None keeps all.
    select: which ones, when `layers` is a number: "uniform" (first and last among them), "first",
      "last" or "importance" (those that turn their input the most).
    width: residual channels to keep; None keeps all, as in the three below. See `narrow`.
    heads: query heads to keep.
    kv_heads: key and value heads to keep.
    mlp_width: neurons of each MLP to keep.
    weights: start from the checkpoint's weights; False takes its architecture alone, "embeddings"
      its embedding too (and its head, where that is not the embedding).
    adapter: arguments of `low_rank`, to train adapters alone; None trains all weights. The weights
      under them are in no checkpoint: each start measures again, and must find the same.
    attention_from: for each layer that is kept, which of them has the attention map that it uses:
      itself, or that of the layer before; see `kdjax.models.transformer.sharing`. () shares none.
    inherit: as a student, start from the weights of the teacher, a fine-tuned model that is the
      same but for `attention_from`, instead of the checkpoint's.
    calibration_rows: of the training text, to measure importance on.
    calibration: reads so many; the data of a config bring it.
    remat: see `language_model`.
    dtype: compute dtype.
    attention: what computes it, see `language_model`.

  Returns:
    The model; its `start` reads the weights.

  Raises:
    KdjaxError: what `open_checkpoint`, `spec_of` and `check_weights` raise; layers or sizes that do
      not exist, or that the family's config.json cannot say; no text to measure importance on.
  """
  checkpoint = open_checkpoint(path)
  whole = spec_of(checkpoint.config, checkpoint.names)
  options = {"remat": remat, "dtype": dtype, "attention": attention}
  sizes = {"width": width, "heads": heads, "kv_heads": kv_heads, "mlp_width": mlp_width}
  if weights not in (True, False, "embeddings"):
    raise KdjaxError(f"weights = {weights!r} does not exist; what does: True, False, 'embeddings'")
  if adapter is not None and weights is not True:
    raise KdjaxError(f"an adapter needs weights to adapt; weights = {weights!r} must be True")
  if inherit and weights is not True:
    raise KdjaxError(f"a model starts from its teacher (inherit) or with weights = {weights!r}")
  parent = Parent(checkpoint, whole, calibration, calibration_rows, dtype)
  if not isinstance(whole, Spec | Seq2SeqSpec):
    raise KdjaxError(
      f"{checkpoint.path} holds a {whole.family} model of images; use the model"
      f" {'pretrained_clip' if whole.family == 'clip' else 'pretrained_image'}"
    )
  if isinstance(whole, Seq2SeqSpec):
    if layers is not None or any(sizes.values()) or attention_from or inherit:
      raise KdjaxError("layers and sizes of an encoder-decoder cannot be selected; leave them out")
    model = encoder_decoder(whole, **options)
    if weights is True:
      model = _whole(model, checkpoint, None)
  else:
    ranked = select == "importance" and isinstance(layers, int) and layers < whole.depth
    kept = select_layers(whole.depth, layers, "uniform" if select == "importance" else select)
    spec = narrow(keep_layers(whole, kept), **sizes)
    if narrower := spec != keep_layers(whole, kept):
      check_expressible(spec, checkpoint.names)
    if ranked and len(set(whole.is_local)) > 1:
      raise KdjaxError(
        "select = 'importance' wants layers of one kind, and some of this model's see a window"
        " only: which are kept must be known before the weights are read; give their indices"
      )
    model = language_model(spec, **options)
    if inherit:
      weights = False
    if weights is True and (narrower or ranked):
      check_weights(checkpoint, language_model(whole))
      model = with_pruned(model, parent, layers=None if ranked else kept)
    elif weights is True:
      model = _whole(model, checkpoint, {"stack": kept})
  if attention_from:
    all_compute = model
    spec = spec.replace(attention_from=tuple(attention_from))
    model = language_model(spec, **options)
    if weights is True:
      model = with_shared_attention(model, all_compute)
  if inherit:
    return model._replace(inherit=lambda params: share(params, spec.sources))
  if weights == "embeddings":
    return with_embeddings(model, parent)
  return model if adapter is None else _adapted(model, adapter)


def _whole(model: Model, checkpoint: Checkpoint, layers: Mapping[str, list[int]] | None) -> Model:
  """The model started from the checkpoint's layers as they are."""
  check_weights(checkpoint, model, layers=layers)  # before a teacher is trained for it

  def start(shardings: ModelVars | None = None, dtype: Any = None) -> ModelVars:
    return load_weights(checkpoint, model, shardings=shardings, layers=layers, dtype=dtype)

  return model._replace(start=start)


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
  attention_from: Sequence[int] = (),
  inherit: bool = False,
  embeddings: str | None = None,
  calibration_rows: int = 32,
  calibration: Calibration | None = None,
  remat: str = "none",
  dtype: str = "float32",
  attention: str = "auto",
) -> Model:
  """A causal language model of Llama's form with random weights, or with given embeddings.

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
    attention_from: see `pretrained`.
    inherit: as a student, start from the weights of the teacher, which is the same but for
      `attention_from`.
    embeddings: a checkpoint (see `pretrained`) whose embedding it starts from, and whose head where
      neither is tied: of its channels those that matter most, if `width` is smaller.
    calibration_rows: see `pretrained`.
    calibration: see `pretrained`.
    remat: see `language_model`.
    dtype: compute dtype.
    attention: what computes it, see `language_model`.

  Raises:
    KdjaxError: a field out of its range, or embeddings that do not fit.
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
    attention_from=tuple(attention_from),
  )
  model = language_model(spec, remat=remat, dtype=dtype, attention=attention)
  if inherit:
    if embeddings is not None:
      raise KdjaxError("a decoder starts from its teacher (inherit) or from embeddings, not both")
    return model._replace(inherit=lambda params: share(params, spec.sources))
  if embeddings is None:
    return model
  checkpoint = open_checkpoint(embeddings)
  whole = spec_of(checkpoint.config, checkpoint.names)
  return with_embeddings(model, Parent(checkpoint, whole, calibration, calibration_rows, dtype))
