"""The loop: compiles once, resumes in place, stops when asked, tells what is not finite."""

import json
import shutil

import jax
import jax.monitoring
import numpy as np
import optax
import pytest

from kdjax import objectives
from kdjax.data import arrays
from kdjax.data.pipeline import evaluation_batches, training_stream
from kdjax.errors import KdjaxError
from kdjax.programs import distill
from kdjax.train.checkpoint import Checkpoints, fingerprint
from kdjax.train.loop import Data, Interrupted, Schedule, compile_program, run
from kdjax.train.mesh import make_mesh, teacher_rules
from kdjax.train.metrics import timing
from tests.programs.helpers import STUDENT, batch, teacher

RNG = np.random.default_rng(0)
SET = arrays(
  RNG.random((40, 4, 4, 1), np.float32),
  RNG.integers(0, 3, 40),
  RNG.random((20, 4, 4, 1), np.float32),
  RNG.integers(0, 3, 20),
)


class Stream:
  """A training stream that calls `note(k)` before batch k of this process."""

  def __init__(self, note=lambda k: None):
    self.stream, self.note, self.count = training_stream(SET.train, batch_size=8, seed=3), note, -1

  def __next__(self):
    self.count += 1
    self.note(self.count)
    return next(self.stream)

  def get_state(self):
    return self.stream.get_state()

  def set_state(self, state):
    self.stream.set_state(state)


def go(folder, *, total=12, stream=None, tx=None, **arguments):
  program = distill(STUDENT, objectives.hinton_kd(), tx or optax.adam(1e-2), teacher=teacher())
  checkpoints = Checkpoints(folder / "checkpoints")
  return run(
    program,
    Data(stream or Stream(), lambda: evaluation_batches(SET.test, batch_size=8), lambda: iter(())),
    make_mesh(data=8),
    Schedule(total, log_every=5, eval_every=4, save_every=3),
    checkpoints,
    workdir=folder,
    seed=0,
    meta={},
    **({"matches": lambda meta: None} | arguments),
  )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A finished run: (folder, result)."""
  folder = tmp_path_factory.mktemp("whole")
  with jax.numpy_dtype_promotion("standard"):  # as every test here has it (see conftest.py)
    return folder, go(folder)


def test_nothing_is_compiled_after_the_first_evaluation(tmp_path):
  seen, compiled_at = [0], []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: (
      compiled_at.append(seen[0]) if name.endswith("backend_compile_duration") else None
    )
  )
  go(tmp_path, total=16, stream=Stream(lambda k: seen.__setitem__(0, k)))
  jax.monitoring.clear_event_listeners()
  # Batch 0 is looked at for its shape, batch 1 is the first step, evaluation follows the fourth.
  assert compiled_at and max(compiled_at) <= 5, compiled_at


def test_rows_are_the_means_of_their_steps_and_resume_exactly(whole, tmp_path):
  folder, result = whole
  asked = []
  with pytest.raises(Interrupted, match=r"saved step 7 .*run the same command"):
    go(
      tmp_path,
      stream=Stream(lambda k: asked.append(k)),
      stop=lambda: len(asked) == 8,  # one look at the shape, seven steps
    )
  rest = go(tmp_path)
  assert rest.steps_run == 5 and result.steps_run == 12
  assert fingerprint(rest.state) == fingerprint(result.state)
  assert rest.evaluation["nll"] == result.evaluation["nll"]

  def rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if not timing(k)} for x in lines]

  assert rows(tmp_path) == rows(folder)
  kinds = [(row["step"], row["split"]) for row in rows(folder)]
  assert [k for k in kinds if k[1] == "train"] == [(5, "train"), (10, "train"), (12, "train")]
  assert [k for k in kinds if k[1] == "eval"] == [(4, "eval"), (8, "eval"), (12, "eval")]


def test_a_finished_run_only_evaluates(whole, tmp_path):
  folder, first = whole
  again = go(shutil.copytree(folder, tmp_path / "copy"))
  assert again.steps_run == 0
  assert again.evaluation["accuracy"] == first.evaluation["accuracy"]


def test_the_padded_last_batch_counts_its_rows_only(whole):
  _, result = whole
  assert result.evaluation["reliability/count"].sum() == 20  # three batches of 8


def test_non_finite_values_end_the_run_with_step_and_term_and_keep_checkpoints(tmp_path):
  # Finite up to step 5; then the learning rate overflows the weights.
  rate = lambda step: 0.1 * (step < 5) + 1e38 * (step >= 5)  # noqa: E731
  with pytest.raises(KdjaxError, match=r"step [678] in loss/.*clip_norm"):
    go(tmp_path, tx=optax.sgd(rate))
  assert 3 in Checkpoints(tmp_path / "checkpoints").steps()


def test_a_teacher_may_lie_otherwise_than_the_student():
  program = distill(STUDENT, objectives.hinton_kd(), optax.sgd(0.1), teacher=teacher())
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  compiled = compile_program(
    program, mesh, batch(), rules=teacher_rules({"embed": None, "mlp": ("fsdp", "tensor")})
  )
  told = compiled.frozen_shardings.teacher.params["layer_0"]["kernel"].spec
  own = compiled.state_shardings.params["layer_0"]["kernel"].spec
  assert tuple(told) == (None, ("fsdp", "tensor")) and tuple(own) == ("fsdp", "tensor")
  with pytest.raises(KdjaxError, match=r"config.teacher.rules.embd does not exist.*'embed'"):
    teacher_rules({"embd": None})
  with pytest.raises(KdjaxError, match=r"rules.embed = 'model': \['model'\] is no axis"):
    teacher_rules({"embed": "model"})
