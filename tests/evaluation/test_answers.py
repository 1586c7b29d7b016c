"""Answers behind a marker: the last one counts, and its end."""

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.evaluation.answers import answer_match

M, END = 9, 0
REFERENCE = [M, 4, 2, END, -1, -1]
WRITTEN = {
  "the same": ([M, 4, 2, END, 0, 0], 4, True),
  "steps before": ([7, M, 1, M, 4, 2, END, 0], 7, True),
  "goes on": ([M, 4, 2, 2, END, 0], 5, False),
  "ends early": ([M, 4, END, 0, 0, 0], 3, False),
  "without its end": ([M, 4, 2, 0, 0, 0], 3, False),
  "no marker": ([4, 2, END, 0, 0, 0], 3, False),
  "marker in the padding": ([4, END, M, 4, 2, END], 2, False),
}


def test_what_stands_behind_the_last_marker_is_compared():
  width = max(len(row) for row, _, _ in WRITTEN.values())
  tokens = jnp.array([row + [END] * (width - len(row)) for row, _, _ in WRITTEN.values()])
  lengths = jnp.array([length for _, length, _ in WRITTEN.values()])
  reference = jnp.array([REFERENCE] * len(WRITTEN))
  four = jnp.full(len(WRITTEN), 4)
  right = jax.jit(answer_match, static_argnums=4)(tokens, lengths, reference, four, M)
  assert dict(zip(WRITTEN, right.tolist(), strict=True)) == {k: v[2] for k, v in WRITTEN.items()}
  # A reference without an answer is matched by nothing, itself included.
  none = jnp.array([[4, END]])
  two = jnp.array([2])
  np.testing.assert_array_equal(answer_match(none, two, none, two, M), [False])
