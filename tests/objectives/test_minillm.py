"""MiniLLM and the sampled reverse KL: official numbers and exact expectations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses, objectives
from kdjax.errors import KdjaxError
from kdjax.objectives import Outputs, total
from kdjax.outputs import Head
from tests.losses.checks import CLOSE, jit, reference

STORED = reference("minillm")
PROMPT = 2
ROWS, TIME, VOCAB = STORED["student"].shape


def outputs(logits, chunked=False):
  if not chunked:
    return Outputs(logits=logits)
  return Outputs(hidden=logits, head=Head(jnp.eye(logits.shape[-1])))


def written(case):
  """The official rows: every token after the prompt was drawn."""
  label = np.full((ROWS, TIME), -1, np.int32)
  label[:, PROMPT - 1 : -1] = STORED["tokens"][:, PROMPT:]
  drawn = np.zeros((ROWS, TIME), np.float32)
  drawn[:, PROMPT - 1 : -1] = STORED[f"{case}_sample_log_probs"]
  return {"label": label, "mask": label >= 0, "sample_log_probs": drawn}


def compiled(objective, chunked=False):
  def loss(student, teacher, batch):
    both = outputs(student, chunked), outputs(teacher, chunked)
    result = objective.apply(objective.init(None, *both, batch), *both, batch, step=0, rng=None)
    return total(result), result

  return jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


def mean(pair):
  return pair[0] / pair[1]


@pytest.mark.parametrize("case", ["fresh", "mixed"])
def test_value_and_gradient_are_the_official_ones(case):
  (value, result), (grad, to_teacher) = compiled(objectives.minillm(data_weight=0.0))(
    STORED["student"], STORED["teacher"], written(case)
  )
  np.testing.assert_allclose(value, STORED[f"{case}_loss"], **CLOSE)
  np.testing.assert_allclose(mean(result.metrics["loss/policy"]), STORED[f"{case}_policy"], **CLOSE)
  found = mean(result.metrics["loss/single_step"])
  np.testing.assert_allclose(found, STORED[f"{case}_single_step"], **CLOSE)
  np.testing.assert_allclose(grad, STORED[f"{case}_grad"], **CLOSE)
  np.testing.assert_array_equal(to_teacher, 0)


def test_chunks_change_nothing():
  (value, _), (grad, _) = compiled(objectives.minillm(data_weight=0.0, chunk_size=3), chunked=True)(
    STORED["student"], STORED["teacher"], written("mixed")
  )
  np.testing.assert_allclose(value, STORED["mixed_loss"], **CLOSE)
  np.testing.assert_allclose(grad, STORED["mixed_grad"], **CLOSE)


def test_rows_of_data_give_the_official_supervised_part():
  label = np.where(STORED["labels"] < 0, -1, STORED["labels"])
  batch = {
    "label": label,
    "mask": label >= 0,
    "written": np.zeros(ROWS, bool),
    "sample_log_probs": np.zeros(label.shape, np.float32),
  }
  (value, result), (grad, _) = compiled(objectives.minillm())(
    STORED["student"], STORED["teacher"], batch
  )
  # The official one is a cross-entropy with the teacher, larger by half of its entropy.
  log_p = jax.nn.log_softmax(STORED["teacher"])
  entropy = -(jnp.exp(log_p) * log_p).sum(-1)[label >= 0].mean()
  np.testing.assert_allclose(value + 0.5 * entropy, STORED["data_loss"], **CLOSE)
  np.testing.assert_allclose(mean(result.metrics["loss/ce"]), STORED["data_ce"], **CLOSE)
  np.testing.assert_allclose(grad, STORED["data_grad"], **CLOSE)


def test_returns_are_the_sums_that_they_say_they_are():
  rng = np.random.default_rng(0)
  rewards = rng.normal(size=(3, 6)).astype(np.float32)
  where = np.arange(6) < np.array([[6], [4], [1]])
  wanted = np.zeros((3, 6))
  for row, end in enumerate((6, 4, 1)):
    for t in range(end):
      wanted[row, t] = sum(0.9 ** (k - t) * rewards[row, k] for k in range(t, end)) / (end - t)
  found = losses.remaining_return(rewards, where, discount=0.9)
  np.testing.assert_allclose(found, wanted, **CLOSE)
  white = np.asarray(losses.whiten(found, where))
  assert abs(white[where].mean()) < 1e-6 and abs(white[where].std() - 1) < 1e-5
  np.testing.assert_array_equal(white[~where], 0)


def test_official_advantages():
  old, told = (
    jnp.take_along_axis(
      jax.nn.log_softmax(STORED[side])[:, PROMPT - 1 : -1], STORED["tokens"][:, PROMPT:, None], -1
    )[..., 0]
    for side in ("student", "teacher")
  )
  where = np.ones(old.shape, bool)
  returns = losses.remaining_return((told - old) / 0.5, where, discount=0.95)
  np.testing.assert_allclose(losses.whiten(returns, where), STORED["fresh_advantages"], **CLOSE)


def test_a_ratio_beyond_its_bounds_gets_no_gradient_where_that_would_go_on():
  def loss(log_probs, advantage):
    return losses.clipped_policy_gradient(log_probs, jnp.zeros(()), advantage, clip=0.2)

  slope = jax.vmap(jax.grad(loss), in_axes=(0, None))
  ratios = jnp.log(jnp.array([0.5, 1.0, 1.5]))
  np.testing.assert_allclose(slope(ratios, 2.0), [-1.0, -2.0, 0.0], rtol=1e-6)
  np.testing.assert_allclose(slope(ratios, -2.0), [0.0, 2.0, 3.0], rtol=1e-6)


def test_the_sampled_gradient_is_that_of_the_reverse_kl_in_expectation():
  """Every token once, each weighed with the probability of drawing it."""
  student, teacher = (jnp.asarray(STORED[side][:1, :1]) for side in ("student", "teacher"))
  objective = objectives.sampled_reverse_kl(weight=2.0)
  log_q = jax.nn.log_softmax(student[0, 0])

  def expected(student):
    rows = jnp.broadcast_to(student, (VOCAB, 1, VOCAB))
    both = outputs(rows), outputs(jnp.broadcast_to(teacher, rows.shape))
    batch = {
      "label": jnp.arange(VOCAB)[:, None],
      "sample_log_probs": log_q[:, None],
    }
    result = objective.apply((), *both, batch, step=0, rng=None)
    chances = jnp.exp(log_q)
    return (chances * result.loss[""].values[:, 0]).sum(), result.metrics

  (_, metrics), grad = jax.value_and_grad(expected, has_aux=True)(student)
  wanted = jax.grad(lambda s: 2 * losses.reverse_kl(s, teacher).sum())(student)
  np.testing.assert_allclose(grad, wanted, **CLOSE)
  assert set(metrics) == {"reverse_kl/k1", "reverse_kl/k3"}


def test_k1_and_k3_estimate_the_divergence_and_k3_is_never_negative():
  student, teacher = STORED["student"][:1, :1], STORED["teacher"][:1, :1]
  count = 20_000
  log_q = jax.nn.log_softmax(student[0, 0])
  tokens = jax.random.categorical(jax.random.key(0), log_q, shape=(1, count))
  spread = lambda x: outputs(jnp.broadcast_to(x, (1, count, VOCAB)))  # noqa: E731
  batch = {"label": tokens, "sample_log_probs": log_q[tokens]}
  result = objectives.sampled_reverse_kl().apply(
    (), spread(student), spread(teacher), batch, step=0, rng=None
  )
  wanted = losses.reverse_kl(student, teacher)[0, 0]
  for name in ("k1", "k3"):
    np.testing.assert_allclose(mean(result.metrics[f"reverse_kl/{name}"]), wanted, rtol=0.1)
  assert result.metrics["reverse_kl/k3"][0] > 0


@pytest.mark.parametrize(
  ("make", "told"),
  [
    (lambda: objectives.minillm(discount=1.1), "discount = 1.1"),
    (lambda: objectives.minillm(kd_share=-0.1), "kd_share = -0.1"),
    (lambda: objectives.sampled_reverse_kl(weight=0.0), "weight = 0.0"),
  ],
)
def test_options_out_of_range_are_told(make, told):
  with pytest.raises(KdjaxError, match=told):
    make()


@pytest.mark.parametrize("objective", [objectives.minillm(), objectives.sampled_reverse_kl()])
def test_rows_that_nobody_wrote_are_refused(objective):
  both = outputs(jnp.zeros((1, 2, 3))), outputs(jnp.zeros((1, 2, 3)))
  with pytest.raises(KdjaxError, match="on_policy"):
    objective.apply((), *both, {"label": jnp.zeros((1, 2), int)}, step=0, rng=None)


def test_without_the_flag_minillm_asks_for_both_kinds_of_rows():
  both = outputs(STORED["student"]), outputs(STORED["teacher"])
  with pytest.raises(KdjaxError, match="keep_data"):
    objectives.minillm().apply((), *both, written("fresh"), step=0, rng=None)
