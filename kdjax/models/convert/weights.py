"""Weights between checkpoints and parameters, one tensor at a time."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from kdjax.errors import KdjaxError
from kdjax.models.adapters import LINEAR, kernels_of
from kdjax.models.base import Model, ModelVars
from kdjax.models.convert.checkpoint import Checkpoint
from kdjax.models.convert.layouts import Entry
from kdjax.models.convert.mapping import IGNORED, TIED, entries_of
from kdjax.models.convert.specs import spec_of
from kdjax.models.expressions import Quantized, quantize

PyTree = Any
SHOWN = 8  # names in one message
STATE = "state:"  # before the path of an array that is no parameter


def load_weights(
  checkpoint: Checkpoint,
  model: Model,
  *,
  shardings: ModelVars | None = None,
  layers: Mapping[str, Sequence[int]] | None = None,
  dtype: Any = None,
) -> ModelVars:
  """Reads a checkpoint's weights onto the devices.

  Tensors are read one by one, each device takes its part, and layers are written into their stack
  in place: the host holds one tensor of the checkpoint at a time. In int8, a kernel is rounded as
  it is read: its stack never exists in float32.

  Args:
    checkpoint: from `open_checkpoint`.
    model: whose parameters to fill; of the checkpoint's family and sizes.
    shardings: where each parameter lies, as `kdjax.train.mesh.shardings` gives; None for the
      default device.
    layers: for each stack, which layer of the checkpoint becomes layer 0, 1, ... of the model; the
      checkpoint's own order where None.
    dtype: of the parameters; their own (float32) where None. "int8" rounds the linear layers of the
      blocks, as `quantize_params` does, and leaves the rest.

  Returns:
    The model's variables.

  Raises:
    KdjaxError: tensors that are missing, have another shape, or that the model has no place for;
      it lists them.
  """
  abstract = jax.eval_shape(model.init, jax.random.key(0))
  flat = _flatten(abstract)
  placed = None if shardings is None else _flatten(shardings)
  spec = model.spec
  entries = entries_of(spec)
  chosen = _layers(spec, layers)
  check_weights(checkpoint, model, layers=layers)
  rounded = kernels_of(abstract.params, tuple(LINEAR)) if dtype == "int8" else {}

  out: dict[str, Any] = {}
  writer = functools.cache(_writer)  # of this call: its programs need not outlive it

  def write(path: str, part: jax.Array, layer: int, depth: int, sharding) -> None:
    """Puts one layer in its place of the stack."""
    if path not in out:
      shape, kind = (depth, *part.shape), part.dtype
      out[path] = jax.jit(lambda: jnp.zeros(shape, kind), out_shardings=sharding)()
    out[path] = writer(sharding)(out[path], part, layer)

  def place(path: str, part: np.ndarray, layer: int | None) -> None:
    own = flat[path].dtype if dtype in (None, "int8") else dtype
    sharding = None if placed is None else placed[path]
    part = np.asarray(part, order="C").astype(jnp.dtype(own))
    if layer is None:
      out[path] = _put(part, sharding)
      return
    inner = None if sharding is None else _without_first(sharding)
    array, depth = _put(part, inner), flat[path].shape[0]
    if path not in rounded:
      write(path, array, layer, depth, sharding)
      return
    inputs = rounded[path].inputs
    expression = quantize(array[None], inputs=inputs)
    write(f"{path}/values", expression.values[0], layer, depth, sharding)
    write(f"{path}/scale", expression.scale[0], layer, depth, _of_scale(sharding, inputs))

  for entry in entries:
    depths = chosen[entry.stack] if entry.layered else [None]
    shapes = [flat[path].shape[1:] if entry.layered else flat[path].shape for path in entry.ours]
    for ours, theirs in enumerate(depths):
      array = checkpoint.read(_name(entry, theirs))
      for path, part in zip(entry.ours, entry.layout.read(array, shapes), strict=True):
        place(path, part, ours if entry.layered else None)
  for path in rounded:
    out[path] = Quantized(out.pop(f"{path}/values"), out.pop(f"{path}/scale"))
  state = {path.removeprefix(STATE): out.pop(path) for path in list(out) if path.startswith(STATE)}
  return ModelVars(_nest(out), _nest(state))


class Tensor(NamedTuple):
  """A tensor to be written: read from the devices when its turn comes."""

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  read: Any  # () -> np.ndarray


def tensors_of(model: Model, variables: ModelVars) -> Iterator[Tensor]:
  """The tensors of a checkpoint that holds these variables, in the family's names and layouts."""
  flat = _flatten(variables)
  for entry in entries_of(model.spec):
    depth = model.spec.stacks[entry.stack].depth if entry.layered else 0
    for layer in range(depth) if entry.layered else [None]:

      def take(path: str, layer: int | None = layer) -> Any:
        return flat[path] if layer is None else flat[path][layer]

      def read(entry: Entry = entry, take=take) -> np.ndarray:
        parts = [np.asarray(jax.device_get(take(path))) for path in entry.ours]
        return np.asarray(entry.layout.write(*parts), order="C")  # a scalar stays one

      parts = [
        jax.ShapeDtypeStruct(flat[path].shape[layer is not None :], flat[path].dtype)
        for path in entry.ours
      ]
      # The layouts are cheap views, so that shapes come from empty memory.
      shape = entry.layout.write(*(np.broadcast_to(np.int8(0), p.shape) for p in parts)).shape
      yield Tensor(_name(entry, layer), shape, np.dtype(parts[0].dtype), read)


def check_weights(
  checkpoint: Checkpoint, model: Model, *, layers: Mapping[str, Sequence[int]] | None = None
) -> None:
  """Raises KdjaxError with every tensor that is missing, superfluous or of another shape.

  Names and shapes alone are read. The arguments are those of `load_weights`.
  """
  spec, present = model.spec, checkpoint.names
  flat = _flatten(jax.eval_shape(model.init, jax.random.key(0)))
  entries, chosen = entries_of(spec), _layers(spec, layers)
  whole = spec_of(checkpoint.config, present)
  wanted = {
    _name(entry, layer): entry
    for entry in entries
    for layer in (chosen[entry.stack] if entry.layered else [None])
  }
  # All layers of the checkpoint are known to it, also those that the model leaves out.
  known = {
    _name(entry, layer)
    for entry in entries_of(whole)
    for layer in (range(whole.stacks[entry.stack].depth) if entry.layered else [None])
  }
  missing = sorted(set(wanted) - present)
  ignored = IGNORED + (TIED if spec.tied else ())
  extra = sorted(name for name in present - known - set(wanted) if not name.endswith(ignored))
  wrong = []
  for name in sorted(set(wanted) & present):
    entry = wanted[name]
    shapes = [flat[path].shape[1 if entry.layered else 0 :] for path in entry.ours]
    expected = entry.layout.write(*(np.broadcast_to(np.int8(0), s) for s in shapes)).shape
    if tuple(checkpoint.shape(name)) != tuple(expected):
      wrong.append(f"{name} {list(checkpoint.shape(name))}, wanted {list(expected)}")
  found = {
    "tensors are missing": missing,
    "tensors have another shape": wrong,
    "the architecture has no place for": extra,
  }
  told = [f"{heading}: {_some(names)}" for heading, names in found.items() if names]
  if told:
    raise KdjaxError(f"{checkpoint.path} does not fit its config.json: {'; '.join(told)}")


def _some(names: Sequence[str]) -> str:
  more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
  return ", ".join(names[:SHOWN]) + more


def _layers(spec: Any, layers) -> dict[str, list[int]]:
  given = layers or {}
  chosen = {name: list(given.get(name, range(own.depth))) for name, own in spec.stacks.items()}
  for name, own in spec.stacks.items():
    if len(chosen[name]) != own.depth:
      raise KdjaxError(
        f"layers names {len(chosen[name])} layers of the {name} for a model of depth {own.depth}"
      )
  return chosen


def _name(entry: Entry, layer: int | None) -> str:
  if layer is None:
    return entry.theirs
  return entry.theirs.replace("{i}", str(entry.every * layer + entry.first))


def _put(array: np.ndarray, sharding) -> jax.Array:
  if sharding is None:
    return jnp.asarray(array)
  # Each device takes its part; several processes each fill their own.
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _writer(sharding):
  def write(stack, part, layer):
    return jax.lax.dynamic_update_index_in_dim(stack, part, layer, 0)

  return jax.jit(write, donate_argnums=0, out_shardings=sharding)


def _without_first(sharding: NamedSharding) -> NamedSharding:
  return NamedSharding(sharding.mesh, PartitionSpec(*tuple(sharding.spec)[1:]))


def _of_scale(sharding: NamedSharding | None, inputs: int) -> NamedSharding | None:
  """Of an int8 stack's scales, which have no extent along the inputs."""
  if sharding is None:
    return None
  names = [None if 1 <= axis <= inputs else name for axis, name in enumerate(sharding.spec)]
  return NamedSharding(sharding.mesh, PartitionSpec(*names))


def _flatten(variables: ModelVars) -> dict[str, Any]:
  """Parameters by their paths, and state by paths that begin with `STATE`."""
  return {
    prefix + jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for prefix, tree in (("", variables.params), (STATE, variables.state))
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
  out: dict[str, Any] = {}
  for path, value in flat.items():
    *parents, last = path.split("/")
    node = out
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = value
  return out
