"""A driver that is told what is around it, and one that has to see it but drives as the first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kdjax.models import checks
from kdjax.models.base import Batch, Model, functional
from kdjax.models.layers import MapNorm, linear, named
from kdjax.outputs import Outputs

_TAPS = frozenset({"policy", "features", "embedding"})
FLOOR = 1e-3  # of alpha and beta, whose logarithm of gamma has no bound at 0
ROUTE = 1  # the channel of what is around that a student is told
After = Callable[[str, Array], Array]


def conv(before: int, after: int, *, stride: int = 1, size: int = 3, rngs: nnx.Rngs) -> nnx.Conv:
  """A square convolution with a bias; strides halve what they divide, rounded up."""
  return nnx.Conv(
    before,
    after,
    (size, size),
    strides=stride,
    kernel_metadata=named(None, None, None, "embed"),
    bias_metadata=named("embed"),
    rngs=rngs,
  )


class Policy(nnx.Module):
  """Convolutions, the speed beside them, two layers for both and two for the actions.

  `after(name, value)` changes what each of "conv0", ..., "fusion" and "policy" hands on.
  """

  def __init__(self, shape, *, channels, strides, width, actions, known=1, rngs: nnx.Rngs):
    height, across, before = shape
    self.depth = len(channels)
    for i, (after, stride) in enumerate(zip(channels, strides, strict=True)):
      setattr(self, f"conv{i}", conv(before, after, stride=stride, rngs=rngs))
      before, height, across = after, math.ceil(height / stride), math.ceil(across / stride)
    flat = height * across * before
    self.speed = _mlp((known, width, width), rngs)
    self.fusion = _mlp((flat + width, 2 * width, width), rngs)
    self.policy = _mlp((width, width, width), rngs)
    self.alpha = linear(width, actions, ("embed", None), rngs=rngs)
    self.beta = linear(width, actions, ("embed", None), rngs=rngs)

  def __call__(
    self, seen: Array, speed: Array, after: After = lambda name, value: value
  ) -> tuple[Float[Array, "batch action 2"], dict[str, Array], Array]:
    """(policy, the maps after each convolution, the state where both are joined)."""
    maps = {}
    for i in range(self.depth):
      seen = maps[f"conv{i}"] = after(f"conv{i}", jax.nn.relu(getattr(self, f"conv{i}")(seen)))
    state = _through(self.speed, speed)
    joined = jnp.concatenate([seen.reshape(len(seen), -1), state], axis=-1)
    state = after("fusion", _through(self.fusion, joined))
    hidden = after("policy", _through(self.policy, state))
    both = [jax.nn.softplus(self.alpha(hidden)), jax.nn.softplus(self.beta(hidden))]
    return jnp.stack(both, axis=-1) + FLOOR, maps, state


def _mlp(sizes: Sequence[int], rngs: nnx.Rngs) -> nnx.List:
  pairs = itertools.pairwise(sizes)
  return nnx.List([linear(*pair, ("embed", "mlp"), rngs=rngs) for pair in pairs])


def _through(layers: Sequence[nnx.Linear], hidden: Array) -> Array:
  for layer in layers:
    hidden = jax.nn.relu(layer(hidden))
  return hidden


class Adapter(nnx.Module):
  """A narrow residual block with squeeze and excitation, then a product to the width wanted."""

  def __init__(self, before: int, after: int, *, rngs: nnx.Rngs):
    narrow = max(before // 4, 1)
    self.down = conv(before, narrow, rngs=rngs)
    self.down_norm = MapNorm(narrow, rngs=rngs)
    self.up = conv(narrow, before, rngs=rngs)
    self.up_norm = MapNorm(before, rngs=rngs)
    self.squeeze = conv(before, before, size=1, rngs=rngs)
    self.excite = conv(before, before, size=1, rngs=rngs)
    self.out = conv(before, after, size=1, rngs=rngs)

  def __call__(self, hidden: Array, train: bool) -> Array:
    inner = jax.nn.relu(self.down_norm(self.down(hidden), train))
    inner = self.up_norm(self.up(inner), train)
    # Not `max`, whose gradient divides by how many places are equal to it: none where the compiler
    # computes these twice and rounds them differently.
    largest = nnx.max_pool(inner, inner.shape[1:3])
    pooled = (inner.mean((1, 2), keepdims=True) + largest) / 2
    gate = jax.nn.sigmoid(self.excite(jax.nn.relu(self.squeeze(pooled))))
    return jax.nn.relu(self.out(jax.nn.relu(inner * gate + hidden)))


class _Adapted(nnx.Module):
  """Perception, a planner whose weights are not trained, and adapters between its layers."""

  def __init__(self, image_shape, bev_shape, *, raw, adapters, rngs, **planner):
    self.planner = Policy(bev_shape, **planner, rngs=rngs)
    channels, strides, width = planner["channels"], planner["strides"], planner["width"]
    height, across, layers = bev_shape
    self.shape, self.depth, self.adapts = (height, across, raw[0]), len(channels), adapters
    self.eye = nnx.List(
      [conv(image_shape[-1], raw[0], rngs=rngs), conv(raw[0], raw[0], stride=2, rngs=rngs)]
    )
    flat = math.ceil(image_shape[0] / 2) * math.ceil(image_shape[1] / 2) * raw[0]
    self.turn = linear(flat, math.prod(self.shape), ("embed", "mlp"), rngs=rngs)
    self.mend = conv(raw[0], raw[0], rngs=rngs)
    self.segment = conv(raw[0], layers - 1, size=1, rngs=rngs)
    if not adapters:
      return
    before = raw[0] + 1
    for i, (own, after, stride) in enumerate(zip(channels, raw, strides, strict=True)):
      setattr(self, f"raw{i}", conv(before, after, stride=stride, rngs=rngs))
      setattr(self, f"raw_norm{i}", MapNorm(after, rngs=rngs))
      setattr(self, f"adapter{i}", Adapter(own + after, own, rngs=rngs))
      before, height, across = after, math.ceil(height / stride), math.ceil(across / stride)
    self.flatten = linear(height * across * before, before, ("embed", "mlp"), rngs=rngs)
    for name in ("fusion", "policy"):
      wide = width + before
      setattr(self, f"adapt_{name}", _mlp((wide, 2 * wide, width), rngs))

  def perceive(self, image: Array) -> tuple[Array, Array]:
    """(features on the grid, logits of the channels that are not told)."""
    for layer in self.eye:
      image = jax.nn.relu(layer(image))
    grid = jax.nn.relu(self.turn(image.reshape(len(image), -1))).reshape(-1, *self.shape)
    grid = jax.nn.relu(self.mend(grid)) + grid
    return grid, self.segment(grid)

  def raw_features(self, grid: Array, route: Array, train: bool) -> dict[str, Array]:
    """What each adapter gets beside the planner's own."""
    raw, own = jnp.concatenate([grid, route], axis=-1), {}
    for i in range(self.depth):
      raw = getattr(self, f"raw_norm{i}")(getattr(self, f"raw{i}")(raw), train)
      raw = own[f"conv{i}"] = jax.nn.relu(raw)
    flat = self.flatten(raw.reshape(len(raw), -1))
    return own | {"fusion": flat, "policy": flat}

  def __call__(self, image, route, speed, *, taps, train, rngs) -> Outputs:
    grid, logits = self.perceive(image)
    soft = jax.nn.sigmoid(logits)
    # Straight through: what the planner reads is 0 or 1, the gradient is the sigmoid's.
    hard = jax.lax.stop_gradient((soft > 0.5).astype(soft.dtype) - soft) + soft
    seen = jnp.concatenate([hard[..., :ROUTE], route, hard[..., ROUTE:]], axis=-1)
    own = self.raw_features(grid, route, train) if self.adapts else {}

    def after(name: str, value: Array) -> Array:
      if not self.adapts:
        return value
      both = jnp.concatenate([value, own[name]], axis=-1)
      if name in ("fusion", "policy"):
        return _through(getattr(self, f"adapt_{name}"), both)
      return getattr(self, f"adapter{name.removeprefix('conv')}")(both, train)

    # The planner stays what it is; gradients pass through it to what it reads.
    graph, weights = nnx.split(self.planner)
    planner = nnx.merge(graph, jax.lax.stop_gradient(weights))
    policy, maps, state = planner(seen, speed, after)
    return _outputs(taps, policy, maps, state, logits)


def _outputs(taps, policy, maps, state, logits=None) -> Outputs:
  return Outputs(
    policy=policy if "policy" in taps else None,
    features=maps if "features" in taps else None,
    embedding=state if "embedding" in taps else None,
    perceived=logits if "perceived" in taps else None,
  )


class _Driver(Policy):
  def __call__(self, seen, known, *, taps, train, rngs) -> Outputs:
    return _outputs(taps, *super().__call__(seen, known))


def _sizes(channels, strides, width) -> dict:
  checks.stages(channels=channels, strides=strides)
  checks.positive(width=width)
  return {"channels": tuple(channels), "strides": tuple(strides), "width": width}


def driving_policy(
  *,
  num_classes: int,
  image_shape: tuple[int, int, int],
  bev_shape: tuple[int, int, int],
  reads: str = "bev",
  channels: Sequence[int] = (16, 32, 64),
  strides: Sequence[int] = (2, 2, 2),
  width: int = 64,
) -> Model:
  """A driver whose actions are Beta distributions, as Roach is: convolutions and two MLPs.

  Args:
    num_classes: number of actions.
    image_shape: of `batch["image"]`, what a sensor has.
    bev_shape: of `batch["bev"]`, what is around, seen from above.
    reads: "bev", of a driver that is told what is around; "image", of one that sees for itself, and
      has the route beside its speed.
    channels: of each convolution, 3x3 with a bias.
    strides: of each.
    width: of the layers after them.

  Returns:
    A model with the taps policy, features ("conv0", ...) and embedding, the state where map and
    speed are joined.

  Raises:
    KdjaxError: sizes out of range.

  Reference:
    Zhang et al., "End-to-End Urban Driving by Imitating a Reinforcement Learning Coach", ICCV 2021,
    https://arxiv.org/abs/2108.08265 (six convolutions, width 256).
  """
  checks.one_of("reads", reads, ("bev", "image"))
  sizes = _sizes(channels, strides, width)
  sees = reads == "image"
  shape = image_shape if sees else bev_shape
  known = 1 + sees * bev_shape[0] * bev_shape[1]

  def inputs(batch: Batch) -> tuple[Array, Array]:
    speed, route = batch["speed"], batch["route"]
    told = jnp.concatenate([speed, route.reshape(len(route), -1)], axis=-1) if sees else speed
    return batch[reads], told

  return functional(
    lambda rngs: _Driver(shape, **sizes, actions=num_classes, known=known, rngs=rngs),
    inputs=inputs,
    taps=_TAPS,
    num_classes=num_classes,
  )


def drive_adapter(
  *,
  num_classes: int,
  image_shape: tuple[int, int, int],
  bev_shape: tuple[int, int, int],
  channels: Sequence[int] = (16, 32, 64),
  strides: Sequence[int] = (2, 2, 2),
  width: int = 64,
  raw: Sequence[int] = (16, 32, 64),
  adapters: bool = True,
) -> Model:
  """A student that sees, with its teacher as planner and an adapter after each of its layers.

  The teacher's weights are `params["planner"]`: taken over when a run starts, and in its
  checkpoints. No gradient reaches them; set `config.optimizer.groups = ({"pattern":
  "student/planner", "scale": 0.0},)` so that nothing decays them either.

  Args:
    num_classes: number of actions.
    image_shape: of `batch["image"]`.
    bev_shape: of what the planner reads; `batch["route"]` is one of its channels.
    channels: the planner's; see `driving_policy`. So are strides and width.
    strides: see above; the branch of raw features has the same.
    width: see above.
    raw: channels of the features seen, and of that branch after each convolution.
    adapters: False has the planner read what was perceived, and no more.

  Returns:
    A model with the taps of `driving_policy` (of the planner as it is adapted) and perceived.

  Raises:
    KdjaxError: sizes out of range.

  Reference:
    Jia et al., "DriveAdapter", ICCV 2023, https://arxiv.org/abs/2308.00398
    (OpenDriveLab/DriveAdapter, driver_adapter_head.py). Probabilities are cut at 0.5, where its
    code cuts logits there.
  """
  sizes = _sizes(channels, strides, width)
  checks.stages(channels=channels, raw=raw)
  model = functional(
    lambda rngs: _Adapted(
      image_shape,
      bev_shape,
      **sizes,
      actions=num_classes,
      raw=tuple(raw),
      adapters=adapters,
      rngs=rngs,
    ),
    inputs=lambda batch: (batch["image"], batch["route"], batch["speed"]),
    taps=_TAPS | {"perceived"},
    num_classes=num_classes,
  )
  return model._replace(contains="planner")
