"""Distillation on what the student itself writes, inside the compiled step."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from kdjax.errors import KdjaxError
from kdjax.generation import Sampling
from kdjax.generation.generate import check_generation
from kdjax.generation.mixture import mixture
from kdjax.models.base import Model, ModelVars
from kdjax.objectives.base import Objective
from kdjax.programs import rollouts
from kdjax.programs.base import Program
from kdjax.programs.distill import DistillState, Frozen, distill
from kdjax.programs.evaluators import HEADED, Evaluator, classifier
from kdjax.teachers.base import Teacher


def on_policy(
  student: Model,
  objective: Objective,
  tx: optax.GradientTransformation,
  *,
  teacher: Teacher,
  prompt_length: int,
  fraction: float = 0.5,
  teacher_share: float = 0.0,
  corrections: int = 0,
  keep_data: bool = False,
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float | None = None,
  eos_ids: Sequence[int] = (),
  ema_decay: float | None = None,
  accumulate: int = 1,
  evaluator: Evaluator = classifier,
) -> Program:
  """`distill` on rows of which a part was written by the student, or by it and the teacher.

  Per step one coin is tossed, the same on all hosts. With probability `fraction` the rows' prompts
  are continued token by token and the step is that of `distill` on what was written; else it is on
  the rows as they are. No gradient flows through the drawing of tokens.

  Args:
    student: a causal language model.
    objective: what to minimise. Written rows have `sample_log_probs` beside what rows of text have,
      for objectives that read them; rows of data have zeros there.
    tx: the optimiser.
    teacher: live, since it is asked about texts that nobody could have stored.
    prompt_length: P, tokens of a row that are kept, see `rollouts.beginnings`; what follows is
      written anew, to the length of the rows.
    fraction: lambda of GKD, in [0, 1]; 1 is purely on-policy.
    teacher_share: in [0, 1]; tokens are drawn from this share of the teacher's distribution and the
      rest of the student's. At 1 the teacher writes alone: fresh texts of its own at every step.
    corrections: how often each text's worst token is replaced by the teacher's choice, and what
      follows it written anew (see `kdjax.programs.correction`); each costs as much as the writing
      and a pass of both sides.
    keep_data: every step has both: the written rows and after them the rows of data, twice the
      batch. `batch["written"]` [2B] tells an objective which is which. `fraction` must be 1.
    temperature: of the drawing.
    top_k: of the drawing, see `Sampling`.
    top_p: of the drawing.
    eos_ids: tokens that end a text.
    ema_decay: see `distill`.
    accumulate: see `distill`; all rows of a step are written at once.
    evaluator: see `distill`.

  Returns:
    The program; its state is that of `distill`, since what is written depends on weights, step and
    seed alone.

  Raises:
    KdjaxError: see `distill`; a teacher that is stored or cannot write where it should; options out
      of range.

  Reference:
    Agarwal et al., "On-Policy Distillation of Language Models: Learning from Self-Generated
    Mistakes", ICLR 2024, algorithm 1, https://arxiv.org/abs/2306.13649. There one coin a step, as
    here; TRL's trainer tosses one for each process and micro-batch.
  """
  sampling = Sampling(temperature, top_k, top_p)
  check_writing(student, teacher, prompt_length, sampling, eos_ids)
  check_corrections(student, teacher, corrections)
  for name, value in (("fraction", fraction), ("teacher_share", teacher_share)):
    if not 0 <= value <= 1:
      raise KdjaxError(f"config.program.{name} = {value} must lie in [0, 1]")
  if teacher_share and teacher.decode is None:
    raise KdjaxError(
      f"config.program.teacher_share = {teacher_share} lets the teacher draw tokens, and"
      " config.teacher is none that can write (a single live causal language model); set it to 0"
    )
  if keep_data and fraction < 1:
    raise KdjaxError(
      f"config.program.fraction = {fraction} with keep_data: every step then has both kinds of"
      " rows; set fraction = 1"
    )
  inner = distill(
    student,
    objective,
    tx,
    teacher=teacher,
    ema_decay=ema_decay,
    accumulate=accumulate,
    evaluator=evaluator,
  )

  def decoding(state: DistillState, frozen: Frozen):
    if teacher_share == 1:
      return teacher.decode(frozen.teacher)
    variables = ModelVars(state.params, state.model_state, frozen.student)
    own = student.decode(jax.lax.stop_gradient(variables))
    return mixture(own, teacher.decode(frozen.teacher), teacher_share) if teacher_share else own

  def step(state: DistillState, frozen: Frozen, batch):
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    coin, draws = jax.random.split(jax.random.fold_in(key, 1))

    given = as_written(batch)

    def written():
      rows = rollouts.write(
        decoding(state, frozen),
        rollouts.beginnings(batch, prompt_length),
        batch["tokens"].shape[1],
        rng=draws,
        sampling=sampling,
        eos_ids=eos_ids,
        corrections=corrections,
        tell=teller(student, teacher, state, frozen),
      )
      return {"weight": jnp.ones_like(given["weight"])} | rows if "weight" in given else rows

    on = jax.random.uniform(coin) < fraction
    if fraction == 1:
      rows = written()
    else:
      rows = jax.lax.cond(on, written, lambda: given)
    if keep_data:
      rows = jax.tree.map(lambda new, old: jnp.concatenate([new, old]), rows, given)
      rows["written"] = jnp.arange(len(rows["tokens"])) < len(batch["tokens"])
    state, metrics = inner.step(state, frozen, rows)
    return state, metrics | length_metrics(rows, on)

  def init(rng, batch, start=None):
    rows = as_written(batch)
    if keep_data:
      rows = jax.tree.map(lambda x: jnp.concatenate([x, x]), rows)
      rows["written"] = jnp.zeros(len(rows["tokens"]), bool)
    check_room(student, prompt_length, batch)
    return inner.init(rng, rows, start)

  return inner._replace(init=init, step=step)


def teller(student: Model, teacher: Teacher, state: DistillState, frozen: Frozen) -> rollouts.Tell:
  """Asks both sides about rows that were written, as `rollouts.write` wants it."""

  def tell(rows):
    variables = ModelVars(state.params, state.model_state, frozen.student)
    own, _ = student.apply(jax.lax.stop_gradient(variables), rows, taps=HEADED)
    return own, teacher.apply(frozen.teacher, state.teacher_state, rows, taps=HEADED)

  return tell


def as_written(batch) -> dict[str, jax.Array]:
  """Rows of data with the keys of written ones, and no others."""
  label = batch["label"]
  names = ("tokens", "label", "mask", *(["weight"] if "weight" in batch else []))
  given = {name: batch[name] for name in names}
  places = jnp.broadcast_to(jnp.arange(label.shape[1], dtype=jnp.int32), label.shape)
  return given | {
    "segment_ids": batch.get("segment_ids", jnp.ones_like(label)),
    "positions": batch.get("positions", places),
    "sample_log_probs": jnp.zeros(label.shape, jnp.float32),
  }


def length_metrics(rows, on: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
  """How many steps were on-policy, and how many tokens a row has to learn."""
  learnt = (rows["label"] >= 0) & rows["mask"]
  used = learnt.any(1)
  one = jnp.float32(1)
  return {
    "on_policy": (on.astype(jnp.float32), one),
    "tokens_learnt": (learnt.sum(dtype=jnp.float32), used.sum(dtype=jnp.float32)),
  }


def check_writing(
  student: Model, teacher: Teacher | None, prompt_length: int, sampling: Sampling, eos_ids
) -> None:
  """Raises KdjaxError for a student that does not write and a teacher that cannot be asked."""
  if teacher is None:
    raise KdjaxError("config.teacher is empty; on-policy distillation needs a teacher")
  if not teacher.anywhere:
    raise KdjaxError(
      "config.teacher is a cache, which holds what the teacher said about the texts in it; the"
      " student writes new ones at every step. Use config.teacher.kind = 'frozen', or"
      " config.program.name = 'distill' with the cache"
    )
  if student.spec is None or student.decode is None or hasattr(student.spec, "encoder"):
    raise KdjaxError(
      "config.student does not continue text, which on-policy distillation needs; use a causal"
      " language model, such as decoder or pretrained"
    )
  if not isinstance(prompt_length, int) or prompt_length < 1:
    raise KdjaxError(f"config.program.prompt_length = {prompt_length!r}; wanted an integer >= 1")
  check_generation(student, prompt_length, 1, sampling, eos_ids)


def check_corrections(student: Model, teacher: Teacher, corrections: int) -> None:
  """Raises KdjaxError for corrections that there cannot be."""
  if not isinstance(corrections, int) or corrections < 0:
    raise KdjaxError(f"config.program.corrections = {corrections!r}; wanted an integer >= 0")
  if not corrections:
    return
  if not teacher.taps >= HEADED:
    raise KdjaxError(
      f"config.program.corrections = {corrections} asks config.teacher for the taps"
      f" {sorted(HEADED)}, and it gives {sorted(teacher.taps)}; use a single live teacher, or 0"
    )
  if teacher.num_classes != student.num_classes:
    raise KdjaxError(
      f"config.program.corrections = {corrections} puts the teacher's tokens into the student's"
      f" text: config.student has {student.num_classes} of them and config.teacher"
      f" {teacher.num_classes}; use models of one tokenizer, or 0"
    )


def check_room(student: Model, prompt_length: int, batch) -> None:
  """Raises KdjaxError where rows leave nothing to be written after the prompt."""
  length = batch["tokens"].shape[1]
  if prompt_length >= length:
    raise KdjaxError(
      f"config.program.prompt_length = {prompt_length} leaves nothing to write of"
      f" config.data.sequence_length = {length}; shorten the one or lengthen the other"
    )
  check_generation(student, prompt_length, length - prompt_length, Sampling())
