"""The latent loss of ERNIE-Tiny: its minimum, its layers, padding, and what it leaves alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.objectives import Outputs, latent, total
from kdjax.objectives.latent import layer_pairs

B, T = 2, 5


def outputs(layers=2, width=8, heads=2, seed=0):
  rng = np.random.default_rng(seed)

  def draw(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  each = {name: draw(layers, B, T, heads, width // heads) for name in ("queries", "keys")}
  return Outputs(hidden_states=draw(layers, B, T, width), **each)


def batch(tokens=(T, 3)):
  segments = (np.arange(T) < np.array(tokens)[:, None]).astype(np.int32)
  return {"mask": jnp.ones(B, bool), "segment_ids": jnp.asarray(segments)}


def value(objective, student, teacher, rows=None, variables=None):
  rows = batch() if rows is None else rows
  variables = variables or objective.init(jax.random.key(0), student, teacher, rows)
  return objective.apply(variables, student, teacher, rows, step=0, rng=None).loss


def test_a_student_that_is_the_teacher_has_no_loss():
  one = outputs()
  terms = value(latent(), one, one)
  for name in ("hidden", "attention"):
    np.testing.assert_allclose(terms[name].values, 0, atol=1e-6)


def test_the_hidden_term_against_numpy():
  student, teacher = outputs(width=4), outputs(layers=4, width=8, seed=1)
  objective = latent(relation_heads=2)
  variables = objective.init(jax.random.key(1), student, teacher, batch())
  terms = value(objective, student, teacher, variables=variables)
  w = np.asarray(variables.params["projection"], np.float64)
  ours, theirs = (np.asarray(x.hidden_states, np.float64) for x in (student, teacher))
  wanted = []
  for row, tokens in enumerate((T, 3)):
    each = [((ours[s, row] @ w - theirs[t, row]) ** 2)[:tokens].mean() for s, t in ((0, 1), (1, 3))]
    wanted.append(np.mean(each))
  np.testing.assert_allclose(terms["hidden"].values, wanted, rtol=1e-5)


def test_padding_changes_nothing_whatever_is_in_it():
  student, teacher = outputs(), outputs(seed=1)

  def spoilt(side):
    hidden = side.hidden_states.at[:, 1, 3:].set(jnp.nan)
    return dataclasses.replace(side, hidden_states=hidden)

  objective = latent()
  before = value(objective, student, teacher)
  after = value(objective, spoilt(student), spoilt(teacher))
  np.testing.assert_array_equal(before["hidden"].values, after["hidden"].values)
  hidden = jax.grad(
    lambda h: sum(
      term.values.sum()
      for term in value(objective, dataclasses.replace(student, hidden_states=h), teacher).values()
    )
  )(student.hidden_states)
  assert not hidden[:, 1, 3:].any() and hidden[:, 1, :3].all()


def test_the_projection_is_learnt_and_begins_as_the_identity_only_between_equal_widths():
  same, narrow, teacher = outputs(), outputs(width=4), outputs(seed=1)
  key = jax.random.key(0)
  projection = latent().init(key, same, teacher, batch()).params["projection"]
  np.testing.assert_array_equal(projection, np.eye(8))
  objective = latent(relation_heads=2)
  variables = objective.init(key, narrow, teacher, batch())
  assert variables.params["projection"].shape == (4, 8)

  def loss(params):
    own = variables._replace(params=params)
    return total(objective.apply(own, narrow, teacher, batch(), step=0, rng=None))

  assert jnp.abs(jax.grad(loss)(variables.params)["projection"]).max() > 0


def test_weights_of_the_terms():
  student, teacher = outputs(), outputs(seed=1)
  terms = value(latent(hidden_weight=0.5, attention_weight=2.0), student, teacher)
  assert (terms["hidden"].weight, terms["attention"].weight) == (0.5, 2.0)
  assert latent().taps.student == {"hidden_states", "queries", "keys"}  # of no head


def test_layers_are_spread_evenly_and_mistakes_are_told():
  assert layer_pairs(None, 4, 12) == [(0, 2), (1, 5), (2, 8), (3, 11)]
  assert layer_pairs(None, 3, 3) == [(0, 0), (1, 1), (2, 2)]
  assert layer_pairs([[1, 4]], 2, 5) == [(1, 4)]
  with pytest.raises(KdjaxError, match=r"5 layers are no multiple of the student's 2; give the"):
    layer_pairs(None, 2, 5)
  for wrong in ([], [[2, 0]], [[0, 5]], [[0]]):
    with pytest.raises(KdjaxError, match="student layer from 0 to 1 and a teacher layer from 0"):
      layer_pairs(wrong, 2, 5)
  with pytest.raises(KdjaxError, match="2 heads and the teacher 4; pass relation_heads"):
    value(latent(), outputs(), outputs(heads=4))
