"""A run without arrays: its functions on their mesh, and the shapes of what they read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from kdjax.models.base import Model
from kdjax.programs.base import Program
from kdjax.teachers import Teacher
from kdjax.train.build import build_objective, build_program
from kdjax.train.config import Config
from kdjax.train.domains import follow_domains
from kdjax.train.feed import Feed
from kdjax.train.loop import Compiled, compile_program
from kdjax.train.mesh import (
  batch_sharding,
  check_batch,
  check_sequence,
  meshes_of,
  moment_rules,
  student_rules,
  teacher_rules,
  whole_shapes,
)
from kdjax.train.pretrained import build_teacher
from kdjax.train.streams import load_data, open_data
from kdjax.train.vocabulary import check_vocabularies

PyTree = Any


class Outline(NamedTuple):
  """What a run would do.

  Attributes:
    mesh: where.
    other: where a teacher on devices of its own is.
    program: what it trains.
    student: the model.
    feed: how batches reach it.
    compiled: its functions.
    batch: shapes of a whole training batch, as the step reads it.
    held_out: the same of an evaluation batch.
  """

  mesh: Mesh
  other: Mesh | None
  program: Program
  student: Model
  feed: Feed
  compiled: Compiled
  batch: PyTree
  held_out: PyTree


def teacher_shapes(config: Config) -> Teacher | None:
  """The teacher of a config by its shapes, of which nothing is read; None where it has none.

  Raises:
    KdjaxError: one that does not exist, or reads other tokens than the objective pairs.
  """
  if not config["teacher"]:
    return None
  data = load_data(config["data"]).whole
  check_vocabularies(config, data, build_objective(config["objective"], data=data))
  return build_teacher(config, data, abstract=True)


def outline(
  config: Config, teacher: Teacher | None, devices: Sequence[Any] | None = None
) -> Outline:
  """Builds one run and lays it out; nothing is computed.

  Args:
    config: of the run alone.
    teacher: its own, such as `teacher_shapes`.
    devices: to lie on, which need not be there; JAX's own where None.

  Raises:
    KdjaxError: whatever is wrong with the config, its data or the mesh.
  """
  mesh, teacher_mesh = meshes_of(config, devices)
  check_batch(config["batch_size"], mesh)
  check_sequence(config["data"], mesh)
  check_batch(config["eval"]["batch_size"], mesh, field="config.eval.batch_size")
  data = load_data(config["data"])
  program, student = build_program(config, data.whole, teacher)
  read = open_data(config, data, mesh, program.streams, prepare_on=program.prepare_on)
  read = follow_domains(config, data, program, read, mesh)
  own = jax.eval_shape(
    lambda: jax.tree.map(jnp.asarray, (next(read.stream), next(iter(read.evaluation()))))
  )
  # The devices may be those of several hosts, of which this process reads for one.
  sizes = config["batch_size"], config["eval"]["batch_size"]
  batch, held_out = (
    whole_shapes(part, batch_sharding(mesh), size) for part, size in zip(own, sizes, strict=True)
  )
  rules = teacher_rules(config["teacher"].get("rules", {}))
  feed = Feed(program, mesh, teacher_mesh, rules)
  batch, held_out = feed.shapes(batch), feed.held_out_shapes(held_out)
  compiled = compile_program(
    program,
    mesh,
    batch,
    rules=rules,
    own_rules=student_rules(config["student_rules"]),
    moment_rules=moment_rules(config),
  )
  return Outline(mesh, teacher_mesh, program, student, feed, compiled, batch, held_out)
