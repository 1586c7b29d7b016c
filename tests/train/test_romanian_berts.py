"""Several teachers in a config: how they are averaged, and loyalty to their average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import romanian_berts
from kdjax.errors import KdjaxError
from kdjax.losses import hinton_kd
from kdjax.train.checkpoint import Checkpoints
from kdjax.train.job import dry_run, run_job
from kdjax.train.pretrained import build_teacher
from kdjax.train.streams import load_data


def tiny(**teacher):
  config = romanian_berts.get_config("digits").to_dict()
  config |= {"total_steps": 4, "batch_size": 32}
  config["mesh"] |= {"data": 1}
  config["optimizer"]["warmup_steps"] = 0
  config["teacher"]["train"] |= {"total_steps": 4, "optimizer": {"learning_rate": 1e-2}}
  config["teacher"] |= {"model": {"name": "mlp", "hidden": (8,)}} | teacher
  return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp("romanian") / "run"
  with jax.numpy_dtype_promotion("standard"):
    return folder, run_job(tiny(), folder)


def logits(folder, names, **teacher):
  paths = [str(folder / name) for name in names]
  config = tiny(checkpoint=paths, **teacher)
  data = load_data(config["data"]).whole
  built = build_teacher(config, data)
  batch = data.test.read(np.arange(16))
  return np.asarray(built.apply(built.frozen, (), batch, taps=frozenset({"logits"})).logits)


def test_probabilities_are_averaged_at_the_temperature_of_the_loss(finished):
  folder, _ = finished
  one, two = (logits(folder, [f"teacher_{i}"]) for i in range(2))
  both = logits(folder, ["teacher_0", "teacher_1"])
  assert np.abs(one - two).max() > 0.01
  mean = (jax.nn.softmax(one / 2) + jax.nn.softmax(two / 2)) / 2
  np.testing.assert_allclose(jax.nn.softmax(both / 2), mean, rtol=1e-5)
  geometric = logits(folder, ["teacher_0", "teacher_1"], combine="logits")
  np.testing.assert_allclose(geometric, (one + two) / 2, rtol=1e-5, atol=1e-6)


def test_two_copies_of_a_teacher_are_that_teacher(finished):
  folder, _ = finished
  one, copies = (logits(folder, ["teacher_0"] * n) for n in (1, 2))
  student = jnp.zeros_like(one)
  a, b = (hinton_kd(student, jnp.asarray(z), temperature=2.0) for z in (one, copies))
  np.testing.assert_allclose(a, b, rtol=1e-5)


def test_the_report_has_the_loyalties_to_the_average(finished):
  folder, report = finished
  student = report["results"]["student_two_teachers"]
  assert 0 <= student["agreement"] <= 1 and 0 < student["probability_loyalty"] < 1
  for name in ("teacher_0", "teacher_1"):
    checkpoints = Checkpoints(folder / name / "checkpoints", read_only=True)
    assert checkpoints.steps()[-1] == 4
    checkpoints.close()


@pytest.mark.parametrize(
  "teacher, told",
  [
    ({"combine": "mean"}, "config.teacher: combine_teachers: rule is 'mean'"),
    ({"temperature": 0.0}, "config.teacher: combine_teachers: temperature"),
    ({"temperature": "warm"}, "config.teacher.temperature = 'warm' is of type str"),
  ],
)
def test_mistakes_are_told_before_training(teacher, told):
  with pytest.raises(KdjaxError) as caught:
    dry_run(tiny(**teacher))
  assert told in str(caught.value)
