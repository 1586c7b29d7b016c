"""FIRST: the temperature that held-out rows choose, and what it does to the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses, models, objectives
from kdjax.errors import KdjaxError
from kdjax.evaluation import top_k_temperature
from kdjax.objectives import first
from kdjax.objectives.base import total
from kdjax.objectives.first import calibrated
from kdjax.outputs import Head, Outputs
from kdjax.programs.distill import check_pairing
from kdjax.teachers import Teacher
from tests.objectives.helpers import applied, labelled, outputs

ROWS, TIME, WIDTH, VOCAB = 6, 40, 4, 12
KEYS = jax.random.split(jax.random.key(0), 4)
HIDDEN = jax.random.normal(KEYS[0], (ROWS, TIME, WIDTH))
HEAD = Head(2 * jax.random.normal(KEYS[1], (WIDTH, VOCAB)))
# Labels drawn from a flatter distribution: the teacher is surer than it is right.
LABEL = jax.random.categorical(KEYS[2], HEAD.logits(HIDDEN) / 2)
MASK = jax.random.bernoulli(KEYS[3], 0.8, (ROWS, TIME))
BATCH = {"label": jnp.where(MASK, LABEL, -1), "mask": MASK}
HEADED = Outputs(hidden=HIDDEN, head=HEAD)
DENSE = Outputs(logits=HEAD.logits(HIDDEN))


def prepared(objective, teacher, batches):
  variables = objective.init(jax.random.key(0), DENSE, DENSE, BATCH)
  for told, batch in zip(teacher, batches, strict=True):
    variables = objective.prepare(variables, told, batch)
  return variables


def test_the_temperature_is_that_of_the_evaluation_whole_or_in_chunks_and_batches():
  signal = losses.top_k_signal(DENSE.logits, k=5)
  wanted, errors = top_k_temperature(signal, LABEL, MASK)
  assert 1.3 < wanted < 3 and errors.min() < errors[30] / 2  # it was needed
  whole = prepared(first(), [DENSE], [BATCH])
  halves = [jax.tree.map(lambda x, s=s: x[s], BATCH) for s in (slice(0, 2), slice(2, None))]
  told = [Outputs(hidden=HIDDEN[s], head=HEAD) for s in (slice(0, 2), slice(2, None))]
  parts = prepared(first(chunk_size=16), told, halves)
  for variables in (whole, parts):
    state = variables.state["first"]
    assert float(calibrated(state)) == pytest.approx(wanted, rel=1e-6)
    found = np.abs(np.asarray(state.gaps)).sum(-1).min() / int(MASK.sum())
    assert found == pytest.approx(errors.min(), rel=1e-3)


def test_the_loss_is_the_sparse_one_at_that_temperature_and_it_stays():
  objective = first()
  variables = prepared(objective, [DENSE], [BATCH])
  chosen = float(calibrated(variables.state["first"]))
  student = outputs(1, rows=ROWS * TIME, classes=VOCAB)
  student = Outputs(logits=student.logits.reshape(ROWS, TIME, VOCAB))
  out, _ = applied(objective, student, DENSE, BATCH, variables=variables)
  other, _ = applied(first(temperature=chosen), student, DENSE, BATCH)
  np.testing.assert_allclose(total(out), total(other), rtol=1e-6)
  signal = losses.recalibrate_top_k(losses.top_k_signal(DENSE.logits, k=5), temperature=chosen)
  values = losses.sparse_forward_kl(student.logits, signal, tail="bucket", where=MASK)
  np.testing.assert_allclose(total(out), float(values.sum()) / int(MASK.sum()), rtol=1e-6)
  assert float(out.metrics["temperature"][0]) == pytest.approx(chosen)
  assert objective.update(variables.state, out.stats, step=jnp.int32(0)) is variables.state


def test_a_cache_of_the_same_classes_says_the_same():
  student = outputs(1, rows=8, classes=VOCAB)
  teacher = outputs(2, rows=8, classes=VOCAB)
  batch = labelled(classes=VOCAB)
  stored = Outputs(signal=losses.top_k_signal(teacher.logits, k=3))
  objective = first(k=3, temperature=1.7)
  live, _ = applied(objective, student, teacher, batch)
  cached, _ = applied(objective, student, stored, batch)
  np.testing.assert_array_equal(total(live), total(cached))
  with pytest.raises(KdjaxError, match="make one with --kind=top_k"):
    drawn = losses.Sampled(jnp.zeros((8, 2), jnp.int32), jnp.ones((8, 2)) / 2, VOCAB, 1.0)
    applied(objective, student, Outputs(signal=drawn), batch)


def test_what_cannot_be_is_refused():
  for arguments, told in (
    ({"k": 1}, "k = 1 must be at least 2"),
    ({"bins": 0}, "bins = 0 must be at least 1"),
    ({"temperature": 0.0}, "temperature = 0.0 must be above 0"),
  ):
    with pytest.raises(KdjaxError, match=told):
      first(**arguments)
  with pytest.raises(KdjaxError, match="prepared on the rows"):
    objectives.combine({"a": (1.0, first()), "b": (1.0, objectives.norm_direction())})
  multilayer = models.mlp(image_shape=(2, 2, 1), num_classes=VOCAB, hidden=(4,))
  stored = Teacher(lambda *a, **k: None, frozenset({"signal"}), VOCAB, anywhere=False)
  with pytest.raises(KdjaxError, match=r"give config\.teacher\.checkpoint too.*temperature"):
    check_pairing(multilayer, stored, first())
