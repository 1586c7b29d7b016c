"""What the tests of losses share: stored reference numbers and float64 NumPy arithmetic."""

import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

_REFERENCE = pathlib.Path(__file__).parents[2] / "third_party" / "reference"

# float32 against numbers that were also computed in float32.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}

# The worked example of several files: teacher p and student q over three classes.
P = np.array([0.7, 0.2, 0.1])
Q = np.array([0.1, 0.3, 0.6])


def jit(function: Callable) -> Callable:
  """`jax.jit` without optimisations: here compiling costs far more than running."""
  return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def log32(probabilities) -> jax.Array:
  return jnp.asarray(np.log(probabilities), jnp.float32)


def reference(name: str) -> dict[str, np.ndarray]:
  with np.load(_REFERENCE / f"{name}.npz", allow_pickle=False) as stored:
    return dict(stored)


def random_logits(seed: int, shape: tuple[int, ...], scale: float = 2.0) -> list[np.ndarray]:
  """Student and teacher logits, float32."""
  rng = np.random.default_rng(seed)
  return [(scale * rng.standard_normal(shape)).astype(np.float32) for _ in range(2)]


def log_softmax64(logits, temperature: float = 1.0) -> np.ndarray:
  z = np.asarray(logits, np.float64) / temperature
  z = z - z.max(-1, keepdims=True)
  return z - np.log(np.exp(z).sum(-1, keepdims=True))


def kl64(p, q) -> np.ndarray:
  """KL of probabilities over the last axis, 0 log 0 = 0."""
  p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
  with np.errstate(divide="ignore", invalid="ignore"):
    return np.where(p > 0, p * (np.log(p) - np.log(q)), 0.0).sum(-1)


def mean_over(values, where) -> jax.Array:
  """The mean over valid rows, as most official codes reduce."""
  count = int(np.broadcast_to(where, values.shape).sum())
  return jnp.sum(jnp.where(where, values, 0.0)) / count


def matches(stored: dict[str, np.ndarray], losses: dict[str, Callable], student) -> None:
  """Values and gradients of `loss(student)` against the numbers stored under their keys."""
  together = jit(lambda s: {key: jax.value_and_grad(f)(s) for key, f in losses.items()})
  for key, (value, gradient) in together(student).items():
    np.testing.assert_allclose(value, stored[key], **CLOSE, err_msg=key)
    np.testing.assert_allclose(gradient, stored[f"{key}_grad"], **CLOSE, err_msg=key)


def gradient_is_the_slope(total: Callable, x: jax.Array, direction: jax.Array) -> None:
  """The gradient of a scalar function against a central difference along `direction`."""
  both = jit(jax.value_and_grad(total))
  wanted = (both(x + 0.01 * direction)[0] - both(x - 0.01 * direction)[0]) / 0.02
  np.testing.assert_allclose(jnp.sum(both(x)[1] * direction), wanted, rtol=2e-3, atol=2e-3)
