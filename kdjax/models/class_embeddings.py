"""Classifying an image by the class whose embedding is nearest to its own."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from kdjax.losses._common import unit
from kdjax.models.base import Batch, Model, ModelVars
from kdjax.outputs import Head, Outputs

OWN = frozenset({"logits", "hidden", "head", "embedding"})


def outputs_of(
  out: Outputs,
  embedding: Float[Array, "batch width"] | None,
  classes: Float[Array, "class width"] | None,
  scale: Float[Array, ""] | float,
  taps: frozenset[str],
) -> Outputs:
  """`out` with the taps of `OWN`: logits are `scale` times the cosines of images and classes.

  Args:
    out: of the image model.
    embedding: of the images; None where no tap but "head" wants it.
    classes: of length 1; None where neither logits nor head are wanted.
    scale: factor of the cosines.
    taps: what was asked for.
  """
  given: dict[str, Any] = dict.fromkeys(OWN)
  head = None if classes is None else Head(classes, tied=True)
  if "head" in taps:
    given["head"] = head
  if embedding is not None:
    hidden = unit(embedding) * scale
    made = {"embedding": embedding.astype(jnp.float32), "hidden": hidden}
    if head is not None:
      made["logits"] = head.logits(hidden)
    given |= {tap: made[tap] for tap in taps & made.keys()}
  return dataclasses.replace(out, **given)


def settled_on(image: Model, num_classes: int) -> Model:
  """An image model with class embeddings that are given: what a frozen dual encoder comes to.

  Args:
    image: whose logits are the image's embedding [B, D].
    num_classes: V.

  Returns:
    A model with params {"image": ..., "classes": [V, D] of length 1, "logit_scale": []}.
  """

  def init(rng: jax.Array) -> ModelVars:
    inner = image.init(rng)
    classes = jnp.zeros((num_classes, image.num_classes))
    params = {"image": inner.params, "classes": classes, "logit_scale": jnp.float32(0)}
    return ModelVars(params, inner.state)

  def apply(
    variables: ModelVars,
    batch: Batch,
    *,
    taps: frozenset[str] = frozenset({"logits"}),
    train: bool = False,
    rng: jax.Array | None = None,
  ) -> tuple[Outputs, Any]:
    params = variables.params
    inside = taps - OWN | ({"logits"} if taps & (OWN - {"head"}) else set())
    below = ModelVars(params["image"], variables.state)
    out, state = image.apply(below, batch, taps=frozenset(inside), train=train, rng=rng)
    scale = jnp.exp(params["logit_scale"].astype(jnp.float32))
    return outputs_of(out, out.logits, params["classes"], scale, taps), state

  def axes() -> ModelVars:
    below = image.axes()
    own = {"classes": PartitionSpec("vocab", "embed"), "logit_scale": PartitionSpec()}
    return ModelVars({"image": below.params} | own, below.state)

  return Model(init=init, apply=apply, axes=axes, taps=image.taps | OWN, num_classes=num_classes)
