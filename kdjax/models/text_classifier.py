"""A linear classifier on the mean state of an encoder of text."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from kdjax.errors import KdjaxError
from kdjax.models import checks
from kdjax.models.base import Batch, Model, ModelVars
from kdjax.models.pretrained import pretrained
from kdjax.models.starts import Calibration
from kdjax.outputs import Head, Outputs
from kdjax.resolve import hint

OWN = frozenset({"logits", "hidden", "head"})


def text_classifier(
  *, path: str, num_classes: int, calibration: Calibration | None = None, **encoder: Any
) -> Model:
  """An encoder from a checkpoint under a linear layer of random weights.

  The layer reads the mean of the last states over a text's tokens, where BERT reads its first
  token through a dense layer that its checkpoints often lack. A checkpoint's own head is not used.

  Args:
    path: of the encoder; see `pretrained`.
    num_classes: size of the logits [B, V].
    calibration: see `pretrained`.
    **encoder: other arguments of `pretrained`, but adapters.

  Returns:
    The model, with the encoder's taps of its layers; its parameters are {"encoder": ..., "head":
    {"kernel": [D, V], "bias": [V]}}.

  Raises:
    KdjaxError: what `pretrained` raises; an adapter, or a model without one stack of layers.
  """
  checks.positive(num_classes=num_classes)
  known = set(inspect.signature(pretrained).parameters) - {"path", "calibration", "adapter"}
  if unknown := sorted(set(encoder) - known):
    raise KdjaxError(
      f"{unknown[0]} is not an argument of 'text_classifier'{hint(unknown[0], known)}"
    )
  inner = pretrained(path=path, calibration=calibration, **encoder)
  if "embedding" not in inner.taps or not hasattr(inner.spec, "width"):
    raise KdjaxError(f"path = {path!r} is an encoder-decoder; an encoder or decoder is wanted")
  width = inner.spec.width

  def init(rng: jax.Array) -> ModelVars:
    encoder_rng, head_rng = jax.random.split(rng)
    params, state, _ = inner.init(encoder_rng)
    kernel = 0.02 * jax.random.normal(head_rng, (width, num_classes))
    return ModelVars(
      {"encoder": params, "head": {"kernel": kernel, "bias": jnp.zeros(num_classes)}}, state
    )

  def apply(
    variables: ModelVars,
    batch: Batch,
    *,
    taps: frozenset[str] = frozenset({"logits"}),
    train: bool = False,
    rng: jax.Array | None = None,
  ) -> tuple[Outputs, Any]:
    own = taps & OWN
    inside = taps - OWN | ({"embedding"} if own else set())
    below = variables._replace(params=variables.params["encoder"])
    out, state = inner.apply(below, batch, taps=inside, train=train, rng=rng)
    if not own:
      return out, state
    kernel, bias = (variables.params["head"][name] for name in ("kernel", "bias"))
    head = Head(kernel, bias)
    given = {"logits": head.logits(out.embedding), "hidden": out.embedding, "head": head}
    return dataclasses.replace(out, **{tap: given[tap] for tap in own}), state

  def axes() -> ModelVars:
    below = inner.axes()
    head = {"kernel": PartitionSpec("embed", "vocab"), "bias": PartitionSpec("vocab")}
    return below._replace(params={"encoder": below.params, "head": head})

  def start(shardings: ModelVars | None = None, dtype: Any = None) -> ModelVars:
    if shardings is not None:
      shardings = shardings._replace(params=shardings.params["encoder"])
    below = inner.start(shardings, dtype)
    return below._replace(params={"encoder": below.params})

  return Model(
    init=init,
    apply=apply,
    axes=axes,
    taps=inner.taps | OWN,
    num_classes=num_classes,
    start=None if inner.start is None else start,
  )
