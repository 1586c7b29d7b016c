"""Distances to teacher and oracle: exact, zero where they must be, and nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import models, objectives, teachers
from kdjax.errors import KdjaxError
from kdjax.generation import generate
from kdjax.programs import distill, on_policy
from kdjax.programs.evaluators import HEADED, language
from kdjax.programs.rollouts import Prompts, beginnings, written_rows
from kdjax.programs.watched import distance, watched
from kdjax.train.loop import compile_program
from kdjax.train.mesh import make_mesh, place
from tests.programs.helpers import close, sgd

VOCAB, TIME, PROMPT, ROWS = 13, 10, 4, 4
STUDENT = models.decoder(num_classes=VOCAB, width=8, depth=1, heads=2, mlp_width=8)
OTHER = models.decoder(num_classes=VOCAB, width=16, depth=1, heads=2, mlp_width=8)


def strong(model, seed):
  return jax.tree.map(lambda x: 4 * x, jax.jit(model.init)(jax.random.key(seed)))


@pytest.fixture(scope="module")
def sides():
  """Student's variables, teacher and oracle."""
  made = [teachers.frozen(OTHER, strong(OTHER, seed)) for seed in (1, 2)]
  return strong(STUDENT, 3), *made


def batch(seed=0):
  tokens = np.random.default_rng(seed).integers(0, VOCAB, (ROWS, TIME + 1)).astype(np.int32)
  return {
    "tokens": tokens[:, :-1],
    "label": tokens[:, 1:],
    "mask": np.ones((ROWS, TIME), bool),
    "segment_ids": np.ones((ROWS, TIME), np.int32),
    "positions": np.tile(np.arange(TIME, dtype=np.int32), (ROWS, 1)),
    "domain": np.zeros(ROWS, np.int32),
    "index": np.arange(7, 7 + ROWS, dtype=np.int32),
  }


def program(teacher, make=distill, **options):
  objective = objectives.logit_kd(loss="forward_kl", chunk_size=4)
  return make(STUDENT, objective, sgd(), teacher=teacher, evaluator=language(), **options)


def evaluated(one, student=None, steps=0):
  """(evaluation as means, final parameters) after some steps from the given weights."""
  mesh = make_mesh(data=1)
  compiled = compile_program(one, mesh, batch())
  frozen = jax.device_put(one.frozen, compiled.frozen_shardings)
  state = compiled.init(jax.random.key(0))
  if student is not None:
    state = state._replace(params=jax.tree.map(jnp.copy, student.params))
  for seed in range(steps):
    state, _ = compiled.step(state, frozen, place(batch(seed), compiled.batch_sharding))
  pairs = compiled.evaluate(state, frozen, place(batch(), compiled.batch_sharding))
  scalars = {k: v for k, v in jax.device_get(pairs).items() if np.ndim(v[0]) == 0}
  return {name: float(num / den) for name, (num, den) in scalars.items()}, state.params


def watch(teacher, oracle, make=distill, watching=(), **options):
  own = program(teacher, make, **options)
  return watched(own, STUDENT, teacher, oracle, prompt_length=PROMPT, **dict(watching))


def test_a_distance_is_the_mean_divergence_on_the_texts(sides):
  """By hand: the student's text of each row, both models' whole log-probabilities on it."""
  student, teacher, oracle = sides
  told, _ = evaluated(watch(teacher, oracle), student)
  prompts = beginnings(batch(), PROMPT)
  written = jax.jit(lambda v: generate(
    STUDENT, v, prompts.tokens, prompts.lengths, rng=jax.random.key(0),
    max_new_tokens=TIME - PROMPT, rows=jnp.arange(7, 7 + ROWS),
  ))(student)  # fmt: skip
  rows = written_rows(Prompts(*prompts), written, TIME)
  logits = lambda model, v: jax.nn.log_softmax(  # noqa: E731
    jax.jit(lambda v: model.apply(v, rows)[0].logits)(v)
  )
  own = logits(STUDENT, student)
  where = np.asarray(rows["mask"])
  assert where.sum() == ROWS * (TIME - PROMPT)
  for name, other in (("proxy", teacher), ("golden", oracle)):
    theirs = logits(OTHER, other.frozen)
    values = np.asarray((jnp.exp(own) * (own - theirs)).sum(-1))
    assert (values >= -1e-6).all()
    assert told[name] == pytest.approx(values[where].mean(), rel=1e-4)
  assert abs(told["proxy"] - told["golden"]) > 1e-3


@pytest.mark.parametrize(
  ("drawn_from", "divergence"), [("student", "reverse_kl"), ("other", "forward_kl")]
)
def test_with_the_oracle_as_teacher_both_are_one(sides, drawn_from, divergence):
  student, teacher, _ = sides
  watching = {"drawn_from": drawn_from, "divergence": divergence}
  told, _ = evaluated(watch(teacher, teacher, watching=watching), student)
  assert told["proxy"] == told["golden"] > 0.01
  assert {"nll", "teacher/nll"} <= told.keys()


def test_options_say_whose_texts_and_which_direction(sides):
  student, teacher, oracle = sides
  told = {
    (drawn, way): evaluated(
      watch(teacher, oracle, watching={"drawn_from": drawn, "divergence": way}), student
    )[0]["golden"]
    for drawn, way in (
      ("student", "reverse_kl"),
      ("student", "forward_kl"),
      ("other", "reverse_kl"),
    )
  }
  assert len(set(told.values())) == 3


def test_a_model_is_at_no_distance_from_itself(sides):
  _, teacher, _ = sides
  own = lambda rows: teacher.apply(teacher.frozen, (), rows, taps=HEADED)  # noqa: E731
  num, den = distance(teacher.decode(teacher.frozen), own, own, batch(), prompt_length=PROMPT)
  assert float(num) == pytest.approx(0, abs=1e-5) and den == ROWS * (TIME - PROMPT)


@pytest.mark.parametrize("make", [distill, on_policy])
def test_watching_changes_nothing_of_what_is_learnt(sides, make):
  _, teacher, oracle = sides
  options = {} if make is distill else {"prompt_length": PROMPT, "fraction": 1.0}
  _, alone = evaluated(program(teacher, make, **options), steps=3)
  told, seen = evaluated(watch(teacher, oracle, make, **options), steps=3)
  close(alone, seen, rtol=0, atol=0)
  assert {"proxy", "golden"} <= told.keys()


def test_rows_of_padding_count_nothing(sides):
  _, teacher, oracle = sides
  one = watch(teacher, oracle)
  padded = batch() | {"mask": np.zeros((ROWS, TIME), bool), "index": np.full(ROWS, -1, np.int32)}
  compiled = compile_program(one, make_mesh(data=1), batch())
  state = compiled.init(jax.random.key(0))
  pairs = compiled.evaluate(state, one.frozen, place(padded, compiled.batch_sharding))
  assert float(pairs["golden"][0]) == float(pairs["golden"][1]) == 0


@pytest.mark.parametrize(
  ("watching", "message"),
  [
    ({"drawn_from": "teacher"}, "drawn_from = 'teacher' does not exist"),
    ({"divergence": "kl"}, "divergence = 'kl' does not exist"),
  ],
)
def test_mistakes_are_told(sides, watching, message):
  _, teacher, oracle = sides
  with pytest.raises(KdjaxError, match=message):
    watch(teacher, oracle, watching=watching)


def test_all_have_one_vocabulary(sides):
  _, teacher, _ = sides
  large = models.decoder(num_classes=VOCAB + 1, width=8, depth=1, heads=2)
  oracle = teachers.frozen(large, large.init(jax.random.key(0)))
  with pytest.raises(KdjaxError, match=r"different class counts: \[13, 14\]"):
    watch(teacher, oracle)
