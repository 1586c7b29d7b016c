"""A batch that makes the loss infinite: the job stops, leaves it out, or goes back and past it."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import objectives
from kdjax.errors import KdjaxError
from kdjax.train.job import run_job
from tests.end_to_end.helpers import steps, tiny

# Of the 1,437 training images one is poison: the objective is infinite in a batch that holds it.
POISON = {}
HINTON_KD = objectives.hinton_kd


def poisoned(**arguments):
  inner = HINTON_KD(**arguments)

  def apply(variables, student, teacher, batch, *, step, rng):
    found = inner.apply(variables, student, teacher, batch, step=step, rng=rng)
    name, term = next(iter(found.loss.items()))
    bad = jnp.where(jnp.any(batch["index"] == POISON["index"]), jnp.inf, 0.0)
    return found._replace(loss={**found.loss, name: term._replace(values=term.values + bad)})

  return inner._replace(apply=apply)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  folder = tmp_path_factory.mktemp("teacher") / "run"
  with jax.numpy_dtype_promotion("standard"):
    run_job(tiny({"total_steps": 1}), folder)
  return str(folder / "teacher")


@pytest.fixture
def job(teacher, monkeypatch):
  """Runs the job with image `index` as poison."""

  def run(folder, index, **changes):
    monkeypatch.setitem(POISON, "index", index)
    monkeypatch.setattr(objectives, "hinton_kd", poisoned)
    config = tiny({"teacher.checkpoint": teacher, "eval.log_every": 1} | changes)
    return run_job(config, folder)

  return run


def rows(folder):
  lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
  return {row["step"]: row for row in lines if row["split"] == "train"}


def remembered():
  """What each step reads, and the objective that tells it."""
  seen = {}

  def remember(**arguments):
    inner = HINTON_KD(**arguments)

    def apply(variables, student, teacher, batch, *, step, rng):
      jax.debug.callback(lambda s, i: seen.setdefault(int(s), np.asarray(i)), step, batch["index"])
      return inner.apply(variables, student, teacher, batch, step=step, rng=rng)

    return inner._replace(apply=apply)

  return seen, remember


def test_the_three_ways(job, teacher, monkeypatch, tmp_path, caplog):
  seen, remember = remembered()
  with monkeypatch.context() as patched:
    patched.setattr(objectives, "hinton_kd", remember)
    run_job(tiny({"teacher.checkpoint": teacher}), tmp_path / "look")
  jax.effects_barrier()
  index = int(seen[6][0])  # of the seventh step, after the save at 4

  with pytest.raises(KdjaxError, match=r"non-finite values at step 7 .*on_nonfinite"):
    job(tmp_path / "stop", index)
  assert steps(tmp_path / "stop") == [4]

  job(tmp_path / "skip", index, on_nonfinite="skip")
  skipped = {step for step, row in rows(tmp_path / "skip").items() if row["skipped"]}
  assert skipped == {7}
  assert steps(tmp_path / "skip")[-1] == 12

  with caplog.at_level(logging.WARNING, "kdjax"):
    back = job(tmp_path / "back", index, on_nonfinite="roll_back")
  told = [r.getMessage() for r in caplog.records if "roll_back" in r.getMessage()]
  assert len(told) == 1 and "back to step 4, without the 3 batches after it" in told[0]
  assert sorted(rows(tmp_path / "back")) == list(range(1, 13))

  # What stopped goes on with the other way, and ends as the one that went back at once.
  again = job(tmp_path / "stop", index, on_nonfinite="roll_back")
  assert again["params_sha256"] == back["params_sha256"]


def test_another_way_does_not_exist(tmp_path):
  with pytest.raises(
    KdjaxError, match=r"config\.on_nonfinite = 'ignore' does not exist; what does"
  ):
    run_job(tiny({"on_nonfinite": "ignore"}), tmp_path / "run")
  assert not (tmp_path / "run").exists() or not any((tmp_path / "run").glob("*"))
