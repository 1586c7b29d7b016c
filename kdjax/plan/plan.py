"""What one step of a config will need on a mesh of chips, from its compiled program."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from kdjax.errors import KdjaxError
from kdjax.plan.chips import Chip
from kdjax.plan.collectives import Collective
from kdjax.plan.side import Side, compile_or_tell, side_of, total_bytes
from kdjax.programs.views import TOLD
from kdjax.resolve import hint
from kdjax.train.config import Config, check_config
from kdjax.train.loop import Compiled
from kdjax.train.mesh import AXES, BATCH
from kdjax.train.outline import Outline, outline, teacher_shapes
from kdjax.train.stages import stages_of

PyTree = Any


class Plan(NamedTuple):
  """One layout of one step; bytes and seconds are of one device.

  Attributes:
    mesh: axis to size.
    batch_size: rows of the whole batch.
    memory: part to bytes; they sum up to `total`.
    total: what the compiler plans to hold at once.
    split: share of the student's parameters, by bytes, that no device holds whole: axes that the
      mesh does not divide are repeated.
    flops: products of the step, over all devices together.
    collectives: what is sent.
    seconds: "compute", "memory" and "network", each if it were alone.
    step_seconds: the largest of these: no step can be faster.
    utilisation: products of the step by those that the chips could do in that time.
    largest_batch: rows of the largest batch that fits, by a line through two batch sizes (of which
      the larger may be known not to fit only); 0 where none does, None where memory does not grow
      with the batch.
    compile_seconds: spent on this plan.
    teacher: the same of a teacher on devices of its own; no step can be faster than it either.
  """

  mesh: dict[str, int]
  batch_size: int
  memory: dict[str, int]
  total: int
  split: float
  flops: int
  collectives: list[Collective]
  seconds: dict[str, float]
  step_seconds: float
  utilisation: float
  largest_batch: int | None
  compile_seconds: float
  teacher: Side | None = None


class Teaching(NamedTuple):
  """What a teacher on devices of its own computes of a batch: where, and as traced."""

  mesh: Mesh
  traced: Any


class Step(NamedTuple):
  """A step laid out on a mesh, without arrays.

  Attributes:
    mesh: where.
    compiled: its functions.
    batch: shapes of the whole batch.
    loss_chunk: bytes of the logits of one chunk on each device, both sides in float32; 0 for losses
      that are not computed in chunks.
    teaching: of a teacher on devices of its own.
  """

  mesh: Mesh
  compiled: Compiled
  batch: PyTree
  loss_chunk: int = 0
  teaching: Teaching | None = None


def parse_mesh(text: str) -> dict[str, int]:
  """The sizes in "data:16,fsdp:16"; axes that are left out have size 1.

  Raises:
    KdjaxError: an axis that does not exist or is given twice, or a size that is no positive number.
  """
  sizes: dict[str, int] = {}
  for part in text.split(","):
    name, _, size = part.strip().partition(":")
    if name not in AXES:
      raise KdjaxError(f"--mesh = {text!r}: there is no axis {name!r}{hint(name, AXES)}")
    if name in sizes:
      raise KdjaxError(f"--mesh = {text!r} has the axis {name!r} twice; give it once")
    if not size.isdecimal() or int(size) < 1:
      raise KdjaxError(
        f"--mesh = {text!r}: {name} must be a positive number of devices, as in {name}:8"
      )
    sizes[name] = int(size)
  return {name: sizes.get(name, 1) for name in AXES}


class Layout(NamedTuple):
  """How a step may lie on devices.

  Attributes:
    sizes: of the mesh's axes.
    changes: fields of the config that say the rest.
  """

  sizes: dict[str, int]
  changes: dict[str, Any] = {}  # noqa: RUF012 (never changed in place)


def layouts(sizes: Mapping[str, int]) -> dict[str, Layout]:
  """The layout asked for and others of as many devices, by name; none twice.

  All repeated (data); moments split, by which gradients are too (ZeRO's stages 1 and 2); all split
  (fsdp, its stage 3); split over up to eight devices and repeated by these (data x fsdp); and wide
  axes split so with the rest repeated (tensor).
  """
  devices = math.prod(sizes.values())
  wide = max(size for size in (1, 2, 4, 8) if devices % size == 0 and size**2 <= 4 * devices)
  moments = {"optimizer_rules": {"embed": BATCH}}
  others = {
    "data-parallel": Layout({"data": devices}),
    "ZeRO-1 and 2": Layout({"data": devices}, moments if devices > 1 else {}),
    "ZeRO-3": Layout({"fsdp": devices}),
    "ZeRO-3 in groups": Layout({"data": devices // wide, "fsdp": wide}),
    "tensor-parallel": Layout({"data": devices // wide, "tensor": wide}),
  }
  found: dict[str, Layout] = {}
  for name, other in {"asked for": Layout(dict(sizes)), **others}.items():
    whole = other._replace(sizes={axis: other.sizes.get(axis, 1) for axis in AXES})
    if whole not in found.values():
      found[name] = whole
  return found


def lay_out(config: Config, sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Step:
  """The training step of a config on devices that need not be there; of its stages the last.

  Args:
    config: as `launch.train` takes it.
    sizes: of the mesh's axes.
    devices: at least their product; JAX's own where None.

  Raises:
    KdjaxError: whatever is wrong with the config, its data or the mesh.
  """
  check_config(config)
  config = stages_of(config)[-1].config | {"mesh": dict(sizes)}
  own = outline(config, teacher_shapes(config), devices)
  sides = 2 if config["teacher"] else 1  # of a teacher elsewhere the head is here, too
  chunk = sides * _logits_of_chunk(config, own.mesh, own.student.num_classes)
  return Step(own.mesh, own.compiled, own.batch, chunk, _teaching(own))


def _teaching(own: Outline) -> Teaching | None:
  apart = own.program.apart
  if apart is None:
    return None
  read = {name: x for name, x in own.batch.items() if name != TOLD}
  return Teaching(own.other, own.feed.trace(read))


def _logits_of_chunk(config: Config, mesh: Mesh, classes: int) -> int:
  """Bytes of one side's, where a text objective has `chunk_size`: 0 elsewhere."""
  places, length = config["objective"].get("chunk_size"), config["data"].get("sequence_length")
  if not places or not length:
    return 0
  rows = config["batch_size"] // math.prod(mesh.shape[axis] for axis in BATCH)
  wide = mesh.shape["tensor"] if classes % mesh.shape["tensor"] == 0 else 1
  return 4 * rows * min(places, length // mesh.shape["sequence"]) * classes // wide


def plan(step: Step, chip: Chip) -> Plan:
  """Compiles a step, for its batch and one twice as large, and reads what it needs of a chip."""
  started = time.monotonic()
  traced = step.compiled.step.trace(step.compiled.abstract_state, step.compiled.frozen, step.batch)
  executable = compile_or_tell(traced.lower())
  own, teacher = side_of(traced, executable, step.mesh, chip), None
  if step.teaching is not None:
    mesh, asked = step.teaching
    teacher = side_of(asked, compile_or_tell(asked.lower()), mesh, chip)
  total = own.total
  slowest = max(second for side in (own, teacher) if side for second in side.seconds.values())
  rows = jax.tree.leaves(step.batch)[0].shape[0]
  twice = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((2 * x.shape[0], *x.shape[1:]), x.dtype), step.batch
  )
  doubled = step.compiled.step.lower(step.compiled.abstract_state, step.compiled.frozen, twice)
  ways = math.prod(step.mesh.shape[axis] for axis in BATCH)
  try:
    twice_total = total_bytes(compile_or_tell(doubled))
  except KdjaxError:  # at least as much as there is
    twice_total = max(total, chip.memory) + 1
  return Plan(
    mesh=dict(step.mesh.shape),
    batch_size=rows,
    memory=memory_parts(step, executable),
    total=total,
    split=split_share(step),
    flops=own.flops,
    collectives=own.collectives,
    seconds=own.seconds,
    step_seconds=slowest,
    utilisation=own.seconds["compute"] / slowest,
    largest_batch=largest_batch(rows, total, twice_total, chip.memory, ways),
    compile_seconds=time.monotonic() - started,
    teacher=teacher,
  )


def memory_parts(step: Step, executable: Any) -> dict[str, int]:
  """Part to bytes on each device; together they are `total_bytes`.

  Arguments are measured by their shardings. The compiler does not say what its temporaries are:
  gradients are taken to be as large as the parameters, a chunk of the loss as the logits of both
  sides, and what is left is temporaries (activations, gathered weights).
  """
  compiled, own = step.compiled, executable.memory_analysis()
  state, placed = compiled.abstract_state._asdict(), compiled.state_shardings._asdict()
  sizes = {name: shard_bytes(state[name], placed[name]) for name in state}
  batch = jax.tree.map(lambda _: compiled.batch_sharding, step.batch)
  parts = {
    "parameters": sizes.pop("params"),
    "optimiser": sizes.pop("opt_state", 0),
    "other state": sum(sizes.values()),
    "teacher": shard_bytes(compiled.frozen, compiled.frozen_shardings),
    "batch": shard_bytes(step.batch, batch),
  }
  parts["gradients"] = min(parts["parameters"], own.temp_size_in_bytes)
  parts["loss chunk"] = min(step.loss_chunk, own.temp_size_in_bytes - parts["gradients"])
  return parts | {"temporaries": total_bytes(executable) - sum(parts.values())}


def shard_bytes(shapes: PyTree, shardings: PyTree) -> int:
  """Bytes of a pytree on each device."""
  sizes = jax.tree.map(
    lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, shapes, shardings
  )
  return sum(jax.tree.leaves(sizes))


def split_share(step: Step) -> float:
  """Share of the student's parameters, by bytes, whose shards are smaller than they are."""
  params, placed = step.compiled.abstract_state.params, step.compiled.state_shardings.params
  sizes = [
    (x.size * x.dtype.itemsize, not s.is_fully_replicated)
    for x, s in zip(jax.tree.leaves(params), jax.tree.leaves(placed), strict=True)
  ]
  return sum(size for size, split in sizes if split) / max(sum(size for size, _ in sizes), 1)


def largest_batch(rows: int, once: int, twice: int, memory: int, ways: int) -> int | None:
  """The largest multiple of `ways` rows below a line through the totals of `rows` and twice that.

  None where the totals do not grow; 0 where not even `ways` rows fit.
  """
  if twice <= once:
    return None
  fits = rows + (memory - once) * rows / (twice - once)
  return max(int(fits // ways) * ways, 0)
