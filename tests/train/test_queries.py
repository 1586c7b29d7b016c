"""Rounds of queries: who is asked about, what the student then sees, resumption, early refusals."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.data.base import UNLABELLED
from kdjax.errors import KdjaxError
from kdjax.objectives import labels_or_teacher
from kdjax.objectives.base import ObjectiveVars, total
from kdjax.outputs import Outputs
from kdjax.train.job import dry_run, run_job
from kdjax.train.loop import Interrupted
from kdjax.train.streams import load_data
from tests.end_to_end.helpers import tiny


def rounds(by, *budgets):
  return [
    {"name": f"r{i}", "selection": {"name": "queries", "by": by, "budget": budget}}
    for i, budget in enumerate(budgets)
  ]


def config_of(by="robust", budgets=(0, 20, 30), **changes):
  short = {"total_steps": 2, "teacher.train.total_steps": 4, "checkpoint.every": 2}
  short |= {"data.label_fraction": 0.1, "data.validation_fraction": 0.1}
  short |= {"objective": {"name": "labels_or_teacher"}, "stages": rounds(by, *budgets)}
  return tiny(short | changes)


def told(folder, name):
  return json.loads((folder / name / "queries" / "queries.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp("queries") / "run"
  with jax.numpy_dtype_promotion("standard"):
    return folder, run_job(config_of(), folder)


def test_each_round_asks_about_new_images_without_a_label(finished):
  folder, _ = finished
  labels = load_data(config_of()["data"]).train.labels
  first, second, third = (told(folder, name) for name in ("r0", "r1", "."))
  assert first["asked"] == []
  assert len(second["new"]) == 20 and second["asked"] == second["new"]
  assert len(third["new"]) == 30 and third["asked"] == second["asked"] + third["new"]
  assert len(set(third["asked"])) == 50
  assert (labels[third["asked"]] == UNLABELLED).all()
  pool = int((labels == UNLABELLED).sum())
  assert (second["pool"], third["pool"]) == (pool, pool - 20)
  assert second["wrong"] == round((1 - second["teacher_accuracy"]) * pool)
  assert 0 <= second["right"] <= 1


def test_a_job_stopped_between_rounds_asks_the_same_and_ends_with_the_same_bits(finished, tmp_path):
  folder, report = finished
  count = iter(range(100))
  with pytest.raises(Interrupted):  # after the teacher's 5 and the first round's 3 questions
    run_job(config_of(), tmp_path, stop=lambda: next(count) == 9)
  assert (tmp_path / "r1" / "queries").is_dir() and not (tmp_path / "queries").exists()
  again = run_job(config_of(), tmp_path)
  assert told(tmp_path, ".") == told(folder, ".")
  assert again["params_sha256"] == report["params_sha256"]
  assert again["results"] == report["results"]


@pytest.mark.parametrize("by", ["margin", "uniform"])
def test_other_rules(by, tmp_path):
  run_job(config_of(by, (0, 5)), tmp_path)
  assert len(told(tmp_path, ".")["new"]) == 5


def test_labels_where_they_are_and_the_teacher_elsewhere():
  rng = np.random.default_rng(0)
  student, teacher = (jnp.asarray(rng.normal(size=(4, 3)), jnp.float32) for _ in range(2))
  batch = {"label": jnp.array([2, -1, 0, -1]), "mask": jnp.array([True, True, True, False])}

  def loss(student):
    sides = Outputs(logits=student), Outputs(logits=teacher)
    objective = labels_or_teacher()
    return total(objective.apply(ObjectiveVars(), *sides, batch, step=0, rng=None))

  value, grad = jax.jit(jax.value_and_grad(loss))(student)
  target = np.array(jax.nn.softmax(teacher))
  target[[0, 2]] = np.eye(3)[[2, 0]]
  log_p = np.array(jax.nn.log_softmax(student))
  np.testing.assert_allclose(value, -(target * log_p).sum(-1)[:3].mean(), rtol=1e-6)
  wanted = (np.exp(log_p) - target) / 3
  wanted[3] = 0
  np.testing.assert_allclose(grad, wanted, atol=1e-6)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"data.validation_fraction": 0.0}, "config.data.validation_fraction"),
    ({"data.label_fraction": 1.0}, "config.data.label_fraction below 1"),
    ({"stages": rounds("robst", 0, 5)}, "by = 'robst'.*robust"),
    ({"stages": rounds("robust", 0, -5)}, "budget = -5"),
    ({"stages": rounds("robust", 5, 5)}, r"stages\[0\].selection.budget = 5, but no stage before"),
    ({"stages": rounds("robust", 0, 900, 500)}, r"stages\[2\].*budget = 500, but \d+ images"),
  ],
)
def test_mistakes_are_told_before_compute(changes, message):
  with pytest.raises(KdjaxError, match=message):
    dry_run(config_of(**changes))
