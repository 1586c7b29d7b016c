"""A model at the boundary: pure functions made from an NNX module."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.sharding import PartitionSpec

from kdjax.errors import KdjaxError
from kdjax.outputs import Head, Outputs

PyTree = Any
Batch = Mapping[str, jax.Array]


class ModelVars(NamedTuple):
  """The arrays of a model: nested dicts with string keys."""

  params: PyTree
  state: PyTree  # batch statistics; empty for most models
  frozen: PyTree = ()  # weights that are read and never trained: those under an adapter


def overlay(variables: ModelVars, given: ModelVars) -> ModelVars:
  """The variables with those of `given` in place of their own, at any depth of the dicts."""

  def merged(own: PyTree, new: PyTree) -> PyTree:
    if not isinstance(own, Mapping) or not isinstance(new, Mapping):
      return new
    return {key: merged(own[key], new[key]) if key in new else own[key] for key in own}

  return ModelVars(*map(merged, variables, given))


class Decoding(NamedTuple):
  """A model that goes through text token by token, its weights laid out for that.

  It is made, and used, within one trace: that lays the weights out once for all tokens.

  Attributes:
    prefill: `prefill(prompts, lengths, new) -> (Outputs, positions, cache)` reads prompts [B, P],
      right-padded, of which `lengths` [B] tokens count: the outputs `hidden` [B, 1, D] and `head`
      that say the first new token, the positions [B] at which that one is to stand, and a cache
      with places for `new` of them; new is static. A mixture has `logits` [B, 1, V] instead.
    extend: `extend(tokens, positions, cache) -> (Outputs, cache)`: the outputs `hidden` [B, T, D]
      and `head` of tokens [B, T] at positions [B, T]. The place of a token in the cache is its
      position, and it sees the places up to its own: what stands at later ones does not matter.
  """

  prefill: Callable[[jax.Array, jax.Array, int], tuple[Outputs, jax.Array, PyTree]]
  extend: Callable[[jax.Array, jax.Array, PyTree], tuple[Outputs, PyTree]]


class Model(NamedTuple):
  """A model as pure functions.

  Attributes:
    init: `init(rng) -> ModelVars`.
    apply: `apply(variables, batch, *, taps, train=False, rng=None) -> (Outputs, new state)`.
      `taps` is a static frozenset of `Outputs` field names; `rng` feeds dropout when training.
    axes: `axes() -> ModelVars` of the same structure, each leaf a `PartitionSpec` with one logical
      axis name (or None) per dimension. Logical: a rule table maps them to mesh axes.
    taps: the taps this model can give.
    num_classes: size of the last axis of the logits.
    start: `start(shardings=None, dtype=None) -> ModelVars` reads the weights to begin with, in int8
      rounded tensor by tensor. All or some: those that its dicts lack are random (see `overlay`).
      None where all are.
    frozen: the model's `ModelVars.frozen`, which no checkpoint holds; () for most.
    frozen_axes: axis names of `frozen`, as `axes` gives them.
    merged: `merged(variables)` of the model that it adapts, of which nothing is frozen; None where
      the variables are already such.
    spec: what the model is made of, for its conversion to other formats; None for most.
    decode: `decode(variables) -> Decoding` of a model that generates text; else None.
    inherit: `inherit(teacher's params) -> params` of a student that starts from its teacher's
      weights; else None. See `kdjax.models.starts.inheriting`.
    settled: `(model, settle)` of one that computes things which do not depend on its input:
      `settle(variables)` are those of `model`, which has them computed once. A frozen teacher is
      kept so; None for most.
    contains: the key of its params under which it has all of its teacher's; "" for most. See
      `kdjax.models.starts.containing`.
    adopt: `adopt(head) -> params`, of a student that classifies by its teacher's head, all or some;
      else None. See `kdjax.models.starts.adopting`.
  """

  init: Callable[[jax.Array], ModelVars]
  apply: Callable[..., tuple[Outputs, PyTree]]
  axes: Callable[[], ModelVars]
  taps: frozenset[str]
  num_classes: int
  start: Callable[..., ModelVars] | None = None
  frozen: PyTree = ()
  frozen_axes: PyTree = ()
  merged: Callable[[ModelVars], ModelVars] | None = None
  spec: Any = None
  decode: Callable[[ModelVars], Decoding] | None = None
  inherit: Callable[[PyTree], PyTree] | None = None
  settled: tuple[Model, Callable[[ModelVars], ModelVars]] | None = None
  adopt: Callable[[Head], PyTree] | None = None
  contains: str = ""


def functional(
  build: Callable[[nnx.Rngs], nnx.Module],
  *,
  inputs: Callable[[Batch], tuple[Any, ...]],
  taps: frozenset[str],
  num_classes: int,
  spec: Any = None,
) -> Model:
  """Makes a `Model` from a function that builds an NNX module.

  Args:
    build: `build(rngs) -> module`, where `module(*inputs, taps=, train=, rngs=)` returns `Outputs`;
      a module that offers the tap "segment" has a method `segment(hidden, start, stop, *inputs)`,
      one that generates text `decoding() -> Decoding`.
    inputs: picks the module's positional inputs out of a batch.
    taps: what the module can hand over.
    num_classes: size of the last axis of its logits.
    spec: kept as `Model.spec`.

  Returns:
    The model. Parameters are every `nnx.Param` of the module, state is everything else.
  """

  def split(rng: jax.Array):
    with nnx.use_eager_sharding(False):  # axis names are logical: nothing is placed on creation
      return nnx.split(build(nnx.Rngs(rng)), nnx.Param, ...)

  # The graph definition holds no arrays; one abstract trace gives it and the axis names.
  with nnx.use_eager_sharding(False):
    graphdef, abstract_params, abstract_state = nnx.split(
      nnx.eval_shape(lambda: build(nnx.Rngs(0))), nnx.Param, ...
    )

  @jax.jit  # op by op, each shape of each weight would be a program of its own
  def init(rng: jax.Array) -> ModelVars:
    _, params, state = split(rng)
    return ModelVars(nnx.to_pure_dict(params), nnx.to_pure_dict(state))

  def merge(variables: ModelVars) -> nnx.Module:
    return nnx.merge(graphdef, variables.params, variables.state)

  def segment(variables, given, hidden: jax.Array, start: int, stop: int) -> jax.Array:
    return merge(jax.lax.stop_gradient(variables)).segment(hidden, start, stop, *given)

  def decode(variables: ModelVars) -> Decoding:
    def logical(part: Callable) -> Callable:
      def call(*args):
        with nnx.use_eager_sharding(False):
          return part(*args)

      return call

    return Decoding(*map(logical, logical(merge(variables).decoding)()))

  def apply(
    variables: ModelVars,
    batch: Batch,
    *,
    taps: frozenset[str] = frozenset({"logits"}),
    train: bool = False,
    rng: jax.Array | None = None,
  ) -> tuple[Outputs, PyTree]:
    if unknown := taps - offered:
      raise KdjaxError(
        f"the model cannot give the tap(s) {sorted(unknown)}; it has {sorted(offered)}"
      )
    with nnx.use_eager_sharding(False):
      module = merge(variables)
      rngs = None if rng is None else nnx.Rngs(rng)
      given = inputs(batch)
      out = module(*given, taps=taps - {"segment"}, train=train, rngs=rngs)
      state = nnx.to_pure_dict(nnx.split(module, nnx.Param, ...)[2])
    if "segment" in taps:
      out = dataclasses.replace(out, segment=jax.tree_util.Partial(segment, variables, given))
    return out, state

  def axes() -> ModelVars:
    def names(variable: nnx.Variable) -> PartitionSpec:
      given = variable.get_metadata().get("out_sharding") or ()
      return PartitionSpec(*given, *(None,) * (len(variable.shape) - len(given)))

    def tree(state: nnx.State) -> PyTree:
      return nnx.to_pure_dict(
        jax.tree.map(
          lambda v: v.replace(names(v)), state, is_leaf=lambda v: isinstance(v, nnx.Variable)
        )
      )

    return ModelVars(tree(abstract_params), tree(abstract_state))

  offered = taps
  return Model(
    init=init, apply=apply, axes=axes, taps=taps, num_classes=num_classes, spec=spec, decode=decode
  )
