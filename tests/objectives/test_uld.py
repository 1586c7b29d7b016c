"""ULD: the official numbers, whole and in chunks, and what packing and padding must not change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.objectives import Outputs, total, uld
from kdjax.objectives.sequences import counterparts, mean_weights, sides
from kdjax.outputs import Head
from tests.losses.checks import CLOSE, jit, reference

STORED = reference("uld")


def outputs(logits, chunked):
  """A model of these logits: whole, or as what a head of the identity reads."""
  if not chunked:
    return Outputs(logits=logits)
  return Outputs(hidden=logits, head=Head(jnp.eye(logits.shape[-1])))


def batch_of(stored):
  """What the official code reads, as rows: labels stand where they are predicted."""
  batch = {}
  for side, prefix in (("student", ""), ("teacher", "teacher_")):
    labels = stored[f"{side}_labels"]
    label = np.pad(labels[:, 1:], [(0, 0), (0, 1)], constant_values=-100)
    batch[prefix + "label"] = jnp.asarray(np.where(label < 0, -1, label), jnp.int32)
    batch[prefix + "mask"] = batch[prefix + "label"] >= 0
    batch[prefix + "segment_ids"] = jnp.ones(label.shape, jnp.int32)
  return batch


def compiled(objective, chunked=False):
  """From both sides' logits and a batch to (loss, terms, gradient by the student, the teacher)."""

  def loss(student, teacher, batch):
    both = outputs(student, chunked), outputs(teacher, chunked)
    variables = objective.init(None, *both, batch)
    result = objective.apply(variables, *both, batch, step=0, rng=None)
    return total(result), result.loss

  both = jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))

  def run(student, teacher, batch):
    (value, terms), gradients = both(student, teacher, batch)
    return value, terms, *gradients

  return run


def run(objective, student, teacher, batch, chunked=False):
  return compiled(objective, chunked)(student, teacher, batch)


@pytest.mark.parametrize(
  ("name", "options", "chunk_size"),
  [
    ("default", {"kd_weight": 1.0}, None),
    ("weighted", {"kd_weight": 1.5, "temperature": 2.0}, 4),
  ],
)
def test_the_official_numbers(name, options, chunk_size):
  objective, batch = uld(chunk_size=chunk_size, **options), batch_of(STORED)
  got, terms, by_student, by_teacher = run(
    objective, STORED["student"], STORED["teacher"], batch, chunk_size is not None
  )
  np.testing.assert_allclose(got, STORED[name], **CLOSE)
  np.testing.assert_allclose(by_student, STORED[f"{name}_grad"], **CLOSE)
  np.testing.assert_array_equal(by_teacher, 0)
  assert (terms["kd"].weight, terms["ce"].weight) == (options["kd_weight"], 1.0)


def test_what_it_is():
  assert uld().across_vocabularies and not uld().pairs_classes
  assert uld(chunk_size=4).taps.teacher == {"hidden", "head"}


def test_packed_rows_are_their_sequences():
  # The three rows one after another in one, the second with masked labels inside.
  batch = {key: np.array(array) for key, array in batch_of(STORED).items()}
  batch["mask"][1, 2] = batch["teacher_mask"][1, 3] = False
  wide = {"": 9, "teacher_": 7}
  packed = {}
  for prefix, length in wide.items():
    for key in ("label", "mask"):
      packed[prefix + key] = batch[prefix + key].reshape(1, -1)
    packed[prefix + "segment_ids"] = np.repeat(np.arange(1, 4), length)[None]
  student, teacher = STORED["student"], STORED["teacher"]
  apart, *_ = run(uld(), student, teacher, batch)
  together, *_ = run(uld(), student.reshape(1, 27, -1), teacher.reshape(1, 21, -1), packed)
  np.testing.assert_allclose(apart, together, rtol=1e-6)


def test_counterparts_by_hand():
  batch = {
    "label": jnp.array([[5, 5, -1, 5, 5, 5, -1]]),
    "segment_ids": jnp.array([[1, 1, 1, 2, 2, 2, 0]]),
    "teacher_label": jnp.array([[3, -1, 3, 3, 3, 3]]),
    "teacher_segment_ids": jnp.array([[1, 1, 1, 1, 2, 2]]),
  }
  batch["mask"], batch["teacher_mask"] = batch["label"] >= 0, batch["teacher_label"] >= 0

  @jit
  def found(batch):
    own, theirs = sides(batch)
    places, where = counterparts(own, theirs)
    return places, where, mean_weights(where, own.segments)

  places, where, weights = found(batch)
  np.testing.assert_array_equal(where, [[1, 1, 0, 1, 1, 0, 0]])
  np.testing.assert_array_equal(places[where], [0, 2, 4, 5])
  np.testing.assert_allclose(weights, [[0.5, 0.5, 0, 0.5, 0.5, 0, 0]], rtol=1e-6)


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_nothing_that_counts_gives_zero_and_no_nan(chunk_size):
  batch = jax.tree.map(jnp.zeros_like, batch_of(STORED))
  nothing = [np.full_like(STORED[side], np.nan) for side in ("student", "teacher")]
  got, _, by_student, _ = run(uld(chunk_size=chunk_size), *nothing, batch, chunk_size is not None)
  assert got == 0
  np.testing.assert_array_equal(by_student, 0)


def test_mistakes_are_told():
  with pytest.raises(KdjaxError, match="uld: temperature = 0 must be positive"):
    uld(temperature=0)
  with pytest.raises(KdjaxError, match=r"labels have shape \(3,\).*needs text"):
    run(uld(), jnp.ones((3, 2)), jnp.ones((3, 2)), {"label": jnp.zeros(3, jnp.int32)})
