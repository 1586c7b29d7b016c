"""Self-attention relations of MiniLM and MiniLMv2."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kdjax.errors import KdjaxError
from kdjax.losses import attention_relation

from .checks import CLOSE, gradient_is_the_slope, jit, kl64, reference

BATCH, TIME = 2, 5


def _vectors(seed: int, heads: int, width: int, count: int = 2):
  rng = np.random.default_rng(seed)
  return [jnp.float32(rng.standard_normal((BATCH, TIME, heads, width))) for _ in range(count)]


def _twin(student, teacher, lengths, causal=False):
  """Sums over heads and valid positions with loops, for pairs (x, y) of NumPy arrays."""
  values = []
  for b, length in enumerate(lengths):
    total = 0.0
    for head in range(student[0].shape[2]):
      for query in range(length):
        rows = []
        for x, y in (teacher, student):
          keys = y[b, : query + 1 if causal else length, head].astype(np.float64)
          scores = keys @ x[b, query, head].astype(np.float64) / np.sqrt(x.shape[-1])
          rows.append(np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum())
        total += kl64(*rows)
    values.append(total / (student[0].shape[2] * length))
  return values


@pytest.mark.parametrize("causal", [False, True])
def test_float64_twin_with_padding(causal):
  student, teacher = _vectors(0, 3, 4), _vectors(1, 3, 6)
  lengths = [5, 3]
  mask = jnp.arange(TIME)[None, :] < jnp.array(lengths)[:, None]
  value = attention_relation(
    student[0], teacher[0], student[1], teacher[1], mask=mask, causal=causal
  )
  wanted = _twin(
    [np.asarray(x) for x in student], [np.asarray(x) for x in teacher], lengths, causal
  )
  np.testing.assert_allclose(value, wanted, rtol=1e-4)


def test_texts_packed_into_a_row_do_not_see_each_other():
  student, teacher = _vectors(0, 3, 4), _vectors(1, 3, 6)
  segments = jnp.array([[1, 1, 1, 2, 2], [1, 1, 2, 0, 0]])
  value = attention_relation(student[0], teacher[0], student[1], teacher[1], segments=segments)

  def apart(row, start, stop):
    cut = [
      x[row : row + 1, start:stop] for pair in zip(student, teacher, strict=True) for x in pair
    ]
    return (stop - start) * float(attention_relation(*cut)[0])

  wanted = [(apart(0, 0, 3) + apart(0, 3, 5)) / 5, (apart(1, 0, 2) + apart(1, 2, 3)) / 3]
  np.testing.assert_allclose(value, wanted, rtol=1e-5)
  with pytest.raises(KdjaxError, match=r"segments has shape \(2, 4\)"):
    attention_relation(student[0], teacher[0], segments=segments[:, :4])


def test_golden_value():
  # One head of width 1, two positions: x = (0, 1) attends with scores x_q x_k, so position 0 is
  # uniform on both sides and position 1 has logits (0, 1) for the teacher and (0, 4) for x = 2.
  teacher, student = jnp.array([0.0, 1.0]), jnp.array([0.0, 2.0])
  p, q = 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-4))
  value = attention_relation(student.reshape(1, 2, 1, 1), teacher.reshape(1, 2, 1, 1))
  np.testing.assert_allclose(value, [kl64([1 - p, p], [1 - q, q]) / 2], rtol=1e-5)


def test_zero_for_equal_relations_and_for_rotated_values():
  (x,) = _vectors(2, 2, 4, 1)
  rotation = jnp.float32(np.linalg.qr(np.random.default_rng(3).standard_normal((4, 4)))[0])
  np.testing.assert_allclose(attention_relation(x, x), 0.0, atol=1e-6)
  np.testing.assert_allclose(attention_relation(x @ rotation, x), 0.0, atol=1e-5)


def test_padding_changes_neither_value_nor_gradient():
  student, teacher = _vectors(4, 2, 3, 1)[0], _vectors(5, 2, 4, 1)[0]

  def total(s, t, mask):
    values = attention_relation(s, t, mask=mask)
    return jnp.sum(values), values

  both = jit(jax.grad(total, argnums=(0, 1), has_aux=True))
  (wanted_slope, _), wanted = both(student, teacher, jnp.ones((BATCH, TIME), bool))

  def pad(x, fill):
    return jnp.pad(x, ((0, 0), (0, 2), (0, 0), (0, 0)), constant_values=fill)

  mask = jnp.arange(TIME + 2)[None, :] < jnp.full((BATCH, 1), TIME)
  (slope, teacher_slope), values = both(pad(student, jnp.nan), pad(teacher, jnp.inf), mask)
  np.testing.assert_allclose(values, wanted, **CLOSE)
  np.testing.assert_allclose(slope[:, :TIME], wanted_slope, **CLOSE)
  np.testing.assert_array_equal(slope[:, TIME:], 0.0)
  np.testing.assert_array_equal(teacher_slope, 0.0)
  _, empty = both(student, teacher, jnp.zeros((BATCH, TIME), bool))
  np.testing.assert_array_equal(empty, 0.0)


def test_padding_may_be_anywhere():
  student, teacher = _vectors(6, 2, 3, 1)[0], _vectors(7, 2, 4, 1)[0]
  mask = jnp.tile(jnp.array([False, True, True, False, True]), (BATCH, 1))
  kept = jnp.array([1, 2, 4])
  np.testing.assert_allclose(
    attention_relation(student, teacher, mask=mask),
    attention_relation(student[:, kept], teacher[:, kept]),
    **CLOSE,
  )


def test_gradient_is_the_slope():
  student, teacher = _vectors(8, 2, 3), _vectors(9, 2, 4)
  direction = _vectors(10, 2, 3, 1)[0]
  gradient_is_the_slope(
    lambda s: jnp.sum(attention_relation(s, teacher[0], student[1], teacher[1], causal=True)),
    student[0],
    direction,
  )


def test_own_heads_are_relation_heads():
  student, teacher = _vectors(11, 4, 3), _vectors(12, 4, 6)
  arrays = student[0], teacher[0], student[1], teacher[1]
  np.testing.assert_array_equal(
    attention_relation(*arrays), attention_relation(*arrays, relation_heads=4)
  )
  half = [x.astype(jnp.bfloat16) for x in arrays]
  assert attention_relation(*half).dtype == jnp.float32


def test_sharded_over_eight_devices_equals_unsharded():
  rng = np.random.default_rng(13)
  student, teacher = (jnp.float32(rng.standard_normal((8, 4, 2, 3))) for _ in range(2))
  mesh = Mesh(np.array(jax.devices()), ("data",))
  placed = jax.device_put((student, teacher), NamedSharding(mesh, PartitionSpec("data")))
  np.testing.assert_allclose(
    jit(attention_relation)(*placed), attention_relation(student, teacher), **CLOSE
  )


@pytest.mark.parametrize(
  ("key", "pairs"),
  [
    ("qk", [("query", "key")]),
    ("vv", [("value", "value")]),
    ("qq_kk_vv", [("query", "query"), ("key", "key"), ("value", "value")]),
  ],
)
def test_minilmv2(key, pairs):
  stored = reference("minilmv2")
  mask = jnp.asarray(stored["mask"] > 0)

  def heads(name, count):  # any head count: they are joined again
    x = jnp.asarray(stored[name])
    return x.reshape(*x.shape[:2], count, -1)

  def mean_loss(student):
    total = 0.0
    for x, y in pairs:
      total += attention_relation(
        student[x].reshape(3, 6, 3, 4),
        heads(f"teacher_{x}", 8),
        student[y].reshape(3, 6, 3, 4),
        heads(f"teacher_{y}", 8),
        relation_heads=6,
        mask=mask,
      )
    return jnp.mean(total)

  student = {n: jnp.asarray(stored[f"student_{n}"]) for n in ("query", "key", "value")}
  value, gradient = jit(jax.value_and_grad(mean_loss))(student)
  np.testing.assert_allclose(value, stored[key], **CLOSE)
  for name in {n for pair in pairs for n in pair}:
    np.testing.assert_allclose(gradient[name], stored[f"{key}_grad_{name}"], **CLOSE)


def test_what_does_not_fit_is_named():
  three, four = _vectors(14, 3, 4, 1)[0], _vectors(15, 4, 3, 1)[0]
  with pytest.raises(KdjaxError, match="the student has 3 heads and the teacher 4"):
    attention_relation(three, four)
  with pytest.raises(KdjaxError, match=r"12 features, which relation_heads=5"):
    attention_relation(three, four, relation_heads=5)
  with pytest.raises(KdjaxError, match="only one of student_y and teacher_y"):
    attention_relation(three, three, three)
  with pytest.raises(KdjaxError, match=r"student_x has shape \(2, 5, 3, 4\).*\(2, 4, 3, 4\)"):
    attention_relation(three, three[:, :4])
  with pytest.raises(KdjaxError, match="mask has dtype int32"):
    attention_relation(three, three, mask=jnp.ones((BATCH, TIME), jnp.int32))
