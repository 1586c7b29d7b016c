"""The device mesh, and where every array lies on it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kdjax.errors import KdjaxError
from kdjax.resolve import hint

PyTree = Any
LOG = logging.getLogger("kdjax")
Rules = Mapping[str, str | tuple[str, ...] | None]
AXES = ("data", "fsdp", "sequence", "tensor")
BATCH = ("data", "fsdp")

# Logical axis of a weight to mesh axis. The student trains with its weights gathered layer by
# layer (ZeRO-3) and its wide axes split; a frozen teacher lies the same way by default.
STUDENT_RULES: Rules = {
  "embed": "fsdp",
  "mlp": "tensor",
  "heads": "tensor",
  "kv_heads": "tensor",
  "vocab": "tensor",
  "head_dim": None,
  "layers": None,
  "norm": None,
}
TEACHER_RULES = STUDENT_RULES


def make_mesh(
  *,
  data: int = -1,
  fsdp: int = 1,
  sequence: int = 1,
  tensor: int = 1,
  devices: Sequence[Any] | None = None,
) -> Mesh:
  """A mesh with the axes data, fsdp, sequence and tensor over the first devices.

  Args:
    data: devices along which batches are split and weights repeated; -1 fills what is left.
    fsdp: devices along which batches and weights are both split; may be the one that is -1.
    sequence: devices along which the texts of a batch are split, for long ones: each has a part of
      every text and the keys and values of all; may be the one that is -1.
    tensor: devices along which wide weight axes are split; may be the one that is -1.
    devices: to take instead of JAX's own.

  Returns:
    A mesh of Auto axes. On TPUs neighbours along an axis are neighbours in the slice where that can
    be. A smaller product than the number of devices uses the first ones, in a single process only.

  Raises:
    KdjaxError: sizes that are not positive or -1, or more than there are devices.
  """
  sizes = {"data": data, "fsdp": fsdp, "sequence": sequence, "tensor": tensor}
  devices = jax.devices() if devices is None else devices
  bad = {name: size for name, size in sizes.items() if size != -1 and size < 1}
  if bad or sum(size == -1 for size in sizes.values()) > 1:
    raise KdjaxError(
      f"config.mesh = {sizes}: every size must be positive, and at most one may be -1 (fill)"
    )
  known = math.prod(size for size in sizes.values() if size != -1)
  sizes = {
    name: max(len(devices) // known, 1) if size == -1 else size for name, size in sizes.items()
  }
  wanted = math.prod(sizes.values())
  if wanted > len(devices):
    raise KdjaxError(
      f"config.mesh = {sizes} needs {wanted} devices, but {len(devices)} are there; lower a size,"
      " or set one to -1 to fill what there is"
    )
  if jax.process_count() > 1 and wanted != len(devices):
    raise KdjaxError(
      f"config.mesh = {sizes} uses {wanted} of {len(devices)} devices; with several processes"
      " every device must be used"
    )
  types = (AxisType.Auto,) * len(AXES)
  try:
    return jax.make_mesh(tuple(sizes.values()), AXES, types, devices=devices[:wanted])
  except NotImplementedError:  # axes that do not fit those of the slice
    grid = np.asarray(devices[:wanted]).reshape(tuple(sizes.values()))
    return Mesh(grid, AXES, axis_types=types)


def own_sizes(config: Mapping[str, Any]) -> dict[str, int]:
  """The sizes of `config.teacher.mesh`; {} where the teacher has no devices of its own."""
  sizes = config["teacher"].get("mesh", {})
  return {axis: size or 1 for axis, size in sizes.items()} if any(sizes.values()) else {}


def meshes_of(
  config: Mapping[str, Any], devices: Sequence[Any] | None = None
) -> tuple[Mesh, Mesh | None]:
  """The mesh of `config.mesh`, and of `config.teacher.mesh` where the teacher has one of its own.

  The teacher takes the last devices, the student the first ones or, with a size of -1, the others.

  Args:
    config: the whole.
    devices: to take instead of JAX's own.

  Raises:
    KdjaxError: more than there are together, or a teacher's own mesh in a job of several processes.
  """
  devices = jax.devices() if devices is None else devices
  sizes = own_sizes(config)
  if not sizes:
    return make_mesh(**config["mesh"], devices=devices), None
  wanted = math.prod(sizes.values())
  if min(sizes.values()) < 1 or wanted >= len(devices):
    raise KdjaxError(
      f"config.teacher.mesh = {sizes} takes {wanted} of {len(devices)} devices; every size must be"
      " positive (all 0: the student's devices), and at least one device be left for the student"
    )
  if jax.process_count() > 1:
    raise KdjaxError(
      "config.teacher.mesh puts the teacher on devices of its own in a job of one process; in one"
      " of several, lay it out by config.teacher.rules"
    )
  own, theirs = devices[:-wanted], devices[-wanted:]
  return make_mesh(**config["mesh"], devices=own), make_mesh(**sizes, devices=theirs)


def teacher_rules(overrides: Rules) -> Rules:
  """`TEACHER_RULES` with `config.teacher.rules` put in; raises as `student_rules` does."""
  return _changed(TEACHER_RULES, overrides, "config.teacher.rules")


def student_rules(overrides: Rules) -> Rules:
  """`STUDENT_RULES` with the entries of `config.student_rules` put in.

  Raises:
    KdjaxError: a logical or mesh axis that does not exist.
  """
  return _changed(STUDENT_RULES, overrides, "config.student_rules")


def moment_rules(config: Mapping[str, Any]) -> Rules:
  """Where the optimiser's moments lie: as the student, with `config.optimizer_rules` put in."""
  own = student_rules(config["student_rules"])
  return _changed(own, config["optimizer_rules"], "config.optimizer_rules")


def row_axes_of(rules: Rules) -> tuple[str, ...]:
  """The axes that split a model's rows: a batch's, and tensor where none of its weights are split.

  A student with `{"mlp": None, "heads": None, "kv_heads": None, "vocab": None}` is then
  data-parallel over all devices, beside a teacher whose weights tensor splits.
  """
  used = {axis for axes in rules.values() for axis in np.atleast_1d(axes or ())}
  return BATCH if "tensor" in used else (*BATCH, "tensor")


def _changed(rules: Rules, overrides: Rules, field: str) -> Rules:
  for name, axis in overrides.items():
    if name not in rules:
      raise KdjaxError(f"{field}.{name} does not exist{hint(name, rules)}")
    wanted = axis if isinstance(axis, list | tuple) else (axis,)
    if unknown := [each for each in wanted if each not in (*AXES, None)]:
      raise KdjaxError(
        f"{field}.{name} = {axis!r}: {unknown} is no axis of the mesh, which"
        f" has {', '.join(AXES)}; None repeats the weights along all"
      )
  return {**rules, **overrides}


def shardings(shapes: PyTree, axes: PyTree, rules: Rules, mesh: Mesh) -> PyTree:
  """A `NamedSharding` per leaf from logical axis names.

  A mesh axis that does not divide a dimension, or that an earlier dimension already uses, is left
  out there: the leaf is then repeated along it.

  Args:
    shapes: pytree of arrays or `ShapeDtypeStruct`s.
    axes: the same structure with `PartitionSpec` leaves of logical names; may be shorter than the
      leaf's rank.
    rules: logical name to mesh axis, tuple of mesh axes, or None.
    mesh: the mesh.

  Returns:
    The same structure with `NamedSharding` leaves.
  """

  def one(path, leaf, names):
    used, spec = set(), []
    for size, name in zip(leaf.shape, tuple(names), strict=False):
      wanted = rules.get(name) if name is not None else None
      wanted = (wanted,) if isinstance(wanted, str) else tuple(wanted or ())
      kept = tuple(axis for axis in wanted if axis not in used and mesh.shape[axis] > 1)
      if kept and size % math.prod(mesh.shape[axis] for axis in kept):
        LOG.debug("%s: %d does not divide over %s; repeated", path, size, kept)
        kept = ()
      used.update(kept)
      spec.append(kept[0] if len(kept) == 1 else kept or None)
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree_util.tree_map_with_path(one, shapes, axes)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over data and fsdp, everything else whole."""
  return NamedSharding(mesh, PartitionSpec(BATCH))


def check_sequence(data: Mapping[str, Any], mesh: Mesh) -> None:
  """Raises KdjaxError unless the texts of `config.data` divide over the mesh's sequence axis."""
  parts, length = mesh.shape["sequence"], data.get("sequence_length")
  if parts > 1 and (length is None or length % parts):
    told = "are no texts" if length is None else f"have sequence_length = {length}"
    raise KdjaxError(
      f"config.mesh.sequence = {parts} splits texts into equal parts, but config.data {told}; take"
      " a length that it divides, or 1"
    )


def check_batch(batch_size: int, mesh: Mesh, *, field: str = "config.batch_size") -> None:
  """Raises KdjaxError unless the global batch divides over the mesh's batch axes."""
  ways = math.prod(mesh.shape[axis] for axis in BATCH)
  if batch_size < 1 or batch_size % ways:
    raise KdjaxError(
      f"{field} = {batch_size} is not divisible by the {ways} devices along config.mesh.data x"
      f" config.mesh.fsdp = {mesh.shape['data']} x {mesh.shape['fsdp']}; make it a multiple of"
      f" {ways}, or the mesh smaller"
    )


def data_shard(sharding: NamedSharding, batch_size: int) -> tuple[int, int]:
  """(index, count) of this process's share of every batch.

  Processes whose devices hold the same rows read the same share, so this is not the process index.
  """
  rows: dict[int, set] = {}
  for device, (slices, *_) in sharding.devices_indices_map((batch_size,)).items():
    start, stop, _ = slices.indices(batch_size)
    rows.setdefault(device.process_index, set()).add((start, stop))
  shares = sorted({tuple(sorted(share)) for share in rows.values()})
  return shares.index(tuple(sorted(rows[jax.process_index()]))), len(shares)


def whole_shapes(batch: PyTree, sharding: NamedSharding, batch_size: int) -> PyTree:
  """Shapes of the batch of all processes together, from this process's rows of it."""
  _, count = data_shard(sharding, batch_size)
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((x.shape[0] * count, *x.shape[1:]), x.dtype), batch
  )


def place(batch: PyTree, sharding: NamedSharding) -> PyTree:
  """This process's rows as part of global arrays."""
  if jax.process_count() == 1:
    return jax.device_put(batch, sharding)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
