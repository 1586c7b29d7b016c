"""EchoAtt's first stage against its formula, in chunks, and where it is zero."""

import jax
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.objectives import echoatt, total
from kdjax.outputs import Head, Outputs
from tests.losses.checks import jit, log_softmax64
from tests.objectives.helpers import applied

MAP = (0, 1, 1, 3, 3, 3, 6)  # blocks that end with layers 2 and 5
RNG = np.random.default_rng(0)
KERNEL = RNG.standard_normal((4, 9)).astype(np.float32)
STATES = {side: RNG.standard_normal((7, 2, 5, 4)).astype(np.float32) for side in ("s", "t")}
LABEL = RNG.integers(0, 9, (2, 5)).astype(np.int32)
LABEL[0, :2] = -1
BATCH = {"label": LABEL, "mask": np.arange(10).reshape(2, 5) != 7}
WHERE = (LABEL >= 0) & BATCH["mask"]


def outputs(states, chunked):
  hidden = states[-1]
  if chunked:
    return Outputs(hidden=hidden, head=Head(KERNEL), hidden_states=states)
  return Outputs(logits=hidden @ KERNEL, hidden_states=states)


def value(chunk_size=None, **options):
  objective = echoatt(attention_from=MAP, chunk_size=chunk_size, **options)

  def loss(s, t):
    sides = (outputs(x, chunk_size is not None) for x in (s, t))
    return total(applied(objective, *sides, BATCH)[0])

  return jit(jax.value_and_grad(loss, argnums=(0, 1)))(STATES["s"], STATES["t"])


def test_it_is_the_sum_of_its_three_parts():
  own, told = (STATES[side][-1] @ KERNEL for side in ("s", "t"))
  q, p = log_softmax64(own), log_softmax64(told)
  pseudo = -np.take_along_axis(q, told.argmax(-1)[..., None], -1)[..., 0]
  kl = (np.exp(p) * (p - q)).sum(-1)
  hidden = np.square(STATES["s"] - STATES["t"])[[2, 5]].mean(-1).sum(0)
  wanted = [part[WHERE].mean() for part in (pseudo, kl, hidden)]
  found, (gradient, of_teacher) = value(pseudo_weight=0.5, kd_weight=2.0, hidden_weight=3.0)
  np.testing.assert_allclose(found, np.dot([0.5, 2.0, 3.0], wanted), rtol=1e-5)
  reached = np.abs(gradient).max((2, 3))
  assert [layer for layer in range(7) if reached[layer].any()] == [2, 5, 6]
  assert (np.abs(gradient[-1]).max(-1) > 0).tolist() == WHERE.tolist()
  np.testing.assert_array_equal(of_teacher, 0)


def test_chunks_change_nothing():
  (found, gradients), (wanted, plain) = value(2), value()
  np.testing.assert_allclose(found, wanted, rtol=1e-5)
  np.testing.assert_allclose(gradients[0], plain[0], rtol=1e-4, atol=1e-6)


def test_maps_and_sides_that_do_not_fit_are_told():
  with pytest.raises(KdjaxError, match="shares no attention"):
    echoatt(attention_from=(0, 1, 2))
  sides = outputs(STATES["s"], False), outputs(STATES["t"][:6], False)
  with pytest.raises(KdjaxError, match="same depth and width"):
    applied(echoatt(attention_from=MAP), *sides, BATCH)
