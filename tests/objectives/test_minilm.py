"""MiniLM relations as an objective: layers, unequal heads, taps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives import minilm
from kdjax.outputs import Outputs
from tests.objectives.helpers import applied


def attention(seed, layers, heads, width, batch=2, time=5):
  keys = jax.random.split(jax.random.key(seed), 3)
  shape = (layers, batch, time, heads, width)
  q, k, v = (jax.random.normal(key, shape) for key in keys)
  return Outputs(queries=q, keys=k, values=v)


def test_version_one_is_attention_plus_value_relation_of_the_last_layers():
  student, teacher = attention(0, 2, 4, 3), attention(1, 6, 4, 8)
  result, _ = applied(minilm(), student, teacher, {})
  at = losses.attention_relation(
    student.queries[-1], teacher.queries[-1], student.keys[-1], teacher.keys[-1]
  )
  vr = losses.attention_relation(student.values[-1], teacher.values[-1])
  assert set(result.loss) == {"s-1_t-1/qk", "s-1_t-1/vv"}
  np.testing.assert_allclose(result.loss["s-1_t-1/qk"].values, at, rtol=1e-6)
  np.testing.assert_allclose(result.loss["s-1_t-1/vv"].values, vr, rtol=1e-6)


def test_version_two_joins_and_splits_unequal_heads():
  student, teacher = attention(0, 2, 3, 4), attention(1, 3, 4, 6)
  objective = minilm(relations=("qq", "kk", "vv"), relation_heads=2, teacher_layer=1)
  result, _ = applied(objective, student, teacher, {})
  wanted = losses.attention_relation(student.keys[-1], teacher.keys[1], relation_heads=2)
  np.testing.assert_allclose(result.loss["s-1_t1/kk"].values, wanted, rtol=1e-6)


def test_only_what_the_relations_read_is_asked_for():
  assert minilm(relations=("vv",)).taps.teacher == {"values"}
  assert minilm().taps.student == {"queries", "keys", "values"}


def test_identical_models_give_zero():
  both = attention(0, 2, 4, 3)
  result, _ = applied(minilm(), both, both, {})
  for term in result.loss.values():
    np.testing.assert_allclose(term.values, 0, atol=1e-6)


def test_padded_tokens_change_nothing():
  student, teacher = attention(0, 1, 2, 3), attention(1, 1, 2, 3)
  pad = lambda x: jnp.concatenate([x, jnp.full_like(x, 9.0)[:, :, :2]], axis=2)  # noqa: E731
  longer = [jax.tree.map(pad, side) for side in (student, teacher)]
  mask = jnp.arange(7)[None, :] < jnp.array([5, 5])[:, None]
  plain, _ = applied(minilm(), student, teacher, {})
  padded, _ = applied(minilm(), *longer, {"attention_mask": mask, "mask": mask})
  for name, term in plain.loss.items():
    np.testing.assert_allclose(padded.loss[name].values, term.values, rtol=1e-5)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [({"relations": ("qx",)}, "'qx' must be two letters"), ({"relations": ()}, "relations is empty")],
)
def test_unknown_relations_are_refused(arguments, message):
  with pytest.raises(KdjaxError, match=message):
    minilm(**arguments)


def test_unequal_heads_without_relation_heads_are_refused():
  with pytest.raises(KdjaxError, match="relation_heads"):
    applied(minilm(), attention(0, 1, 3, 4), attention(1, 1, 4, 3), {})


def test_padding_and_other_texts_of_a_row_are_not_attended_to():
  student, teacher = attention(0, 2, 4, 3), attention(1, 2, 4, 8)
  segments = jnp.array([[1, 1, 1, 0, 0], [1, 1, 2, 2, 2]])
  batch = {"mask": jnp.ones(2, bool), "segment_ids": segments}
  result, _ = applied(minilm(relations=("vv",)), student, teacher, batch)
  wanted = losses.attention_relation(student.values[-1], teacher.values[-1], segments=segments)
  np.testing.assert_allclose(result.loss["s-1_t-1/vv"].values, wanted, rtol=1e-6)
