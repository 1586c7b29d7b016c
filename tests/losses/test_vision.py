"""The classic losses on features: worked values, float64 twins, invariances, official numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from kdjax import losses
from kdjax.errors import KdjaxError

from .checks import CLOSE, jit, matches, reference

STORED = reference("vision_distillers")


def draw(seed: int, *shape: int) -> np.ndarray:
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def official(loss, key: str, student: str, teacher, *others) -> None:
  """The mean over a batch, and its gradient, against stored numbers."""
  stored = {key: STORED[key], f"{key}_grad": STORED[f"{key}_grad"]}
  matches(stored, {key: lambda s: jnp.mean(loss(s, teacher, *others))}, STORED[student])


@pytest.mark.parametrize("size", ["student", "small"])
def test_official_code_on_maps(size):
  teacher = STORED["teacher"]
  official(losses.attention_transfer, f"at_{size}", size, teacher)
  official(losses.neuron_selectivity, f"nst_{size}", size, teacher)
  official(losses.similarity_preserving, f"sp_{size}", size, teacher)


def test_official_code_with_another_power():
  def fourth(s, t):
    return losses.attention_transfer(s, t, power=4)

  official(fourth, "at4", "student", STORED["teacher"])


def test_official_code_on_vectors():
  told = STORED["told"]

  def both(s, t):
    return 25 * losses.relational_distance(s, t) + 50 * losses.relational_angle(s, t)

  official(losses.relational_distance, "distance", "vectors", told)
  official(losses.relational_angle, "angle", "vectors", told)
  official(both, "rkd", "vectors", told)
  official(losses.probabilistic_knowledge_transfer, "pkt", "vectors", told)


def test_official_code_on_maps_of_one_shape():
  official(losses.hierarchical_context, "hcl", "student", STORED["same"])
  for side in (7, 1):  # bins of uneven size; nothing smaller

    def cut(s, t, side=side):
      return losses.hierarchical_context(s[:, :side, :side], t[:, :side, :side])

    official(cut, f"hcl{side}", "student", STORED["same"])


def test_official_code_of_the_partial_distance():
  # A sum over 320 values: compared relative to its size.
  def mean(s):
    return jnp.mean(losses.partial_l2(s, STORED["same"], STORED["margin"]))

  value, gradient = jit(jax.value_and_grad(mean))(STORED["student"])
  np.testing.assert_allclose(value, STORED["partial_l2"], rtol=1e-5)
  np.testing.assert_allclose(gradient, STORED["partial_l2_grad"], **CLOSE)


def test_official_margins():
  for i in range(2):
    margin = losses.negative_margin(STORED[f"ofd_scale{i}"], STORED[f"ofd_bias{i}"])
    np.testing.assert_allclose(margin, STORED[f"ofd_margin{i}"], rtol=1e-4)


@pytest.mark.parametrize("temperature", [2, 4])
def test_official_code_of_the_levels(temperature):
  weak, told = STORED["mlld_weak"], STORED["mlld_told_weak"]
  for key, loss in (
    ("kd", losses.hinton_kd), ("cc", losses.class_correlation), ("bc", losses.batch_correlation),
  ):  # fmt: skip
    name = f"mlld_{key}_loss_t{temperature}"
    wanted = {name: lambda s, f=loss: jnp.mean(f(s, told, temperature=float(temperature)))}
    matches(STORED, wanted, weak)


def test_hint_is_the_mean_squared_difference():
  s, t = draw(0, 3, 4, 4, 2), draw(1, 3, 4, 4, 2)
  wanted = np.square(s.astype(np.float64) - t).mean((1, 2, 3))
  np.testing.assert_allclose(losses.hint(s, t), wanted, rtol=1e-6)


def test_variational_information_twin_and_its_value_at_a_perfect_mean():
  s, t, v = draw(0, 3, 4, 4, 2), draw(1, 3, 4, 4, 2), np.array([0.5, 3.0], np.float32)
  wanted = (0.5 * (np.square(s.astype(np.float64) - t) / v + np.log(v))).mean((1, 2, 3))
  np.testing.assert_allclose(losses.variational_information(s, t, v), wanted, rtol=1e-5)
  start = losses.variational_information(t, t, jnp.full(2, 5.0))
  np.testing.assert_allclose(start, 0.8047, rtol=1e-4)
  with pytest.raises(KdjaxError, match=r"variance has shape \(3,\); \(2,\) is wanted"):
    losses.variational_information(s, t, jnp.ones(3))


def test_the_paper_s_attention_transfer_is_the_length_of_the_difference():
  s, t = draw(0, 3, 4, 4, 2), draw(1, 3, 4, 4, 5)
  maps = [np.square(x.astype(np.float64)).sum(-1).reshape(3, -1) for x in (s, t)]
  maps = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in maps]
  wanted = np.linalg.norm(maps[0] - maps[1], axis=-1)
  paper = losses.attention_transfer(s, t, mode="paper")
  np.testing.assert_allclose(paper, wanted, rtol=1e-5)
  np.testing.assert_allclose(losses.attention_transfer(s, t), wanted**2 / 16, rtol=1e-5)
  for bad in ({"mode": "sum"}, {"power": 0}):
    with pytest.raises(KdjaxError, match=f"attention_transfer: {next(iter(bad))} is"):
      losses.attention_transfer(s, t, **bad)


def test_attention_does_not_see_the_order_of_channels_or_the_scale_of_an_example():
  s, t = draw(0, 3, 4, 4, 4), draw(1, 3, 8, 8, 5)
  changed = s[..., ::-1] * np.array([0.1, 2.0, 7.0], np.float32).reshape(3, 1, 1, 1)
  wanted = losses.attention_transfer(s, t)
  np.testing.assert_allclose(losses.attention_transfer(changed, t), wanted, rtol=1e-4)


def test_neuron_selectivity_of_the_same_channels_in_another_order_is_zero():
  s = draw(0, 3, 4, 4, 4)
  np.testing.assert_allclose(losses.neuron_selectivity(s, 3 * s[..., ::-1]), 0.0, atol=1e-6)
  assert (losses.neuron_selectivity(s, draw(1, 3, 4, 4, 9)) > 0.01).all()


def test_a_constant_difference_costs_its_square_at_every_size():
  x = draw(0, 2, 8, 8, 3)
  np.testing.assert_allclose(losses.hierarchical_context(x, x + 3), 9.0, rtol=1e-5)
  # A difference without mean is seen at full size alone: weight 1 of 1 + 1/2 + 1/4 + 1/8.
  board = np.indices((8, 8)).sum(0) % 2 * 2.0 - 1
  other = x + board.astype(np.float32)[None, :, :, None]
  np.testing.assert_allclose(losses.hierarchical_context(x, other), 8 / 15, rtol=1e-5)


def test_pooling_with_uneven_bins():
  # Bins of 7 pixels over 4: [0, 2), [1, 4), [3, 6), [5, 7).
  x = jnp.arange(7.0).reshape(1, 7, 1, 1)
  pooled = losses.average_pool(x, (4, 1))
  np.testing.assert_allclose(pooled.ravel(), [0.5, 2.0, 4.0, 5.5], rtol=1e-6)
  with pytest.raises(KdjaxError, match=r"average_pool: maps has shape \(1, 7, 1, 1\) and size is"):
    losses.average_pool(x, (8, 1))


def _orthogonal(seed: int, width: int) -> np.ndarray:
  return np.linalg.qr(draw(seed, width, width))[0].astype(np.float32)


@pytest.mark.parametrize("name", ["relational_distance", "relational_angle"])
def test_turned_moved_and_scaled_features_have_the_same_relations(name):
  s, t = draw(0, 6, 5), draw(1, 6, 9)
  moved = 3 * s @ _orthogonal(2, 5) + 10
  loss = getattr(losses, name)
  np.testing.assert_allclose(loss(moved, t), loss(s, t), rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose(loss(moved, s), 0.0, atol=1e-5)


def test_similarities_do_not_see_a_common_turn_or_scale():
  s, t = draw(0, 6, 5), draw(1, 6, 9)
  turned = losses.similarity_preserving(4 * s @ _orthogonal(2, 5), t)
  np.testing.assert_allclose(turned, losses.similarity_preserving(s, t), rtol=1e-4)


def test_neighbours_do_not_see_the_length_of_a_feature():
  s, t = draw(0, 6, 5), draw(1, 6, 9)
  longer = s * np.linspace(0.5, 4, 6, dtype=np.float32)[:, None]
  loss = losses.probabilistic_knowledge_transfer
  np.testing.assert_allclose(loss(longer, t), loss(s, t), rtol=1e-4, atol=1e-7)


def test_relational_distance_by_hand():
  # On a line: student 0, 1, 3 (distances 1, 3, 2, mean 2), teacher 0, 2, 3 (2, 3, 1, mean 2).
  s, t = jnp.array([[0.0], [1.0], [3.0]]), jnp.array([[0.0], [2.0], [3.0]])
  half = 0.5 * 0.5**2  # |1/2 - 1| and |1 - 1/2|; the outer pair agrees
  wanted = np.array([half, 2 * half, half]) / 3
  np.testing.assert_allclose(losses.relational_distance(s, t), wanted, rtol=1e-5)


def test_relational_angle_by_hand():
  # At the first corner: 90 degrees against 45, the cosines 0 and sqrt(1/2), twice among 9 entries.
  s = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
  t = jnp.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
  value = losses.relational_angle(s, t)
  np.testing.assert_allclose(value[0], 2 * (0.5 * 0.5) / 9, rtol=1e-5)


def test_neighbours_twin():
  s, t = draw(0, 5, 4).astype(np.float64), draw(1, 5, 7).astype(np.float64)

  def rows(x):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = (x @ x.T + 1) / 2
    return cosine / cosine.sum(1, keepdims=True)

  wanted = scipy.stats.entropy(rows(t), rows(s), axis=1) / 5
  value = losses.probabilistic_knowledge_transfer(jnp.float32(s), jnp.float32(t))
  np.testing.assert_allclose(value, wanted, rtol=1e-3, atol=1e-6)


def test_the_margin_of_a_standard_normal_and_of_one_that_is_never_negative():
  scale, bias = jnp.array([1.0, -2.0, 1.0, 0.0, 0.0]), jnp.array([0.0, 0.0, 9.0, 1.0, -1.0])
  wanted = -np.sqrt(2 / np.pi)
  margin = losses.negative_margin(scale, bias)
  np.testing.assert_allclose(margin, [wanted, 2 * wanted, -3.0, 0.0, -1.0], rtol=1e-6)
  with pytest.raises(KdjaxError, match=r"scale has shape \(2,\) and bias \(3,\)"):
    losses.negative_margin(jnp.ones(2), jnp.ones(3))


def test_the_cases_of_the_partial_distance():
  # Teacher positive: met from both sides. Between margin and 0: from above. Below the margin: only
  # a student above the margin pays, up to the margin.
  teacher = jnp.array([[2.0, 2.0, -0.5, -0.5, -3.0, -3.0]])
  student = jnp.array([[1.0, 4.0, 0.5, -0.9, 1.0, -1.5]])
  parts = [1.0, 4.0, 1.0, 0.0, 4.0, 0.0]
  value, gradient = jax.value_and_grad(
    lambda s: losses.partial_l2(s, teacher, jnp.full(6, -1.0)).sum()
  )(student)
  np.testing.assert_allclose(value, sum(parts), rtol=1e-6)
  np.testing.assert_allclose(gradient, [[-2.0, 4.0, 2.0, 0.0, 4.0, 0.0]], rtol=1e-6)


def test_equal_scores_of_contrast():
  # Scores of 1 / N beside noise K / N: the positive log(K + 1), each negative log((K + 1) / K).
  k, n = 16384, 50_000
  both_sides = losses.noise_contrastive(jnp.full((1, k + 1), 1 / n), examples=n)
  np.testing.assert_allclose(both_sides, 10.709, atol=2e-3)
  where = jnp.array([True, False])
  scores = jnp.array([[0.5, 0.5], [jnp.nan, 0.0]])
  value = losses.noise_contrastive(scores, examples=2, where=where)
  np.testing.assert_allclose(value, [2 * np.log(2), 0.0], rtol=1e-5)
  for bad in ({"examples": 0}, {"examples": 2, "scores": scores[:, :1]}):
    with pytest.raises(KdjaxError, match="noise_contrastive"):
      losses.noise_contrastive(**{"scores": scores} | bad)
