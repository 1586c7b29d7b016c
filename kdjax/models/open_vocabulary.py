"""A student of a dual encoder: an image model that classifies by the teacher's class embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from kdjax.errors import KdjaxError
from kdjax.losses._common import unit
from kdjax.models import checks
from kdjax.models.base import Batch, Model, ModelVars, functional
from kdjax.models.class_embeddings import OWN, outputs_of
from kdjax.models.layers import linear, named
from kdjax.outputs import Outputs
from kdjax.resolve import resolve

TRAINED = ("all", "prompts")


class _Projector(nnx.Module):
  """Linear, batch normalisation, ReLU, linear: from the student's embedding to the teacher's."""

  def __init__(self, width: int, out: int, *, rngs: nnx.Rngs):
    self.up = linear(width, out, ("embed", "mlp"), rngs=rngs)
    metadata = {"scale_metadata": named("norm"), "bias_metadata": named("norm")}
    self.norm = nnx.BatchNorm(out, momentum=0.9, rngs=rngs, **metadata)
    self.down = linear(out, out, ("mlp", "embed"), rngs=rngs)

  def __call__(self, features: Float[Array, "batch width"], *, taps, train, rngs) -> Outputs:
    normed = self.norm(self.up(features), use_running_average=not train)
    return Outputs(embedding=self.down(jax.nn.relu(normed)))


def open_vocabulary(
  *,
  image_model: Mapping[str, Any],
  num_classes: int,
  image_shape: tuple[int, int, int],
  embedding: int,
  features: int | None = None,
  temperature: float = 0.01,
  trained: str = "all",
) -> Model:
  """An image model whose embedding is compared with its teacher's embeddings of the classes.

  The classes' embeddings are read from the teacher's head once, when training begins. They are
  among the parameters, so that checkpoints hold what inference needs, and never change.

  Args:
    image_model: a model of images by name with its arguments, as {"name": "vit", "depth": 4}; what
      it calls logits is its embedding.
    num_classes: V.
    image_shape: (height, width, channels) of `batch["image"]`.
    embedding: D, the width of the teacher's common space.
    features: width of the image model's embedding where a projector (linear, batch normalisation,
      ReLU, linear) maps it to D; None: the image model itself ends in D.
    temperature: > 0; logits are cosines divided by it.
    trained: "all", or "prompts": of the image model its `prompts` alone, and the projector. The
      others get no gradient; keep them from decay, too, by `config.optimizer.groups`.

  Returns:
    A model with the taps of `kdjax.models.clip` and the image model's own. `adopt` takes the
    teacher's head.

  Raises:
    KdjaxError: an image model that does not exist, arguments out of range, no prompts to train.

  Example:
    >>> net = {"name": "mlp", "hidden": (8,)}
    >>> model = open_vocabulary(
    ...   image_model=net, num_classes=3, image_shape=(4, 4, 1), embedding=5
    ... )
    >>> variables = model.init(jax.random.key(0))
    >>> taps = frozenset({"embedding"})
    >>> model.apply(variables, {"image": jnp.zeros((2, 4, 4, 1))}, taps=taps)[0].embedding.shape
    (2, 5)

  Reference:
    Li et al., "PromptKD: Unsupervised Prompt Distillation for Vision-Language Models", CVPR 2024,
    https://arxiv.org/abs/2403.02781, whose projector this is.
  """
  checks.positive(num_classes=num_classes, embedding=embedding)
  is_number = isinstance(temperature, int | float) and temperature > 0
  checks.require(is_number, "temperature", temperature, "a number > 0")
  checks.one_of("trained", trained, TRAINED)
  image = _image_model(image_model, image_shape, embedding if features is None else features)
  projector = None if features is None else _projector(features, embedding)
  abstract = jax.eval_shape(image.init, jax.random.key(0)).params
  has_prompts = "prompts" in abstract
  checks.require(
    trained == "all" or has_prompts, "trained", trained, "'all': the image model has no prompts"
  )

  def init(rng: jax.Array) -> ModelVars:
    image_key, projector_key = jax.random.split(rng)
    below = image.init(image_key)
    params = {"image": below.params, "classes": jnp.zeros((num_classes, embedding))}
    state = {"image": below.state}
    if projector is not None:
      own = projector.init(projector_key)
      params["projector"], state["projector"] = own.params, own.state
    return ModelVars(params, state)

  def held(params: Any) -> Any:
    """The image model's parameters, those that are not trained out of the gradient's reach."""
    if trained == "all":
      return params
    return jax.lax.stop_gradient(params) | {"prompts": params["prompts"]}

  def apply(
    variables: ModelVars,
    batch: Batch,
    *,
    taps: frozenset[str] = frozenset({"logits"}),
    train: bool = False,
    rng: jax.Array | None = None,
  ) -> tuple[Outputs, Any]:
    params, state = variables.params, dict(variables.state)
    inside = taps - OWN | ({"logits"} if taps & (OWN - {"head"}) else set())
    below = ModelVars(held(params["image"]), state["image"])
    out, state["image"] = image.apply(below, batch, taps=frozenset(inside), train=train, rng=rng)
    found = out.logits
    if projector is not None and found is not None:
      own = ModelVars(params["projector"], state["projector"])
      features = {"features": found.astype(jnp.float32)}
      told, state["projector"] = projector.apply(
        own, features, taps=frozenset({"embedding"}), train=train
      )
      found = told.embedding
    classes = jax.lax.stop_gradient(params["classes"])
    return outputs_of(out, found, classes, 1 / temperature, taps), state

  def axes() -> ModelVars:
    below = image.axes()
    params = {"image": below.params, "classes": PartitionSpec("vocab", "embed")}
    state = {"image": below.state}
    if projector is not None:
      own = projector.axes()
      params["projector"], state["projector"] = own.params, own.state
    return ModelVars(params, state)

  def start(shardings: ModelVars | None = None, dtype: Any = None) -> ModelVars:
    if shardings is not None:
      shardings = ModelVars(shardings.params["image"], shardings.state["image"])
    below = image.start(shardings, dtype)
    return ModelVars({"image": below.params}, {"image": below.state})

  return Model(
    init=init,
    apply=apply,
    axes=axes,
    taps=image.taps - {"segment", "distillation_logits"} | OWN,
    num_classes=num_classes,
    start=None if image.start is None else start,
    adopt=lambda head: {"classes": unit(head.kernel.T)},
  )


def _image_model(spec: Mapping[str, Any], image_shape: tuple[int, int, int], width: int) -> Model:
  from kdjax import models  # it names this file's model, too

  if not isinstance(spec, Mapping) or "name" not in spec:
    raise KdjaxError(f"image_model = {spec!r} must be a mapping with a name, such as 'vit'")
  own = {name: value for name, value in spec.items() if name != "name"}
  given = {"num_classes": width, "image_shape": image_shape}
  return resolve(models, spec["name"], own | given, field="image_model.name")()


def _projector(width: int, out: int) -> Model:
  return functional(
    lambda rngs: _Projector(width, out, rngs=rngs),
    inputs=lambda batch: (batch["features"],),
    taps=frozenset({"embedding"}),
    num_classes=out,
  )
