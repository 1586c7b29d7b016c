"""Distillation of encoder-decoders on targets that they write, beside those of the data."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from kdjax.errors import KdjaxError
from kdjax.generation import Generation, Sampling
from kdjax.generation.generate import check_generation, continued
from kdjax.models.base import Batch, Model, ModelVars
from kdjax.objectives.base import Objective
from kdjax.programs.base import Program
from kdjax.programs.distill import DistillState, Frozen, distill
from kdjax.programs.evaluators import Evaluator, classifier
from kdjax.teachers.base import Teacher

KEYS = ("tokens", "segment_ids", "decoder_tokens", "decoder_segment_ids", "label", "mask")


def on_policy_targets(
  student: Model,
  objective: Objective,
  tx: optax.GradientTransformation,
  *,
  teacher: Teacher,
  temperature: float = 0.9,
  top_k: int | None = 128,
  top_p: float | None = None,
  eos_ids: Sequence[int] = (),
  ema_decay: float | None = None,
  accumulate: int = 1,
  evaluator: Evaluator = classifier,
) -> Program:
  """`distill` on every batch twice: with targets that the student draws now, and with its own.

  Args:
    student: an encoder-decoder.
    objective: what to minimise on 2B rows, of which `written` [2B] says which have the student's
      targets: those come first. `written_kd` is made for it.
    tx: the optimiser.
    teacher: live; it speaks about targets, as `kdjax.teachers.after_source` makes a decoder do.
    temperature: of the drawing.
    top_k: of the drawing, see `Sampling`.
    top_p: of the drawing.
    eos_ids: tokens that end a target.
    ema_decay: see `distill`.
    accumulate: see `distill`; all targets of a step are drawn at once.
    evaluator: see `distill`.

  Returns:
    The program; its state is that of `distill`, since what is drawn depends on weights, step and
    seed alone.

  Raises:
    KdjaxError: see `distill`; a student that is no encoder-decoder, a teacher that is stored,
      options out of range.

  Reference:
    Elfeki et al., "Return of the Encoder: Maximizing Parameter Efficiency for SLMs", 2025,
    https://arxiv.org/abs/2501.16273; microsoft/encoder-decoder-slm,
    src/mu/train_text2text_by_kd.py. There a data loader draws from the live weights.
  """
  sampling = Sampling(temperature, top_k, top_p)
  if student.decode is None or not hasattr(student.spec, "encoder"):
    raise KdjaxError(
      "config.student does not write targets of sources; use an encoder-decoder, such as seq2seq"
    )
  if teacher is None or not teacher.anywhere:
    raise KdjaxError(
      "config.teacher must be asked about targets that are written now: use one of kind 'frozen'"
    )
  check_generation(student, 1, 1, sampling, eos_ids)
  inner = distill(
    student,
    objective,
    tx,
    teacher=teacher,
    ema_decay=ema_decay,
    accumulate=accumulate,
    evaluator=evaluator,
  )

  def given(batch: Batch) -> dict[str, Array]:
    if missing := [name for name in KEYS if name not in batch]:
      raise KdjaxError(
        f"the batch has no {missing[0]!r}: config.program on_policy_targets wants pairs of texts"
        " (config.data.name = 'text_pairs')"
      )
    return {name: batch[name] for name in KEYS}

  def twice(written: dict[str, Array], own: dict[str, Array]) -> dict[str, Array]:
    rows = jax.tree.map(lambda new, old: jnp.concatenate([new, old]), written, own)
    return rows | {"written": jnp.arange(len(rows["label"])) < len(own["label"])}

  def step(state: DistillState, frozen: Frozen, batch):
    own = given(batch)
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    variables = ModelVars(state.params, state.model_state, frozen.student)
    generation = continued(
      student.decode(jax.lax.stop_gradient(variables)),
      own["tokens"],
      (own["segment_ids"] > 0).sum(1, dtype=jnp.int32),
      rng=jax.random.fold_in(key, 1),
      max_new_tokens=own["label"].shape[1],
      sampling=sampling,
      eos_ids=eos_ids,
    )
    written = own | written_targets(generation, student.spec.start)
    state, metrics = inner.step(state, frozen, twice(jax.lax.stop_gradient(written), own))
    count = jnp.float32(len(generation.lengths))
    return state, metrics | {"tokens_written": (generation.lengths.sum(dtype=jnp.float32), count)}

  def init(rng, batch, start=None):
    own = given(batch)
    sizes = own["tokens"].shape[1], own["label"].shape[1]
    check_generation(student, *sizes, sampling)
    return inner.init(rng, twice(own, own), start)

  return inner._replace(init=init, step=step)


def written_targets(generation: Generation, start: int) -> dict[str, Array]:
  """What was written as targets [B, D]: what a decoder reads, and labels, -1 after the end."""
  tokens = generation.tokens
  learnt = jnp.arange(tokens.shape[1])[None] < generation.lengths[:, None]
  begin = jnp.full_like(tokens[:, :1], start)
  return {
    "decoder_tokens": jnp.where(learnt, jnp.concatenate([begin, tokens[:, :-1]], axis=1), 0),
    "decoder_segment_ids": learnt.astype(jnp.int32),
    "label": jnp.where(learnt, tokens, -1),
    "mask": learnt,
  }
