"""GOLD: TRL's numbers, whole and in chunks, and what its divergence must be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.data.text.alignment import align
from kdjax.errors import KdjaxError
from kdjax.losses import generalized_jsd
from kdjax.objectives import gold
from tests.losses.checks import CLOSE, jit, reference
from tests.objectives.test_uld import batch_of, compiled, run

STORED = reference("gold")
SHARED = tuple(STORED["shared_student"].tolist()), tuple(STORED["shared_teacher"].tolist())


def grouped(stored):
  batch = batch_of(stored)
  for side, prefix in (("student", ""), ("teacher", "teacher_")):
    groups = np.pad(stored[f"{side}_groups"][:, 1:], [(0, 0), (0, 1)], constant_values=-1)
    batch[prefix + "group_ids"] = jnp.asarray(groups, jnp.int32)
  return batch


@pytest.mark.parametrize(
  ("name", "options", "chunk_size"),
  [
    ("adaptive", {}, 4),
    ("sorted", {"shared_tokens": ((), ())}, None),
    ("fixed", {"matched_weight": 0.7, "unmatched_weight": 0.2, "beta": 0.1, "ce_weight": 0.5}, 3),
    ("forward", {"beta": 0.0}, None),
    ("reverse", {"beta": 1.0}, None),
    ("soft", {"temperature": 2.0}, None),
  ],
)
def test_the_numbers_of_trl(name, options, chunk_size):
  objective = gold(**{"shared_tokens": SHARED, "legacy": True, "chunk_size": chunk_size} | options)
  student, teacher = STORED["student"], STORED["teacher"]
  batch = grouped(STORED)
  got, terms, by_student, by_teacher = run(
    objective, student, teacher, batch, chunk_size is not None
  )
  np.testing.assert_allclose(got, STORED[name], **CLOSE)
  np.testing.assert_allclose(by_student, STORED[f"{name}_grad"], **CLOSE)
  np.testing.assert_array_equal(by_teacher, 0)
  assert set(terms) == ({"kd", "ce"} if "ce_weight" in options else {"kd"})


def test_the_groups_of_trl():
  for row in range(3):
    ends, places = [], []
    for side in ("student", "teacher"):
      own = STORED[f"{side}_labels"][row] >= 0
      ends += [STORED[f"{side}_offsets"][row, own, 1], np.array([0, own.sum()])]
      places.append(STORED[f"{side}_groups"][row, own])
    groups = align(*ends)
    np.testing.assert_array_equal(groups.student, places[0])
    np.testing.assert_array_equal(groups.teacher, places[1])


def test_the_divergence_is_one():
  """Completed by what is left, it is that of one vocabulary where both are the same."""
  rng = np.random.default_rng(0)
  student, teacher = rng.standard_normal((2, 2, 6, 5)).astype(np.float32)
  label = jnp.asarray(rng.integers(0, 5, (2, 6)), jnp.int32)
  single = jnp.broadcast_to(jnp.arange(6), (2, 6))
  both = {
    "label": label,
    "mask": jnp.ones((2, 6), bool),
    "segment_ids": jnp.ones((2, 6), jnp.int32),
  }
  batch = both | {f"teacher_{key}": value for key, value in both.items()}
  batch |= {"group_ids": single, "teacher_group_ids": single}
  loss = compiled(gold(shared_tokens=(range(5), range(5)), chunk_size=4), chunked=True)
  got, _, by_student, _ = loss(student, teacher, batch)
  wanted, gradient = jit(
    jax.value_and_grad(lambda s: generalized_jsd(s, jnp.asarray(teacher)).mean())
  )(student)
  np.testing.assert_allclose(got, wanted, **CLOSE)
  np.testing.assert_allclose(by_student, gradient, **CLOSE)
  # Merged, the first three and the rest: by the chain rule, from what the tokens' rows say.
  groups = jnp.array([[0, 0, 0, 1, 1, 1]] * 2)
  batch |= {"group_ids": groups, "teacher_group_ids": groups}
  got, *_ = loss(student, teacher, batch)
  rows = []
  for side in (teacher, student):
    p = np.exp(side - np.log(np.exp(side).sum(-1, keepdims=True)))
    said = np.take_along_axis(p, np.asarray(label)[..., None], -1)[..., 0]
    merged = np.stack(
      [p[:, 2] * said[:, :2].prod(1)[:, None], p[:, 5] * said[:, 3:5].prod(1)[:, None]], 1
    )
    rows.append(np.concatenate([merged, 1 - merged.sum(-1, keepdims=True)], -1))
  mixture = (rows[0] + rows[1]) / 2
  wanted = sum((r * np.log(r / mixture)).sum(-1) for r in rows) / 2
  np.testing.assert_allclose(got, wanted.mean(), **CLOSE)
  assert got >= 0
  same, *_ = loss(teacher, teacher, batch)
  np.testing.assert_allclose(same, 0, atol=1e-6)


def test_nothing_that_counts_gives_zero_and_no_nan():
  batch = jax.tree.map(jnp.zeros_like, grouped(STORED))
  nothing = [np.full_like(STORED[side], np.nan) for side in ("student", "teacher")]
  objective = gold(shared_tokens=SHARED, chunk_size=4)
  got, _, by_student, _ = run(objective, *nothing, batch, chunked=True)
  assert got == 0
  np.testing.assert_array_equal(by_student, 0)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"temperature": 0.0}, "gold: temperature = 0.0 must be positive"),
    ({"beta": 1.5}, r"gold: beta = 1.5 must lie in \[0, 1\]"),
    ({"matched_weight": 1.0}, "matched_weight and unmatched_weight both, or neither"),
    ({"shared_tokens": ((1,), ())}, "as many ids of the student as of the teacher"),
  ],
)
def test_mistakes_are_told(options, message):
  with pytest.raises(KdjaxError, match=message):
    gold(**{"shared_tokens": SHARED} | options)


def test_mistakes_of_a_batch_are_told():
  student, teacher = STORED["student"], STORED["teacher"]
  with pytest.raises(KdjaxError, match=r"no groups of tokens.*config\.data\.teacher_tokenizer"):
    run(gold(shared_tokens=SHARED), student, teacher, batch_of(STORED))
  with pytest.raises(KdjaxError, match=r"student's ids 0 to 99, and its logits have 12 classes"):
    run(gold(shared_tokens=((0, 99), (0, 1))), student, teacher, grouped(STORED))
