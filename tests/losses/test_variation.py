"""Total variation distance."""

import jax.numpy as jnp
import numpy as np

from kdjax.losses import total_variation

from .checks import P, Q, log32, log_softmax64, matches, mean_over, random_logits, reference


def test_golden_values():
  # (.6 + .1 + .5) / 2; disjoint sides are at distance 1.
  np.testing.assert_allclose(total_variation(log32(Q), log32(P)), 0.6, rtol=1e-6)
  one = total_variation(jnp.array([0.0, -jnp.inf]), jnp.array([-jnp.inf, 0.0]))
  np.testing.assert_allclose(one, 1.0, rtol=1e-6)


def test_float64_twin_symmetry_and_bounds():
  student, teacher = random_logits(0, (50, 9), 5.0)
  p, q = (np.exp(log_softmax64(z)) for z in (teacher, student))
  value = total_variation(jnp.asarray(student), jnp.asarray(teacher))
  np.testing.assert_allclose(value, np.abs(p - q).sum(-1) / 2, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(total_variation(jnp.asarray(teacher), jnp.asarray(student)), value)
  assert (value >= 0).all() and (value <= 1 + 1e-6).all()


def test_distillm():
  stored = reference("distillm")
  where = stored["labels"] != -100
  matches(
    stored,
    {"tv_distance": lambda s: mean_over(total_variation(s, stored["teacher"]), where)},
    stored["student"],
  )
