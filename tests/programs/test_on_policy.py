"""On-policy rows: what is written, what is learnt from it, and that resuming changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import models, objectives, teachers
from kdjax.errors import KdjaxError
from kdjax.generation import Generation, Sampling, generate
from kdjax.generation.generate import continued
from kdjax.generation.mixture import mixture
from kdjax.programs import distill, on_policy, rollouts
from kdjax.programs.on_policy import as_written
from kdjax.programs.rollouts import Prompts, beginnings, written_rows
from kdjax.teachers.base import Teacher
from kdjax.train.loop import compile_program
from kdjax.train.mesh import make_mesh, place
from tests.programs.helpers import close, runner, sgd, trained

VOCAB, TIME, PROMPT, ROWS = 17, 10, 4, 4
STUDENT = models.decoder(num_classes=VOCAB, width=8, depth=1, heads=2, mlp_width=8)
TEACHER_MODEL = models.decoder(num_classes=VOCAB, width=16, depth=1, heads=2, mlp_width=8)


def strong(variables):
  """Weights large enough that next tokens are far from uniform."""
  return jax.tree.map(lambda x: 4 * x, variables)


@pytest.fixture(scope="module")
def teacher():
  return teachers.frozen(TEACHER_MODEL, strong(jax.jit(TEACHER_MODEL.init)(jax.random.key(1))))


@pytest.fixture(scope="module")
def student():
  return strong(jax.jit(STUDENT.init)(jax.random.key(2)))


def batch(seed=0):
  tokens = np.random.default_rng(seed).integers(0, VOCAB, (ROWS, TIME + 1)).astype(np.int32)
  return {
    "tokens": tokens[:, :-1],
    "label": tokens[:, 1:],
    "mask": np.ones((ROWS, TIME), bool),
    "segment_ids": np.ones((ROWS, TIME), np.int32),
    "positions": np.tile(np.arange(TIME, dtype=np.int32), (ROWS, 1)),
    "domain": np.zeros(ROWS, np.int32),
  }


def program(teacher, **options):
  objective = options.pop("objective", objectives.logit_kd(loss="reverse_kl", chunk_size=4))
  return on_policy(STUDENT, objective, sgd(), teacher=teacher, prompt_length=PROMPT, **options)


@pytest.fixture(scope="module")
def always(teacher):
  """A program that writes at every step, compiled."""
  return runner(program(teacher, fraction=1.0), batch())


def test_written_rows_hold_prompt_and_text_and_teach_the_text_alone():
  prompts = Prompts(jnp.array([[5, 6, 7, 8], [5, 6, 0, 0]]), jnp.array([4, 2]), jnp.ones(2, bool))
  written = Generation(
    tokens=jnp.array([[11, 12, 13], [14, 2, 0]]),
    lengths=jnp.array([3, 2]),
    log_probs=jnp.zeros((2, 3)),
    sample_log_probs=jnp.array([[-1.0, -2, -3], [-4, -5, 0]]),
    finished=jnp.array([False, True]),
  )
  rows = written_rows(prompts, written, 8)
  wanted = {
    "tokens": [[5, 6, 7, 8, 11, 12, 13, 0], [5, 6, 14, 2, 0, 0, 0, 0]],
    "label": [[-1, -1, -1, 11, 12, 13, -1, -1], [-1, 14, 2, -1, -1, -1, -1, -1]],
    "segment_ids": [[1] * 7 + [0], [1] * 4 + [0] * 4],
    "sample_log_probs": [[0, 0, 0, -1, -2, -3, 0, 0], [0, -4, -5, 0, 0, 0, 0, 0]],
  }
  for name, value in wanted.items():
    np.testing.assert_array_equal(rows[name], value, err_msg=name)
  np.testing.assert_array_equal(rows["mask"], rows["label"] >= 0)


def test_a_prompt_is_a_question_whole_or_the_first_tokens_of_an_example():
  rows = batch() | {"label": batch()["label"].copy(), "segment_ids": np.ones((ROWS, TIME), int)}
  rows["label"][1, :2] = -1  # a question of 3 tokens
  rows["label"][2, :5] = -1  # of 6: longer than a prompt may be
  rows["segment_ids"][3, 2:] = 2  # an example of 2
  prompts = beginnings(rows, PROMPT)
  np.testing.assert_array_equal(prompts.lengths[jnp.array([0, 1, 3])], [4, 3, 2])
  np.testing.assert_array_equal(prompts.where, [True, True, False, True])


def test_a_row_that_is_left_out_teaches_nothing_and_all_of_them_give_loss_zero(always):
  rows = batch()
  rows["label"] = np.where(np.arange(TIME) < TIME - 1, -1, rows["label"])
  _, (metrics,) = always([rows])
  assert metrics["loss"][0] == 0 and metrics["tokens_learnt"][0] == 0
  assert np.isfinite(metrics["grad_norm"][0])


def test_a_text_that_ends_at_once_teaches_its_end():
  prompts = Prompts(jnp.array([[5, 6]]), jnp.array([2]), jnp.ones(1, bool))
  spoken = jnp.zeros((1, 3))
  ended = Generation(
    jnp.array([[2, 0, 0]]), jnp.array([1]), spoken, spoken - 1.0, jnp.ones(1, bool)
  )
  rows = written_rows(prompts, ended, 5)
  np.testing.assert_array_equal(rows["label"], [[-1, 2, -1, -1, -1]])
  np.testing.assert_array_equal(rows["sample_log_probs"], [[0, -1, 0, 0, 0]])


def test_never_on_policy_is_distill_and_always_is_distill_on_what_was_written(teacher, always):
  objective = objectives.logit_kd(loss="reverse_kl", chunk_size=4)
  plain = distill(STUDENT, objective, sgd(), teacher=teacher)
  rows = batch()
  data = jax.tree.map(np.asarray, as_written(rows))
  compiled = runner(plain, data)
  never, _ = trained(program(teacher, fraction=0.0), [rows] * 2)
  close(never, compiled([data] * 2)[0], rtol=1e-6)

  found, (metrics,) = always([rows])
  start, _ = compiled([])
  key = jax.random.fold_in(jax.random.wrap_key_data(start.rng), 0)
  _, draws = jax.random.split(jax.random.fold_in(key, 1))
  prompts = beginnings(rows, PROMPT)

  @jax.jit
  def write(params):
    variables = models.ModelVars(params, start.model_state)
    options = {"rng": draws, "max_new_tokens": TIME - PROMPT}
    written = generate(STUDENT, variables, prompts.tokens, prompts.lengths, **options)
    return written_rows(prompts, written, TIME)

  wanted, (plain_metrics,) = compiled([jax.tree.map(np.asarray, write(start.params))])
  close(found.params, wanted.params)
  np.testing.assert_allclose(metrics["loss"][0], plain_metrics["loss"][0], rtol=1e-5)
  assert metrics["on_policy"] == (1, 1)


def test_the_coin_falls_as_often_as_it_should_and_the_same_again(teacher):
  rows = [batch(seed) for seed in range(40)]
  run = runner(program(teacher, fraction=0.5), rows[0])
  state, every = run(rows)
  tosses = [int(m["on_policy"][0]) for m in every]
  assert 10 <= sum(tosses) <= 30
  again, repeated = run(rows[:20])
  assert [int(m["on_policy"][0]) for m in repeated] == tosses[:20]
  assert state.step == 40 and again.step == 20


def test_a_mixture_draws_from_the_mean_of_both_distributions(teacher, student):
  share, count = 0.3, 4000
  prompts = jnp.full((count, 1), 3)

  def first(decoding):
    return continued(
      decoding,
      prompts,
      jnp.ones(count, jnp.int32),
      rng=jax.random.key(5),
      max_new_tokens=1,
      sampling=Sampling(),
    )

  decodings = lambda: (STUDENT.decode(student), teacher.decode(teacher.frozen))  # noqa: E731
  out = jax.jit(lambda: first(mixture(*decodings(), share)))()
  probs = [
    jax.nn.softmax(model.apply(v, {"tokens": prompts[:1]})[0].logits[0, 0])
    for model, v in ((STUDENT, student), (TEACHER_MODEL, teacher.frozen))
  ]
  wanted = (1 - share) * probs[0] + share * probs[1]
  np.testing.assert_allclose(jnp.exp(out.log_probs[:, 0]), wanted[out.tokens[:, 0]], rtol=1e-4)
  drawn = np.bincount(out.tokens[:, 0], minlength=VOCAB) / count
  assert np.abs(drawn - wanted).max() < 5 * np.sqrt(0.25 / count)
  assert np.abs(wanted - probs[0]).max() > 0.05


def test_minillm_and_data_share_a_step(teacher):
  objective = objectives.minillm(chunk_size=4)
  one = program(teacher, objective=objective, fraction=1.0, keep_data=True, teacher_share=0.2)
  _, (metrics,) = trained(one, [batch()])
  assert metrics["loss/ce"][1] == ROWS * TIME
  assert metrics["loss/policy"][1] == metrics["tokens_learnt"][0] - ROWS * TIME
  assert np.isfinite(metrics["grad_norm"][0]) and metrics["grad_norm"][0] > 0


def test_over_devices_it_writes_and_learns_the_same(teacher, always):
  alone, _ = always([batch()])
  spread, _ = trained(program(teacher, fraction=1.0), [batch()], mesh=make_mesh(data=4))
  close(alone.params, spread.params, rtol=1e-4)


@pytest.mark.parametrize(
  ("change", "told"),
  [
    ({"fraction": 1.5}, "config.program.fraction = 1.5"),
    ({"teacher_share": 1.1, "fraction": 1.0}, "config.program.teacher_share = 1.1"),
    ({"keep_data": True}, "set fraction = 1"),
    ({"eos_ids": (VOCAB,)}, "eos_ids"),
    ({"temperature": -1.0}, "temperature = -1"),
  ],
)
def test_options_out_of_range_are_told(teacher, change, told):
  with pytest.raises(KdjaxError, match=told):
    program(teacher, **change)


def test_a_cache_cannot_say_anything_about_texts_that_are_written_now():
  stored = Teacher(
    apply=lambda *a, **k: None, taps=frozenset({"signal"}), num_classes=VOCAB, anywhere=False
  )
  with pytest.raises(KdjaxError, match="is a cache"):
    program(stored)


def test_a_prompt_must_leave_room(teacher):
  tight = on_policy(
    STUDENT,
    objectives.logit_kd(loss="reverse_kl", chunk_size=4),
    sgd(),
    teacher=teacher,
    prompt_length=TIME,
  )
  with pytest.raises(KdjaxError, match="leaves nothing to write"):
    tight.init(jax.random.key(0), batch())


def test_a_student_that_cannot_write_is_refused(teacher):
  with pytest.raises(KdjaxError, match="does not continue text"):
    on_policy(
      models.mlp(num_classes=VOCAB, image_shape=(4, 4, 1)),
      objectives.logit_kd(loss="reverse_kl"),
      sgd(),
      teacher=teacher,
      prompt_length=2,
    )


def test_a_teacher_that_writes_alone_writes_what_it_would_by_itself(teacher):
  """At a share of 1 the student's weights do not matter to what is written."""
  own = program(teacher, objective=objectives.cross_entropy(chunk_size=4), fraction=1.0,
                teacher_share=1.0)  # fmt: skip
  compiled = compile_program(own, make_mesh(data=1), batch())
  said = []
  for seed in (0, 1):
    state = compiled.init(jax.random.key(seed))
    state = state._replace(rng=jax.random.key_data(jax.random.key(9)))
    _, metrics = compiled.step(state, own.frozen, place(batch(), compiled.batch_sharding))
    said.append(jax.device_get(metrics))
  assert said[0]["tokens_learnt"] == said[1]["tokens_learnt"]
  assert said[0]["loss"][0] != said[1]["loss"][0]
  # The loss is that of the text which the teacher writes with the same random numbers.
  rows = rollouts.write(
    teacher.decode(teacher.frozen),
    beginnings(batch(), PROMPT),
    TIME,
    rng=jax.random.split(jax.random.fold_in(jax.random.fold_in(jax.random.key(9), 0), 1))[1],
    sampling=Sampling(),
    eos_ids=(),
  )
  again = STUDENT.init(jax.random.split(jax.random.key(0), 3)[0])
  log_probs = jax.nn.log_softmax(STUDENT.apply(again, rows)[0].logits)
  picked = np.take_along_axis(np.asarray(log_probs), np.maximum(rows["label"], 0)[..., None], -1)
  wanted = -picked[..., 0][np.asarray(rows["mask"])].mean()
  assert float(said[0]["loss"][0]) == pytest.approx(wanted, rel=1e-4)
