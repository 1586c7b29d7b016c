"""A multilayer perceptron on flattened images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models import checks
from kdjax.models.base import Model, functional
from kdjax.models.layers import check_segment, dropout_rngs, linear, read_out
from kdjax.outputs import Outputs

_ACTIVATIONS = {"relu": jax.nn.relu, "gelu": jax.nn.gelu}
_TAPS = frozenset({"logits", "hidden", "head", "hidden_states", "embedding", "segment"})


class _Perceptron(nnx.Module):
  def __init__(self, sizes, *, num_classes, dropout, activation, dtype, rngs):
    # Widths differ, so the layers are attributes of their own and not one stack.
    self.depth = len(sizes) - 1
    for i in range(self.depth):
      layer = linear(sizes[i], sizes[i + 1], ("embed", "mlp"), rngs=rngs, dtype=dtype)
      setattr(self, f"layer_{i}", layer)
    self.head = linear(sizes[-1], num_classes, ("embed", "vocab"), rngs=rngs)
    self.dropout = nnx.Dropout(dropout)
    self.activation = _ACTIVATIONS[activation]
    self.dtype = dtype

  def _layer(self, i: int, hidden: Array, rngs: nnx.Rngs | None = None) -> Array:
    hidden = self.activation(getattr(self, f"layer_{i}")(hidden))
    return self.dropout(hidden, deterministic=rngs is None, rngs=rngs)

  def segment(
    self, hidden: Float[Array, "batch width"], start: int, stop: int, *inputs: Array
  ) -> Array:
    check_segment(start, stop, self.depth)
    for i in range(start, stop):
      hidden = self._layer(i, hidden)
    return hidden

  def __call__(self, image, *, taps, train, rngs) -> Outputs:
    rngs = dropout_rngs(self.dropout.rate, train, rngs)
    hidden = image.reshape(len(image), -1).astype(self.dtype)
    states = []
    for i in range(self.depth):
      hidden = self._layer(i, hidden, rngs)
      states.append(hidden)
    out = read_out(self.head, hidden, taps)
    if "hidden_states" in taps:
      out = dataclasses.replace(out, hidden_states=tuple(states))
    return out


def mlp(
  *,
  num_classes: int,
  image_shape: tuple[int, int, int],
  hidden: Sequence[int] = (32,),
  dropout: float = 0.0,
  activation: str = "relu",
  dtype: str = "float32",
) -> Model:
  """A multilayer perceptron: flatten, hidden layers, head.

  Layer i (from 0) is dense, activation, dropout. It reads hidden state i - 1 and gives hidden state
  i; layer 0 reads the flattened image. So `segment(hidden_states[a], a + 1, b + 1)` is
  `hidden_states[b]` without dropout.

  Args:
    num_classes: size of the logits.
    image_shape: (height, width, channels) of `batch["image"]`.
    hidden: widths of the hidden layers; () makes a linear classifier.
    dropout: rate in [0, 1) after every activation, when training.
    activation: "relu" or "gelu".
    dtype: compute dtype of the hidden layers, "float32" or "bfloat16". Parameters, the head and the
      logits are float32.

  Returns:
    A model with the taps logits, hidden, head, hidden_states (a tuple), embedding (the last hidden
    activation, the same as hidden) and segment.

  Raises:
    KdjaxError: if a hyper-parameter is out of its range.

  Example:
    >>> model = mlp(num_classes=10, image_shape=(8, 8, 1), hidden=(32,))
    >>> variables = model.init(jax.random.key(0))
    >>> out, _ = model.apply(variables, {"image": jax.numpy.zeros((2, 8, 8, 1))})
    >>> out.logits.shape
    (2, 10)
  """
  inputs = checks.image_input(image_shape)
  checks.positive(num_classes=num_classes)
  checks.require(isinstance(hidden, tuple | list), "hidden", hidden, "a list of layer widths")
  checks.positive(**{f"hidden[{i}]": width for i, width in enumerate(hidden)})
  checks.dropout_rate(dropout)
  checks.one_of("activation", activation, _ACTIVATIONS)
  compute_dtype = checks.compute_dtype(dtype)
  height, width, channels = image_shape

  def build(rngs: nnx.Rngs) -> nnx.Module:
    return _Perceptron(
      (height * width * channels, *hidden),
      num_classes=num_classes,
      dropout=dropout,
      activation=activation,
      dtype=compute_dtype,
      rngs=rngs,
    )

  return functional(build, inputs=inputs, taps=_TAPS, num_classes=num_classes)
