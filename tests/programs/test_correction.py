"""Correction of written texts: which token, what stays, what follows it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import models, objectives, teachers
from kdjax.errors import KdjaxError
from kdjax.generation import Sampling, generate
from kdjax.outputs import Head, Outputs
from kdjax.programs import on_policy
from kdjax.programs.correction import faults
from kdjax.programs.evaluators import HEADED
from kdjax.programs.rollouts import Prompts, write
from kdjax.train.mesh import make_mesh
from tests.losses.checks import log_softmax64
from tests.programs.helpers import close, sgd, trained
from tests.programs.test_on_policy import (
  PROMPT,
  ROWS,
  STUDENT,
  TEACHER_MODEL,
  TIME,
  VOCAB,
  batch,
  program,
  student,
  teacher,
)

assert student and teacher  # fixtures
GREEDY = Sampling(0.0)
PROMPTS = Prompts(
  jnp.asarray(batch(3)["tokens"][:, :PROMPT]), jnp.array([4, 2, 3, 1]), jnp.ones(ROWS, bool)
)


def written(model, variables, sides, *, corrections, sampling=GREEDY, eos_ids=(), seed=7):
  """Rows that a model writes, corrected by (model, variables) of both sides."""

  @jax.jit
  def run(variables):
    return write(
      model.decode(variables),
      PROMPTS,
      TIME,
      rng=jax.random.key(seed),
      sampling=sampling,
      eos_ids=eos_ids,
      corrections=corrections,
      tell=lambda rows: tuple(m.apply(v, rows, taps=HEADED)[0] for m, v in sides),
    )

  return jax.device_get(run(variables))


def log_probs(model, variables, rows):
  return log_softmax64(jax.jit(lambda v: model.apply(v, rows)[0].logits)(variables))


def test_the_worst_disagreement_is_found_and_neither_prompt_nor_padding():
  classes, time = 3, 5
  rng = np.random.default_rng(0)
  own, told = 3 * rng.standard_normal((2, 2, time, classes)).astype(np.float32)
  told[0, 1:4, 2] = [9.0, -9.0, 9.0]  # the first row errs twice
  told[1, 1:4, 2] = 9.0  # the second agrees but where it does not count
  label = jnp.array([[-1, 0, int(told[0, 2].argmax()), 1, -1], [-1, 2, 2, 2, 1]])
  own[:, 0], told[:, 0] = [0.0, 90.0, 0.0], [90.0, 0.0, 0.0]
  rows = {"label": label, "mask": jnp.ones((2, time), bool).at[1, 4].set(False)}
  sides = [Outputs(hidden=x, head=Head(jnp.eye(classes))) for x in (own, told)]
  found = jax.jit(faults)(*sides, rows)
  p, q = log_softmax64(told[0]), log_softmax64(own[0])
  kl = (np.exp(p) * (p - q)).sum(-1)
  wrong = [t for t in (1, 2, 3) if told[0, t].argmax() != label[0, t]]
  assert wrong == [1, 3]
  worst = max(wrong, key=lambda t: kl[t])
  assert found.found.tolist() == [True, False]
  assert (found.place[0], found.token[0]) == (worst, told[0, worst].argmax())


def test_a_text_that_the_teacher_would_write_stays(teacher, student):
  sides = (STUDENT, student), (TEACHER_MODEL, teacher.frozen)
  plain = written(TEACHER_MODEL, teacher.frozen, sides, corrections=0)
  same = written(TEACHER_MODEL, teacher.frozen, sides, corrections=2)
  for name, value in plain.items():
    np.testing.assert_array_equal(same[name], value, err_msg=name)


def test_what_is_before_stays_and_the_student_goes_on_after_the_teachers_token(teacher, student):
  sampling = Sampling(1.0)
  sides = (STUDENT, student), (TEACHER_MODEL, teacher.frozen)
  plain = written(STUDENT, student, sides, corrections=0, sampling=sampling)
  new = written(STUDENT, student, sides, corrections=1, sampling=sampling)
  q, p = (log_probs(model, variables, plain) for model, variables in sides)
  kl = (np.exp(p) * (p - q)).sum(-1)
  wrong = (plain["label"] >= 0) & (plain["label"] != p.argmax(-1))
  assert wrong.any(1).all()
  own = log_probs(STUDENT, student, new)
  for row, place in enumerate(np.where(wrong, kl, -1).argmax(1)):
    at = place + 1  # the label's token
    np.testing.assert_array_equal(new["tokens"][row, :at], plain["tokens"][row, :at])
    assert new["tokens"][row, at] == p[row, place].argmax()
    spoken = new["sample_log_probs"][row]
    np.testing.assert_array_equal(spoken[:place], plain["sample_log_probs"][row, :place])
    assert spoken[place] == 0
    rest = [t for t in range(at, TIME) if new["label"][row, t] >= 0]
    drawn = own[row, rest, new["label"][row, rest]]
    np.testing.assert_allclose(spoken[rest], drawn, atol=1e-4)
  np.testing.assert_array_equal(new["label"] >= 0, plain["label"] >= 0)


def test_two_rounds_are_one_after_the_other(teacher, student):
  sides = (STUDENT, student), (TEACHER_MODEL, teacher.frozen)
  once, twice = (written(STUDENT, student, sides, corrections=n) for n in (1, 2))
  p, q = (log_probs(m, v, once) for m, v in sides[::-1])
  kl = (np.exp(p) * (p - q)).sum(-1)
  wrong = (once["label"] >= 0) & (once["label"] != p.argmax(-1))
  places = np.where(wrong, kl, -1).argmax(1)
  row = int(np.where(wrong.any(1), places, TIME).argmin())
  place = int(places[row])
  prompt = once["tokens"][row : row + 1, : place + 2].copy()
  prompt[0, place + 1] = p[row, place].argmax()
  left = int((once["label"][row, place + 1 :] >= 0).sum())
  assert wrong[row].any() and left
  lengths, options = jnp.array([prompt.shape[1]]), {"max_new_tokens": left, "sampling": GREEDY}
  go_on = lambda: generate(STUDENT, student, prompt, lengths, rng=jax.random.key(0), **options)  # noqa: E731
  rest = jax.jit(go_on)().tokens
  text = np.concatenate([prompt, rest], 1)[0]
  np.testing.assert_array_equal(twice["tokens"][row, : len(text)], text)


def test_a_text_ends_where_the_teacher_ends_it(teacher, student):
  sides = (STUDENT, student), (TEACHER_MODEL, teacher.frozen)
  plain = written(STUDENT, student, sides, corrections=0)
  new = written(STUDENT, student, sides, corrections=1)
  row = 0
  at = int((new["tokens"][row] != plain["tokens"][row]).argmax())
  end = int(new["tokens"][row, at])
  # With this end, the text is as before up to it, unless it was in it already.
  assert end not in plain["tokens"][row, 4:].tolist()
  ended = written(STUDENT, student, sides, corrections=1, eos_ids=(end,))
  np.testing.assert_array_equal(ended["tokens"][row, : at + 1], new["tokens"][row, : at + 1])
  assert not ended["tokens"][row, at + 1 :].any() and ended["label"][row, at] == -1
  assert ended["segment_ids"][row].sum() == at + 1


def test_over_devices_texts_are_corrected_the_same(teacher):
  alone, _ = trained(program(teacher, fraction=1.0, corrections=1), [batch()])
  spread, _ = trained(
    program(teacher, fraction=1.0, corrections=1), [batch()], mesh=make_mesh(data=4)
  )
  close(alone.params, spread.params, rtol=1e-4)


def test_corrections_that_cannot_be_are_told(teacher):
  with pytest.raises(KdjaxError, match=r"config\.program\.corrections = -1"):
    program(teacher, corrections=-1)
  both = teachers.ensemble([teacher, teacher])
  objective = objectives.logit_kd(loss="reverse_kl")
  with pytest.raises(KdjaxError, match="a single live teacher"):
    on_policy(STUDENT, objective, sgd(), teacher=both, prompt_length=PROMPT, corrections=1)
  other = models.decoder(num_classes=VOCAB + 1, width=8, depth=1, heads=2)
  larger = teachers.frozen(other, jax.eval_shape(other.init, jax.random.key(0)))
  objective = objectives.cross_entropy(chunk_size=4)
  with pytest.raises(KdjaxError, match="models of one tokenizer"):
    on_policy(STUDENT, objective, sgd(), teacher=larger, prompt_length=PROMPT, corrections=1)
