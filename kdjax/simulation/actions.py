"""The action that a policy means."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def beta_action(policy: Float[Array, "*batch 2"]) -> Float[Array, "*batch"]:
  """The mode of each distribution as an action in [-1, 1]; the mean where there is none.

  Args:
    policy: [..., 2], (alpha, beta) > 0. With one of both at most 1 the mode is at an end.

  Returns:
    float32 [...].

  Example:
    >>> print(beta_action(jnp.array([[3.0, 2.0], [0.8, 5.5]])).round(4))
    [ 0.3333 -1.    ]

  Reference:
    OpenDriveLab/DriveAdapter, `_get_action_beta` (driver_adapter_head.py).
  """
  a, b = jnp.moveaxis(policy.astype(jnp.float32), -1, 0)
  inside = (a > 1) & (b > 1)
  mode = jnp.where(inside, a - 1, 1.0) / jnp.where(inside, a + b - 2, 1.0)
  mean = a / jnp.maximum(a + b, 1e-5)
  x = jnp.where(inside, mode, jnp.where((a <= 1) & (b <= 1), mean, jnp.where(a > 1, 1.0, 0.0)))
  return 2 * x - 1
