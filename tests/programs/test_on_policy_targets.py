"""Targets that an encoder-decoder writes: their rows, and what is learnt from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import models, objectives, teachers
from kdjax.errors import KdjaxError
from kdjax.generation import Generation, Sampling, generate
from kdjax.programs import distill, on_policy_targets
from kdjax.programs.on_policy_targets import KEYS, written_targets
from kdjax.train.mesh import make_mesh
from tests.programs.helpers import close, runner, sgd, trained

VOCAB, SOURCE, TARGET, ROWS = 13, 6, 5, 4
SIZES = {"num_classes": VOCAB, "width": 8, "heads": 2}
STUDENT = models.seq2seq(**SIZES, encoder_depth=2, decoder_depth=1, mlp_width=8, start=1)
TEACHER_MODEL = models.decoder(**SIZES, depth=1, mlp_width=8)
OBJECTIVE = objectives.written_kd(chunk_size=4)


@pytest.fixture(scope="module")
def teacher():
  weights = jax.tree.map(lambda x: 4 * x, jax.jit(TEACHER_MODEL.init)(jax.random.key(1)))
  return teachers.after_source(teachers.frozen(TEACHER_MODEL, weights))


def batch(seed=0):
  rng = np.random.default_rng(seed)
  lengths, ends = rng.integers(1, SOURCE + 1, ROWS), rng.integers(1, TARGET + 1, ROWS)
  heard, learnt = (np.arange(n) < l[:, None] for n, l in ((SOURCE, lengths), (TARGET, ends)))
  label = rng.integers(2, VOCAB, (ROWS, TARGET)).astype(np.int32)
  begin = np.ones((ROWS, 1), np.int32)
  return {
    "tokens": rng.integers(2, VOCAB, (ROWS, SOURCE)).astype(np.int32) * heard,
    "segment_ids": heard.astype(np.int32),
    "decoder_tokens": np.concatenate([begin, label[:, :-1]], 1) * learnt,
    "decoder_segment_ids": learnt.astype(np.int32),
    "label": np.where(learnt, label, -1),
    "mask": learnt,
    "domain": np.zeros(ROWS, np.int32),
    "index": np.arange(ROWS, dtype=np.int32),
  }


def program(teacher, **options):
  return on_policy_targets(STUDENT, OBJECTIVE, sgd(), teacher=teacher, **options)


@pytest.fixture(scope="module")
def run(teacher):
  """The program, compiled once."""
  return runner(program(teacher, eos_ids=(2,)), batch())


def test_a_target_begins_with_the_start_and_is_masked_after_its_end():
  spoken = jnp.zeros((2, 4))
  out = Generation(
    jnp.array([[7, 8, 2, 0], [5, 6, 7, 8]]), jnp.array([3, 4]), spoken, spoken, jnp.ones(2, bool)
  )
  rows = written_targets(out, 1)
  np.testing.assert_array_equal(rows["decoder_tokens"], [[1, 7, 8, 0], [1, 5, 6, 7]])
  np.testing.assert_array_equal(rows["label"], [[7, 8, 2, -1], [5, 6, 7, 8]])
  np.testing.assert_array_equal(rows["decoder_segment_ids"], [[1, 1, 1, 0], [1] * 4])
  np.testing.assert_array_equal(rows["mask"], rows["label"] >= 0)


def test_a_step_is_that_of_distill_on_written_and_given_targets(teacher, run):
  own = {name: value for name, value in batch().items() if name in KEYS}
  start, _ = run([])
  key = jax.random.fold_in(jax.random.wrap_key_data(start.rng), 0)

  @jax.jit
  def write(params):
    variables = models.ModelVars(params, start.model_state)
    return generate(
      STUDENT,
      variables,
      own["tokens"],
      own["segment_ids"].sum(1),
      rng=jax.random.fold_in(key, 1),
      max_new_tokens=TARGET,
      sampling=Sampling(0.9, top_k=128),
      eos_ids=(2,),
    )

  rows = own | jax.device_get(written_targets(write(start.params), 1))
  both = {name: np.concatenate([rows[name], own[name]]) for name in KEYS}
  both["written"] = np.arange(2 * ROWS) < ROWS
  found, (metrics,) = run([batch()])
  wanted, (plain,) = trained(distill(STUDENT, OBJECTIVE, sgd(), teacher=teacher), [both])
  close(found.params, wanted.params)
  np.testing.assert_allclose(metrics["loss"][0], plain["loss"][0], rtol=1e-5)
  assert metrics["tokens_written"] == (rows["mask"].sum(), ROWS)
  assert metrics["loss/ce"][1] == own["mask"].sum()
  assert metrics["loss/kd"][1] == rows["mask"].sum()


def test_over_devices_and_in_parts_it_is_the_same(teacher, run):
  whole, _ = run([batch()])
  one = program(teacher, eos_ids=(2,), accumulate=2)
  parts, _ = trained(one, [batch()], mesh=make_mesh(data=4))
  close(whole.params, parts.params, rtol=1e-4)


def test_it_learns_the_targets_that_it_is_given(run):
  _, metrics = run([batch()] * 30)
  first, last = (m["loss/ce"][0] / m["loss/ce"][1] for m in (metrics[0], metrics[-1]))
  assert last < first and np.isfinite(metrics[-1]["grad_norm"][0])


def test_what_cannot_write_or_be_asked_is_told(teacher):
  with pytest.raises(KdjaxError, match="such as seq2seq"):
    on_policy_targets(TEACHER_MODEL, OBJECTIVE, sgd(), teacher=teacher)
  with pytest.raises(KdjaxError, match="of kind 'frozen'"):
    on_policy_targets(STUDENT, OBJECTIVE, sgd(), teacher=None)
  with pytest.raises(KdjaxError, match="no 'decoder_tokens'"):
    program(teacher).init(jax.random.key(0), {"tokens": 0, "segment_ids": 0})
