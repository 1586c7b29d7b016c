"""DAC-KL and spans: the window, what counts as a pair, and chunks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives import multi_granularity, total
from kdjax.objectives.base import ObjectiveVars
from kdjax.objectives.multi_granularity import window
from kdjax.outputs import Head, Outputs
from tests.losses.checks import jit, log_softmax64
from tests.objectives.helpers import applied

ROWS, TIME, WIDTH, CLASSES = 2, 6, 4, 7
RNG = np.random.default_rng(0)
SIDES = {
  side: {
    "hidden": RNG.standard_normal((ROWS, TIME, WIDTH)).astype(np.float32),
    "kernel": 2 * RNG.standard_normal((WIDTH, CLASSES)).astype(np.float32),
  }
  for side in ("student", "teacher")
}
BATCH = {
  "label": jnp.asarray(RNG.integers(0, CLASSES, (ROWS, TIME)), jnp.int32).at[0, 0].set(-1),
  "mask": jnp.ones((ROWS, TIME), bool).at[1, 5].set(False),
  # Neighbours of one span, both with labels to be learnt: (0; 1, 2), (0; 4, 5), (1; 2, 3).
  "spans": jnp.array([[1, 1, 1, 2, 3, 3], [0, 0, 4, 4, 6, 6]]),
}
PAIRS = [(0, 1), (0, 4), (1, 2)]
OPTIONS = {"hidden": 8, "top_k": 3, "softness": 0.1}


def logits(side):
  return SIDES[side]["hidden"] @ SIDES[side]["kernel"]


def outputs(side, chunked):
  if chunked:
    return Outputs(hidden=side["hidden"], head=Head(side["kernel"]))
  return Outputs(logits=side["hidden"] @ side["kernel"])


@functools.cache
def compiled(chunk_size):
  objective = multi_granularity(**OPTIONS, chunk_size=chunk_size)

  def loss(student, teacher, params):
    sides = [outputs(side, chunk_size is not None) for side in (student, teacher)]
    result, _ = applied(objective, *sides, BATCH, variables=ObjectiveVars(params))
    return total(result), result

  return jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


def evaluated(chunk_size, params):
  """Value, gradients by (student, teacher, network), and the result."""
  (value, result), gradients = compiled(chunk_size)(SIDES["student"], SIDES["teacher"], params)
  return value, gradients, result


@pytest.fixture(scope="module")
def start():
  sides = [outputs(SIDES[name], False) for name in ("student", "teacher")]
  return multi_granularity(**OPTIONS).init(jax.random.key(0), *sides, BATCH).params


@pytest.fixture(scope="module")
def results(start):
  """What is evaluated whole (None) and in chunks of 4, with a network that has learnt."""
  learnt = {"kernel": RNG.standard_normal((8, 2)).astype(np.float32), "bias": jnp.ones(2)}
  params = start | {"layer1": learnt}
  return {chunk_size: evaluated(chunk_size, params) for chunk_size in (None, 4)}


def test_chunks_change_neither_value_nor_gradient(results):
  (value, (own, _, net), result), (whole, (wanted, _, wanted_net), plain) = (
    results[4],
    results[None],
  )
  np.testing.assert_allclose(value, whole, rtol=1e-5)
  for got, want in ((own, wanted), (net, wanted_net)):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, want)
  assert result.metrics.keys() == plain.metrics.keys()
  for name in plain.metrics:
    means = [pair[0] / pair[1] for pair in (result.metrics[name], plain.metrics[name])]
    np.testing.assert_allclose(*means, rtol=1e-5)


def test_gradients_reach_student_and_network_and_not_the_teacher(results):
  _, (student, teacher, network), _ = results[None]
  for leaf in jax.tree.leaves((student, network)):
    assert np.abs(leaf).max() > 1e-6
  for leaf in jax.tree.leaves(teacher):
    np.testing.assert_array_equal(leaf, 0.0)


def test_only_neighbours_of_one_span_are_compared(results):
  term = results[None][2].loss["spans"]
  assert list(zip(*np.nonzero(term.where), strict=True)) == PAIRS
  q, p = (np.exp(log_softmax64(logits(side))) for side in ("student", "teacher"))
  wanted = [np.square(p[b, t] * p[b, t + 1] - q[b, t] * q[b, t + 1]).sum() for b, t in PAIRS]
  np.testing.assert_allclose(np.asarray(term.values)[np.asarray(term.where)], wanted, rtol=1e-4)


def test_the_network_starts_from_the_stated_window(start):
  value, _, result = evaluated(None, start)
  mean = {name: float(a / b) for name, (a, b) in result.metrics.items()}
  np.testing.assert_allclose(mean["window/lower"], 0.001, rtol=1e-3)
  np.testing.assert_allclose(mean["window/upper"], 0.951, rtol=1e-3)
  where = (BATCH["label"] >= 0) & BATCH["mask"]
  clipped = jit(
    lambda s, t: losses.clipped_forward_kl(
      s, t, BATCH["label"], lower=0.001, upper=0.951, softness=0.1, where=where
    )
  )(logits("student"), logits("teacher"))
  np.testing.assert_allclose(mean["loss/kd"], clipped.sum() / where.sum(dtype=float), rtol=1e-4)
  spans = np.asarray(result.loss["spans"].values)[tuple(zip(*PAIRS, strict=True))].mean()
  np.testing.assert_allclose(value, mean["loss/kd"] + mean["loss/ce"] + spans, rtol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_is_read_by_its_shape_alone(tied):
  weight = jax.ShapeDtypeStruct((CLASSES, WIDTH) if tied else (WIDTH, CLASSES), jnp.float32)
  side = Outputs(head=Head(weight, tied=tied))
  objective = multi_granularity(hidden=8, chunk_size=2)
  params = objective.init(jax.random.key(0), side, side, BATCH).params
  assert params["layer0"]["kernel"].shape == (2 * CLASSES, 8)


@pytest.mark.parametrize("least_mass", [0.5, 1.0])
def test_no_window_is_narrower_than_the_least_mass(least_mass):
  params = {"layer0": {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}}
  extreme = jnp.array([[-50.0, -50.0], [-50.0, 50.0], [50.0, 50.0], [0.0, 0.0]])
  lower, upper = window(params, extreme, least_mass=least_mass)
  rest = 1 - least_mass
  np.testing.assert_allclose(lower, [0, rest, 0, rest / 4], atol=1e-6)
  np.testing.assert_allclose(upper - lower, [least_mass, least_mass, 1, 1 - rest / 2], atol=1e-6)


def test_bad_values_and_missing_spans_are_refused(start):
  with pytest.raises(KdjaxError, match="least_mass = 0 "):
    multi_granularity(least_mass=0)
  with pytest.raises(KdjaxError, match="top_k = 0"):
    multi_granularity(top_k=0)
  sides = [Outputs(logits=logits(side)) for side in ("student", "teacher")]
  without = {name: value for name, value in BATCH.items() if name != "spans"}
  objective = multi_granularity(**OPTIONS)
  call = lambda *x: lambda p: applied(objective, *x, variables=ObjectiveVars(p))  # noqa: E731
  with pytest.raises(KdjaxError, match=r"no `spans`.*span_weight"):
    jax.eval_shape(call(*sides, without), start)
  signal = Outputs(signal=losses.top_k_signal(sides[1].logits, k=2))
  with pytest.raises(KdjaxError, match="the K likeliest classes"):
    jax.eval_shape(call(sides[0], signal, BATCH), start)


def test_spans_are_words_where_the_tokens_say_so():
  # Of 7 tokens the first three go on with a word, and all but the last are followed by one.
  pieces = [True] * 3 + [False] * 4, [True] * 6 + [False]
  rows = {
    "label": jnp.array([[5, 0, 1, 3, 4, 2], [6, 0, -1, 2, 1, 1]]),
    "mask": jnp.ones((ROWS, TIME), bool).at[0, 5].set(False),
    "segment_ids": jnp.array([[1] * 6, [1] * 4 + [2] * 2]),
  }
  objective = multi_granularity(**OPTIONS, ce_weight=0.0, word_pieces=pieces)
  sides = [Outputs(logits=logits(side)) for side in ("student", "teacher")]
  params = objective.init(jax.random.key(0), *sides, rows).params
  result, _ = jit(lambda p: applied(objective, *sides, rows, variables=ObjectiveVars(p)))(params)
  # 5-0 and 0-1 are words; 6 ends none, 2-1 is cut by an example, 4-2 is not learnt.
  assert list(zip(*np.nonzero(result.loss["spans"].where), strict=True)) == [(0, 0), (0, 1), (1, 4)]


def test_only_reference_texts_teach_by_their_labels(start):
  sides = [Outputs(logits=logits(side)) for side in ("student", "teacher")]
  objective = multi_granularity(**OPTIONS)
  rows = BATCH | {"written": jnp.array([True, False])}
  call = lambda rows: applied(objective, *sides, rows, variables=ObjectiveVars(start))[0]  # noqa: E731
  result = jit(call)(rows)
  learnt = np.asarray((BATCH["label"] >= 0) & BATCH["mask"])
  labels = np.asarray(BATCH["label"])
  log_q = np.take_along_axis(log_softmax64(logits("student")), np.maximum(labels, 0)[..., None], -1)
  ce = result.loss["ce"]
  np.testing.assert_allclose(
    np.where(ce.where, ce.values, 0)[1], np.where(learnt, -log_q[..., 0], 0)[1], rtol=1e-5
  )
  assert not np.asarray(ce.where)[0].any()
  np.testing.assert_array_equal(result.loss["tokens"].where, learnt)
  whole = jit(call)(BATCH)
  means = [total(r) for r in (whole, jit(call)(rows | {"written": jnp.zeros(2, bool)}))]
  np.testing.assert_allclose(*means, rtol=1e-6)
  with pytest.raises(KdjaxError, match="keep_data = True"):
    jax.eval_shape(call, BATCH | {"sample_log_probs": jnp.zeros((ROWS, TIME))})
