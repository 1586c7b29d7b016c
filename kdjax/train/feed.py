"""How batches reach a step: onto its mesh, with what other devices compute of them before."""

from __future__ import annotations

from collections import deque
from typing import Any

import jax
from jax.sharding import Mesh

from kdjax.programs.base import Program
from kdjax.train.memory import jit_on
from kdjax.train.mesh import TEACHER_RULES, Rules, batch_sharding, place, shardings

PyTree = Any
# Steps that may be under way: while one runs, other devices work for the next.
AHEAD = 2


class Feed:
  """Puts this process's rows on the mesh; one for each start of a run.

  Calls return before what they started is computed, so that the other devices and the step's work
  at the same time.

  Args:
    program: any. What its `apart` computes, if it has one, is compiled for `other`.
    mesh: that its step runs on.
    other: devices that are not of `mesh`.
    rules: logical axis to mesh axis for what lies there.
  """

  def __init__(
    self, program: Program, mesh: Mesh, other: Mesh | None = None, rules: Rules = TEACHER_RULES
  ):
    self._sharding = batch_sharding(mesh)
    self._under_way: deque[PyTree] = deque()
    self._fill = self._fill_held_out = None
    if program.apart is None:
      return
    self._rows = batch_sharding(other)
    placed = shardings(program.apart.frozen, program.apart.axes, rules, other)
    options = {"in_shardings": (placed, self._rows), "out_shardings": self._rows}
    self._fill = jit_on(other, program.apart.fill, **options)
    self._fill_held_out = jit_on(other, program.apart.fill_held_out, **options)
    self.frozen = program.apart.frozen
    if not any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(self.frozen)):
      self.frozen = jax.device_put(self.frozen, placed)

  def train(self, batch: PyTree) -> PyTree:
    """A training batch as global arrays."""
    return self._placed(batch, self._fill)

  def held_out(self, batch: PyTree) -> PyTree:
    """An evaluation batch as global arrays."""
    return self._placed(batch, self._fill_held_out)

  def shapes(self, batch: PyTree) -> PyTree:
    """Shapes of what `train` makes of a whole batch of such shapes."""
    return self._shapes(batch, self._fill)

  def held_out_shapes(self, batch: PyTree) -> PyTree:
    """Shapes of what `held_out` makes."""
    return self._shapes(batch, self._fill_held_out)

  def trace(self, batch: PyTree) -> Any:
    """What the other devices compute of a training batch of such shapes, as `jax.jit` traces it."""
    return self._fill.trace(self.frozen, batch)

  def stepped(self, result: PyTree) -> None:
    """Told what each step returned: the other devices run a bounded number of steps ahead of it."""
    if self._fill is None:
      return
    self._under_way.append(result)
    if len(self._under_way) > AHEAD:
      jax.block_until_ready(self._under_way.popleft())

  def _placed(self, batch: PyTree, fill: Any) -> PyTree:
    own = place(batch, self._sharding)
    if fill is None:
      return own
    more = fill(self.frozen, place(batch, self._rows))
    return own | jax.device_put(more, self._sharding)

  def _shapes(self, batch: PyTree, fill: Any) -> PyTree:
    if fill is None:
      return batch
    more = jax.eval_shape(fill, self.frozen, batch)
    # Of the step's mesh, not where they are made.
    return batch | jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), more)
