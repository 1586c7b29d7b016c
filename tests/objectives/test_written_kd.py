"""Which rows teach what."""

import jax
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.objectives import total, written_kd
from kdjax.outputs import Head, Outputs
from tests.losses.checks import jit
from tests.objectives.helpers import applied

RNG = np.random.default_rng(0)
KERNEL = RNG.standard_normal((4, 9)).astype(np.float32)
HIDDEN = RNG.standard_normal((2, 4, 5, 4)).astype(np.float32)
BATCH = {
  "label": RNG.integers(0, 9, (4, 5)).astype(np.int32),
  "mask": np.arange(20).reshape(4, 5) % 7 > 0,
  "written": np.array([True, True, False, False]),
}


def value(chunk_size=None, **options):
  objective = written_kd(chunk_size=chunk_size, **options)

  def loss(hidden, teacher):
    sides = [
      Outputs(logits=x @ KERNEL) if chunk_size is None else Outputs(hidden=x, head=Head(KERNEL))
      for x in (hidden, teacher)
    ]
    return total(applied(objective, *sides, BATCH)[0])

  return jit(jax.value_and_grad(loss))(*HIDDEN)


def test_chunks_change_nothing():
  (found, gradient), (wanted, plain) = value(2), value()
  np.testing.assert_allclose(found, wanted, rtol=1e-5)
  np.testing.assert_allclose(gradient, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)])
def test_labels_teach_given_rows_alone_and_the_teacher_written_ones(weights):
  _, gradient = value(kd_weight=weights[0], ce_weight=weights[1])
  reached = np.abs(gradient).max(-1) > 0
  rows = BATCH["written"] if weights[0] else ~BATCH["written"]
  np.testing.assert_array_equal(reached, rows[:, None] & BATCH["mask"])


def test_rows_that_say_nothing_are_told():
  sides = [Outputs(logits=x @ KERNEL) for x in HIDDEN]
  batch = {name: BATCH[name] for name in ("label", "mask")}
  with pytest.raises(KdjaxError, match="on_policy_targets"):
    applied(written_kd(), *sides, batch)
