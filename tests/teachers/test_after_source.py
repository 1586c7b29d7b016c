"""A decoder told about targets: its rows, its padding, and the official alignment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses, models, objectives, teachers
from kdjax.errors import KdjaxError
from kdjax.objectives import total
from kdjax.outputs import Outputs
from kdjax.teachers.after_source import joined
from kdjax.teachers.base import Teacher
from tests.losses.checks import reference
from tests.objectives.helpers import applied

STORED = reference("encoder_decoder_slm")
SOURCE, TARGET = STORED["encoder_input_ids"].shape[1], STORED["targets"].shape[1]
LEARNT = np.arange(TARGET) < STORED["written_lengths"][:, None]
ROWS = {
  "tokens": STORED["encoder_input_ids"],
  "segment_ids": STORED["encoder_attention_mask"],
  "decoder_tokens": STORED["kd_student_decoder_input_ids"] * LEARNT,
  "decoder_segment_ids": LEARNT.astype(np.int32),
  "label": np.where(LEARNT, STORED["written"], -1),
  "mask": LEARNT,
}


def told(logits):
  """A teacher whose whole logits are given."""

  def apply(frozen, state, batch, *, taps):
    assert batch["tokens"].shape == logits.shape[:2]
    return Outputs(logits=jnp.asarray(logits))

  return Teacher(apply=apply, taps=frozenset({"logits"}), num_classes=logits.shape[-1])


def of_official(classes):
  """The official teacher's logits, of a text that is a token shorter, cut to the vocabulary."""
  return teachers.after_source(told(STORED["teacher"][:, :-1, :classes]))


def test_it_reads_what_the_official_teacher_reads():
  made = joined(ROWS)
  where = STORED["kd_teacher_attention_mask"][:, :-1]
  # A target's last token, after which nothing is predicted, is not read here.
  np.testing.assert_array_equal(made["segment_ids"][:, :SOURCE], where[:, :SOURCE])
  ids = np.where(made["segment_ids"], STORED["kd_teacher_input_ids"][:, :-1], 0)
  np.testing.assert_array_equal(made["tokens"], ids)
  ends = SOURCE + STORED["written_lengths"] - 1
  np.testing.assert_array_equal(
    made["segment_ids"].sum(1), where[:, :SOURCE].sum(1) + ends - SOURCE
  )


def test_the_loss_is_the_official_one_where_padding_counts_as_it_does_there():
  classes = STORED["student_kd"].shape[-1]
  out = of_official(classes).apply((), (), ROWS, taps=frozenset({"logits"}))
  kd = losses.forward_kl(STORED["student_kd"], out.logits)
  np.testing.assert_allclose(kd.mean(), STORED["kd"], rtol=1e-5)
  gold = STORED["targets"]
  batch = {
    "label": np.concatenate([np.zeros_like(gold), np.where(gold == 0, -1, gold)]),
    "mask": np.ones((8, TARGET), bool),
    "written": np.arange(8) < 4,
  }
  teacher = Outputs(logits=jnp.concatenate([out.logits, jnp.zeros_like(out.logits)]))

  def loss(on_written, on_gold):
    student = Outputs(logits=jnp.concatenate([on_written, on_gold]))
    return total(applied(objectives.written_kd(), student, teacher, batch)[0])

  value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(
    STORED["student_kd"], STORED["student_ce"]
  )
  np.testing.assert_allclose(value, STORED["loss"], rtol=1e-5)
  for found, name in zip(gradients, ("student_kd_grad", "student_ce_grad"), strict=True):
    np.testing.assert_allclose(found, STORED[name], rtol=1e-4, atol=1e-7)


def test_rows_are_those_that_predict_the_target():
  length = SOURCE + TARGET - 1
  place = np.broadcast_to(np.eye(length, dtype=np.float32), (4, length, length))
  out = teachers.after_source(told(place)).apply((), (), ROWS, taps=frozenset({"logits"}))
  np.testing.assert_array_equal(out.logits.argmax(-1), [np.arange(SOURCE - 1, length)] * 4)


def test_it_says_what_the_decoder_says_of_the_text_without_padding():
  model = models.decoder(num_classes=11, width=8, depth=2, heads=2)
  weights = jax.tree.map(lambda a: 4 * a, model.init(jax.random.key(0)))
  teacher = teachers.after_source(teachers.frozen(model, weights))
  run = jax.jit(
    lambda rows: teacher.apply(teacher.frozen, (), rows, taps=frozenset({"logits"})).logits
  )
  found = run(ROWS)
  for row, (source, length) in enumerate(
    zip(ROWS["segment_ids"].sum(1), STORED["written_lengths"], strict=True)
  ):
    text = [*ROWS["tokens"][row, :source], *STORED["written"][row, : length - 1]]
    alone = model.apply(weights, {"tokens": jnp.array([text])})[0].logits[0, source - 1 :]
    np.testing.assert_allclose(found[row, :length], alone, atol=1e-4)
  # What the padding is does not matter.
  noisy = ROWS | {"tokens": np.where(ROWS["segment_ids"] > 0, ROWS["tokens"], 9)}
  noisy["decoder_tokens"] = np.where(LEARNT, ROWS["decoder_tokens"], 7)
  np.testing.assert_array_equal(np.asarray(run(noisy))[LEARNT], np.asarray(found)[LEARNT])
  headed = teacher.apply(teacher.frozen, (), ROWS, taps=frozenset({"hidden", "head"}))
  np.testing.assert_allclose(headed.head.logits(headed.hidden), found, atol=1e-5)


def test_other_rows_and_teachers_are_told():
  with pytest.raises(KdjaxError, match="no 'decoder_tokens'"):
    joined({"tokens": ROWS["tokens"], "segment_ids": ROWS["segment_ids"]})
  stored = Teacher(apply=None, taps=frozenset({"signal"}), num_classes=3)
  with pytest.raises(KdjaxError, match="a live causal language model"):
    teachers.after_source(stored)
