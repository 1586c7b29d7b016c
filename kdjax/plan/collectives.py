"""What a compiled program sends between devices, read from its optimised text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}


class Collective(NamedTuple):
  """One collective operation.

  Attributes:
    kind: one of `KINDS`.
    axes: the mesh axes along which the devices of a group lie.
    group: how many devices a group has.
    times: how often a step runs it.
    bytes: of the whole array once: gathered, or before it is scattered or after it is reduced.
  """

  kind: str
  axes: tuple[str, ...]
  group: int
  times: int
  bytes: int

  @property
  def sent(self) -> float:
    """Bytes that each device sends in a step, by the ring algorithms."""
    share = 1.0 if self.kind == "collective-permute" else (self.group - 1) / self.group
    return (2 if self.kind == "all-reduce" else 1) * share * self.bytes * self.times


class _Line(NamedTuple):
  name: str
  shape: str
  op: str
  operands: tuple[str, ...]
  text: str


def collectives(text: str, mesh: Mesh) -> list[Collective]:
  """The collectives of a step in the order of the program.

  An all-reduce of which every device keeps only its own slice is called a reduce-scatter: compilers
  for accelerators make one of the two, that for CPUs does not. What stands in a loop counts as
  often as the loop runs; where that is not known, once. Of branches all are counted. One that is
  under way while other things are computed stands in several fusions, and counts once.

  Args:
    text: `Compiled.as_text()` for the devices of `mesh`.
    mesh: names the axes.
  """
  programs, entry = _computations(text)
  return list(_walk(programs, entry, 1, mesh, met=set()))


def by_kind(found: Sequence[Collective]) -> dict[tuple[str, tuple[str, ...]], int]:
  """(kind, axes) to the bytes of all arrays, each as often as it is sent."""
  total: dict[tuple[str, tuple[str, ...]], int] = {}
  for each in found:
    key = each.kind, each.axes
    total[key] = total.get(key, 0) + each.bytes * each.times
  return total


def _computations(text: str) -> tuple[dict[str, list[_Line]], str]:
  programs: dict[str, list[_Line]] = {}
  entry, own = "", None
  for line in text.splitlines():
    if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
      own = programs.setdefault(head[2], [])
      entry = head[2] if head[1] else entry
    elif own is not None and (
      found := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(([^)]*)\)", line)
    ):
      own.append(_Line(found[1], found[2], found[3], tuple(_names(found[4])), line))
  return programs, entry


def _names(text: str) -> list[str]:
  return re.findall(r"%([\w.\-]+)", text)


def _walk(
  programs: Mapping[str, list[_Line]],
  name: str,
  times: int,
  mesh: Mesh,
  *,
  met: set[str],
  fused: bool = False,
) -> Iterator[Collective]:
  """The collectives of a computation; `met` are the channels of those in fusions so far."""
  for line in programs[name]:
    kind = line.op.removesuffix("-start")
    if line.op in ("while", "call", "conditional", "fusion", "async-start"):
      inner = times * _trips(programs, line) if line.op == "while" else times
      called = re.findall(
        r"(?:body|to_apply|branch_computations|calls|\w+_computation)=(\{[^}]*\}|%[\w.\-]+)",
        line.text,
      )
      for each in [name for names in called for name in _names(names)]:
        inside = fused or line.op == "fusion"
        yield from _walk(programs, each, inner, mesh, met=met, fused=inside)
    elif kind in KINDS:
      channel = re.search(r"channel_id=(\d+)", line.text)
      if fused and channel:
        if channel[1] in met:
          continue
        met.add(channel[1])
      yield from _read(programs, programs[name], line, times, mesh)


def _trips(programs: Mapping[str, list[_Line]], loop: _Line) -> int:
  """How often a loop runs: said by the compiler, or up to the constant of its condition; else 1."""
  if told := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.text):
    return int(told[1])
  own = programs[re.search(r"condition=%([\w.\-]+)", loop.text)[1]]
  constants = {
    line.name: int(value[1])
    for line in own
    if (value := re.search(r" constant\((\d+)\)", line.text))
  }
  for line in own:
    if line.op == "compare" and "direction=LT" in line.text and line.operands[1] in constants:
      return constants[line.operands[1]]
  return 1


def _read(
  programs: Mapping[str, list[_Line]], own: list[_Line], line: _Line, times: int, mesh: Mesh
) -> Iterator[Collective]:
  kind, starts = line.op.removesuffix("-start"), line.op.endswith("-start")
  groups = _groups(line.text, mesh.size)
  group = 2 if kind == "collective-permute" else groups.shape[1]
  if group < 2:
    return
  axes = _axes(groups, mesh)
  shapes = _shapes(line.shape)
  if kind != "all-reduce":
    if starts:  # its operands, its results, and for permutations two counters
      shapes = shapes[1:2] if kind == "collective-permute" else shapes[len(shapes) // 2 :]
    scale = group if kind == "reduce-scatter" else 1
    yield Collective(kind, axes, group, times, scale * sum(map(_bytes, shapes)))
    return
  sizes = {"all-reduce": 0, "reduce-scatter": 0}
  parts = [(line.name, shapes[0])] if len(shapes) == 1 else []
  ends = [each.name for each in own if each.op == "all-reduce-done" and line.name in each.operands]
  for user in own if len(shapes) > 1 else ():
    if user.op == "get-tuple-element" and user.operands[0] in (line.name, *ends):
      parts.append((user.name, user.shape))
  for name, shape in parts:
    size = _bytes(shape)
    kept = _kept(programs, own, name, size // group)
    sizes["reduce-scatter" if kept else "all-reduce"] += size
  for kind, size in sizes.items():
    if size:
      yield Collective(kind, axes, group, times, size)


def _kept(programs: Mapping[str, list[_Line]], own: list[_Line], name: str, size: int) -> bool:
  """Whether all that is read of a value is one slice of so many bytes."""
  users = [line for line in own if name in line.operands]
  if not users:
    return False
  for user in users:
    if user.op in ("bitcast", "copy", "transpose", "all-reduce-done"):
      if not _kept(programs, own, user.name, size):
        return False
    elif user.op == "dynamic-slice":
      if _bytes(user.shape) != size:
        return False
    elif user.op == "fusion":
      inside = programs[re.search(r"calls=%([\w.\-]+)", user.text)[1]]
      place = f"parameter({user.operands.index(name)})"
      parameter = next(line for line in inside if place in line.text)
      if not _kept(programs, inside, parameter.name, size):
        return False
    else:
      return False
  return True


def _shapes(text: str) -> list[str]:
  return re.findall(r"[a-z]\w*\[[\d,]*\]", text)


def _bytes(shape: str) -> int:
  dtype, sizes = re.match(r"([a-z]\w*)\[([\d,]*)\]", shape).groups()
  bits = _BITS.get(dtype) or int(re.search(r"\d+", dtype)[0])
  return math.ceil(math.prod(int(size) for size in sizes.split(",") if size) * bits / 8)


def _groups(text: str, devices: int) -> np.ndarray:
  """Devices [groups, members] that exchange with each other, in any of the forms of the text."""
  if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", text):
    return np.array(re.findall(r"(\d+),(\d+)", pairs[1]), int)
  if lists := re.search(r"replica_groups=\{(\{.*?\})\}", text):
    return np.array([each.split(",") for each in re.findall(r"\{([\d,]+)\}", lists[1])], int)
  if iota := re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", text):
    return _iota(iota[2]).reshape(_ints(iota[1]))
  named = re.search(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\[[^)]*\)?)\))? \{([^}]*)\}", text
  )
  if named is None:  # all of them
    return np.arange(devices)[None]
  sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
  used = {
    name: (int(before or 1), int(size or sizes[name]))
    for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", named[3])
  }
  # Part of an axis is a factor of it, so each axis is written as (before, part, after).
  shape, moved = [], []
  for name, size in sizes.items():
    before, part = used.get(name, (size, 1))
    if name in used:
      moved.append(len(shape) + 1)
    shape += [before, part, size // (before * part)]
  grid = (_iota(named[2]) if named[2] else np.arange(math.prod(shape))).reshape(shape)
  members = math.prod(shape[place] for place in moved)
  return np.moveaxis(grid, moved, range(-len(moved), 0)).reshape(-1, members)


def _iota(text: str) -> np.ndarray:
  """ "[4,2]T(1,0)" as an array: 0 to 7 in 4 rows, transposed."""
  sizes, order = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()
  grid = np.arange(math.prod(_ints(sizes))).reshape(_ints(sizes))
  return grid.transpose(_ints(order)) if order else grid


def _ints(text: str) -> list[int]:
  return [int(each) for each in text.split(",")]


def _axes(groups: np.ndarray, mesh: Mesh) -> tuple[str, ...]:
  """Along which axes of the mesh the members of a group differ."""
  places = np.stack(np.unravel_index(groups, tuple(mesh.shape.values())))
  varies = (places != places[..., :1]).any((1, 2))
  return tuple(name for name, differs in zip(mesh.axis_names, varies, strict=True) if differs)
