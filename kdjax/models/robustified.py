"""A model that is kept as it is, with a tuned copy of a part of it and two more heads beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from kdjax.errors import KdjaxError
from kdjax.losses import forward_kl
from kdjax.models import checks
from kdjax.models.base import Batch, Model, ModelVars
from kdjax.outputs import Head, Outputs
from kdjax.resolve import resolve

HEADS = ("clean", "robust", "combined")
TRAINED = ("original", "copies")
_PLAIN = frozenset({"logits"})
_READ = frozenset({"hidden", "head"})


def robustified(
  *,
  model: Mapping[str, Any],
  num_classes: int,
  image_shape: tuple[int, int, int],
  tuned: str,
  last: int | None = None,
  threshold: float = 0.1,
  trained: str = "copies",
) -> Model:
  """An image model with three heads: its own, a robust one and a combined one.

  The last two read a tuned copy of some of the model's layers. Copies are kept as differences from
  the original, 0 to begin with, so that all heads agree until something is trained, and decay
  draws towards the original. The original is out of reach of gradients and runs as in evaluation
  (no dropout, batch statistics as they are): what the clean head says never changes by a bit. Keep
  it from decay by `config.optimizer.groups`: {"pattern": "student/tuned", "scale": 1.0}, then
  {"pattern": "student/", "scale": 0.0}.

  `logits` are the log-probabilities of one head, chosen for each image (see `chosen`).

  Args:
    model: an image model by name with its arguments, as {"name": "vit", "depth": 4}.
    num_classes: V.
    image_shape: (height, width, channels) of `batch["image"]`.
    tuned: a regular expression; parameters in whose path ("blocks/up/kernel") it is found are
      copied. The heads are copied without being named.
    last: of parameters that are stacked over layers, the copies of so many last layers.
    threshold: nats, >= 0; see `chosen`.
    trained: "copies"; or "original", to train the model first: then `logits` are its own.

  Returns:
    A model with the taps logits and head_logits ("clean", "robust", "combined").

  Raises:
    KdjaxError: an image model that does not exist or has no head to copy, a pattern that is found
      nowhere, arguments out of range.

  Example:
    >>> net = {"name": "mlp", "hidden": (8, 6)}
    >>> model = robustified(model=net, num_classes=3, image_shape=(4, 4, 1), tuned="layer_1")
    >>> variables = model.init(jax.random.key(0))
    >>> sorted(variables.params["tuned"]["layers"])
    ['layer_1/bias', 'layer_1/kernel']

  Reference:
    Jain et al., "Efficiently Robustify Pre-Trained Models", ICCV 2023,
    https://arxiv.org/abs/2309.07499. No code is public; copies as differences, entropy for
    uncertainty and the threshold are ours.
  """
  checks.one_of("trained", trained, TRAINED)
  is_number = isinstance(threshold, int | float) and threshold >= 0
  checks.require(is_number, "threshold", threshold, "a number >= 0")
  if last is not None:
    checks.positive(last=last)
  base = _image_model(model, image_shape, num_classes)
  if missing := (_READ | _PLAIN) - base.taps:
    raise KdjaxError(
      f"robustified: model {model.get('name')!r} gives no {sorted(missing)}; take one that ends in"
      " a linear layer"
    )
  shapes = jax.eval_shape(base.init, jax.random.key(0))
  leaves = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shapes.params)}
  copied = [name for name in leaves if re.search(tuned, name)]
  if not copied:
    raise KdjaxError(f"robustified: tuned = {tuned!r} is found in none of {sorted(leaves)}")

  def differences() -> dict[str, Any]:
    def layers(name: str) -> Array:
      shape = leaves[name].shape
      return jnp.zeros(shape if last is None else (min(last, shape[0]), *shape[1:]))

    image = {"image": jnp.zeros((1, *image_shape))}
    head = jax.eval_shape(lambda v: base.apply(v, image, taps=_READ)[0].head, shapes)
    zero = {"weight": jnp.zeros(head.weight.shape)}
    if head.bias is not None:
      zero["bias"] = jnp.zeros(head.bias.shape)
    heads = {name: dict(zero) for name in HEADS[1:]}
    return {"layers": {name: layers(name) for name in copied}, **heads}

  def init(rng: jax.Array) -> ModelVars:
    own = base.init(rng)
    return ModelVars(own.params | {"tuned": differences()}, own.state)

  def apply(
    variables: ModelVars,
    batch: Batch,
    *,
    taps: frozenset[str] = _PLAIN,
    train: bool = False,
    rng: jax.Array | None = None,
  ) -> tuple[Outputs, Any]:
    params = {name: part for name, part in variables.params.items() if name != "tuned"}
    if trained == "original" and "head_logits" not in taps:
      own = ModelVars(params, variables.state)
      return base.apply(own, batch, taps=taps, train=train, rng=rng)
    original = jax.lax.stop_gradient(ModelVars(params, variables.state))
    changed, tuned_by = original.params, variables.params["tuned"]
    changed = jax.tree_util.tree_map_with_path(
      lambda path, leaf: _added(leaf, tuned_by["layers"].get(_name(path))), changed
    )
    clean, _ = base.apply(original, batch, taps=_READ | _PLAIN)
    copy, _ = base.apply(original._replace(params=changed), batch, taps=_READ)
    heads = {"clean": clean.logits}
    for name in HEADS[1:]:
      heads[name] = _moved(clean.head, tuned_by[name]).logits(copy.hidden)
    picked = clean.logits if trained == "original" else chosen(heads, threshold=threshold)
    return Outputs(
      logits=picked if "logits" in taps else None,
      head_logits=heads if "head_logits" in taps else None,
    ), variables.state

  def axes() -> ModelVars:
    own = base.axes()
    names = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(own.params)}
    head = {"weight": PartitionSpec("embed", "vocab"), "bias": PartitionSpec("vocab")}
    added = differences()
    heads = {name: {part: head[part] for part in added[name]} for name in HEADS[1:]}
    layers = {"layers": {name: names[name] for name in copied}}
    return ModelVars(own.params | {"tuned": layers | heads}, own.state)

  return Model(
    init=init,
    apply=apply,
    axes=axes,
    taps=frozenset({"logits", "head_logits"}),
    num_classes=num_classes,
    start=base.start,
  )


def chosen(
  head_logits: Mapping[str, Float[Array, "batch classes"]], *, threshold: float
) -> Float[Array, "batch classes"]:
  """Log-probabilities of one head for each image.

  Where clean and robust head agree, which is KL(clean || robust) < threshold, the combined head;
  elsewhere the head that is least uncertain, by entropy.

  Args:
    head_logits: of the heads clean, robust and combined, [B, V] each.
    threshold: in nats.

  Returns:
    float32 [B, V].

  Example:
    >>> sure, unsure = jnp.array([[9.0, 0.0]]), jnp.array([[0.0, 1.0]])
    >>> heads = {"clean": sure, "robust": unsure, "combined": unsure}
    >>> int(chosen(heads, threshold=0.1).argmax())
    0
  """
  every = jnp.stack([jax.nn.log_softmax(head_logits[n].astype(jnp.float32)) for n in HEADS])
  entropy = -(jnp.exp(every) * every).sum(-1)
  agree = forward_kl(head_logits["robust"], head_logits["clean"]) < threshold
  head = jnp.where(agree, HEADS.index("combined"), entropy.argmin(0))
  return jnp.take_along_axis(every, head[None, :, None], axis=0)[0]


def _image_model(
  spec: Mapping[str, Any], image_shape: tuple[int, int, int], num_classes: int
) -> Model:
  from kdjax import models  # it names this file's function, too

  named = isinstance(spec, Mapping) and isinstance(spec.get("name"), str)
  checks.require(named, "model", spec, "a mapping with a name")
  own = {"num_classes": num_classes, "image_shape": image_shape} | dict(spec)
  name = own.pop("name")
  return resolve(models, name, own, field="model.name")()


def _name(path: tuple[Any, ...]) -> str:
  return "/".join(str(key.key) for key in path)


def _added(leaf: Array, difference: Array | None) -> Array:
  """A parameter and its difference, which may be that of its last layers alone."""
  if difference is None:
    return leaf
  return leaf.at[leaf.shape[0] - difference.shape[0] :].add(difference.astype(leaf.dtype))


def _moved(head: Head, by: Mapping[str, Array]) -> Head:
  bias = None if head.bias is None else head.bias + by["bias"]
  return Head(head.weight + by["weight"], bias, head.softcap, head.tied)
