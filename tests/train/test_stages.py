"""Methods of several stages: what is handed on, resumption to the same bits, early refusals."""

import shutil

import jax
import jax.numpy as jnp
import pytest

from kdjax.errors import KdjaxError
from kdjax.programs.distill import carried
from kdjax.train.checkpoint import Checkpoints
from kdjax.train.compare import run_compare
from kdjax.train.job import dry_run, run_job
from kdjax.train.loop import Interrupted
from kdjax.train.metrics import read_metrics, timing
from kdjax.train.stages import stages_of
from tests.end_to_end.helpers import steps, tiny

# The teacher alone first; then its word beside labels, with another optimiser and length.
STAGES = [
  {"name": "first", "total_steps": 4, "objective": {"name": "logit_kd", "loss": "reverse_kl"}},
  {"name": "second", "total_steps": 6, "optimizer": {"name": "sgd", "learning_rate": 0.1}},
]


def staged(stages=STAGES, **changes):
  short = {"checkpoint.every": 2, "eval.every": 4, "teacher.train.total_steps": 2}
  return tiny(short | {"total_steps": 4, "stages": stages} | changes)


def widths(folder):
  """Sizes of the hidden layer in a run's newest checkpoint."""
  checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
  shapes = checkpoints.read_meta()["shapes"]
  checkpoints.close()
  return {s for name, s in shapes.items() if name.startswith("params/") and "[64, " in s}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
  folder = tmp_path_factory.mktemp("staged") / "run"
  with jax.numpy_dtype_promotion("standard"):
    return folder, run_job(staged(), folder)


def test_the_last_stage_is_the_run_and_the_others_lie_beside_it(undisturbed):
  folder, report = undisturbed
  assert steps(folder / "first")[-1] == 4 and steps(folder)[-1] == 6
  assert report["step"] == 6 and set(report["results"]) >= {"teacher", "student_distilled"}
  # What the second stage starts from is what the first one ends with, evaluated on the same data.
  ended = [row for row in read_metrics(folder / "first" / "metrics.jsonl") if row["step"] == 4][-1]
  assert report["results"]["student_distilled_start"]["nll"] == ended["nll"]


# The stop is asked for as a run begins and after each step: 2 of the teacher's, 4, then 6.
@pytest.mark.parametrize("asked", [5, 8, 11], ids=["first stage", "between", "second stage"])
def test_a_job_stopped_in_any_stage_ends_with_the_same_bits(undisturbed, tmp_path, asked):
  whole, report = undisturbed
  count = iter(range(100))
  with pytest.raises(Interrupted):
    run_job(staged(), tmp_path, stop=lambda: next(count) == asked)
  again = run_job(staged(), tmp_path)
  assert again["params_sha256"] == report["params_sha256"]
  assert again["results"] == report["results"]
  for stage in ("first", "."):
    rows, wanted = (
      [
        {key: value for key, value in row.items() if not timing(key)}
        for row in read_metrics(folder / stage / "metrics.jsonl")
      ]
      for folder in (tmp_path, whole)
    )
    assert rows == wanted


def test_a_stage_is_bound_to_the_weights_it_started_from(undisturbed, tmp_path):
  folder = shutil.copytree(undisturbed[0], tmp_path / "run")
  shutil.rmtree(folder / "first")
  changed = [STAGES[0] | {"total_steps": 2}, STAGES[1]]
  with pytest.raises(KdjaxError, match="stage before hands on are not those it started from"):
    run_job(staged(changed), folder)


def test_a_stage_may_give_the_next_one_its_teacher(tmp_path):
  """A teacher assistant: wider than the student, taught by the teacher, then its teacher."""
  kd = {"name": "hinton_kd"}
  stages = [
    {"name": "assistant", "gives": "teacher", "student": {"name": "mlp", "hidden": (12,)}},
    {"name": "student", "objective": kd},
  ]
  report = run_job(staged(stages), tmp_path)
  assert "student_distilled_start" not in report["results"]  # it started from random weights
  assert widths(tmp_path / "assistant") == {"float32[64, 12]"}
  assert widths(tmp_path) == {"float32[64, 8]"}


def test_seeds_of_stages_are_compared_and_the_baseline_may_have_none(tmp_path):
  config = staged(baseline={"objective": {"name": "cross_entropy"}, "stages": None})
  compared = run_compare(config, tmp_path, seeds=1)
  assert steps(tmp_path / "method" / "seed0" / "first")[-1] == 4
  assert not (tmp_path / "baseline" / "first").exists()
  assert compared["total_steps"] == 10 and len(compared["variants"]["method"]) == 1


def test_learned_parameters_of_the_same_path_and_shape_are_carried():
  own = {"latent": {"w": jnp.zeros((2, 3)), "b": jnp.zeros(3)}, "new": jnp.zeros(1)}
  given = {"latent": {"w": jnp.ones((2, 3)), "b": jnp.ones(4)}, "old": jnp.ones(1)}
  out = carried(own, given)
  assert out["latent"]["w"].sum() == 6 and out["latent"]["b"].sum() == 0 and out["new"].sum() == 0
  assert set(out) == {"latent", "new"}


def test_a_stage_has_the_fields_that_it_names_and_the_others_of_the_config():
  first, second = stages_of(config := staged())
  changed = {key for key in config if first.config[key] != second.config[key]}
  assert changed == {"total_steps", "objective", "optimizer"}
  assert first.config["stages"] is None and first.config["data"] == config["data"]
  assert stages_of(config | {"stages": None})[0].config["total_steps"] == 4


MISTAKES = {
  "empty": ([], "config.stages = [] must be a list of at least one stage"),
  "no name": ([{"total_steps": 4}], "config.stages[0] = {'total_steps': 4} must be a mapping"),
  "no mapping": (["first"], "config.stages[0] = 'first' must be a mapping with a name"),
  "repeated": ([STAGES[0], STAGES[0]], "config.stages[1].name = 'first' is the name of another"),
  "a folder": ([{"name": "teacher"}], "config.stages[0].name = 'teacher' is the name of another"),
  "path": ([{"name": "a/b"}], "config.stages[0].name = 'a/b' must be made of letters"),
  "unknown": ([{"name": "a", "steps": 3}], "config.stages[0].steps does not exist"),
  "inner": ([{"name": "a", "eval": {"evry": 3}}], "config.eval.evry does not exist"),
  "shared": ([{"name": "a", "seed": 3}], "config.stages[0].seed: all stages share config.seed"),
  "gives": ([{"name": "a", "gives": "weights"}], "config.stages[0].gives = 'weights' does not"),
  "nobody": ([{"name": "a", "gives": "teacher"}], "no stage follows it"),
  "untrained": (
    [{"name": "a", "teacher": {"model": {"name": "mlp", "hidden": (4,)}}}],
    "config.stages[0].teacher would have to be trained first",
  ),
  "student": (
    [{"name": "a"}, {"name": "b", "student": {"name": "mlp", "hidden": (4,)}}],
    "config.stages[1].student has other weights than stage 'a' hands it",
  ),
  "objective": (
    [{"name": "a"}, {"name": "b", "objective": {"name": "hinton"}}],
    "config.stages[1]: config.objective.name = 'hinton' does not exist",
  ),
}


@pytest.mark.parametrize("stages, told", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told_before_anything_is_computed(stages, told):
  with pytest.raises(KdjaxError) as caught:
    dry_run(staged(stages))
  assert told in str(caught.value)
