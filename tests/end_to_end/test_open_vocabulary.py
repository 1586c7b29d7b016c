"""Classes learnt by their names: the jobs of `prompt_kd` and `vlm_ood`, cut to seconds."""

import importlib

import pytest

from configs import prompt_kd, vlm_ood
from kdjax.data import digits
from kdjax.errors import KdjaxError
from kdjax.train.build import build_objective
from kdjax.train.config import check_config, merge
from kdjax.train.evaluate import evaluate_checkpoint
from kdjax.train.job import dry_run, run_job
from kdjax.train.stages import stages_of

KEYS = ("prompt_kd", "vlm_ood")
DATA = digits()._replace(novel=(2,))


def tiny(module) -> dict:
  """The config with small models and few steps, as a mapping."""
  config = module.get_config()
  config.mesh.data = 1
  config.total_steps = config.teacher.train.total_steps = 6
  config.teacher.train.optimizer.warmup_steps = 1
  config.batch_size = 32
  config.teacher.model.update({"width": 16, "depth": 1, "text_width": 16, "text_depth": 1})
  config.checkpoint.every = config.eval.every = 6
  return config.to_dict()


def test_a_job_tells_both_kinds_of_classes_and_keeps_their_embeddings(tmp_path):
  config = tiny(prompt_kd) | {"stages": None}  # of the two, the second
  results = run_job(config, tmp_path)["results"]
  for row in ("teacher", "student_prompt_kd"):
    own = results[row]
    a, b = own["base_accuracy"], own["novel_accuracy"]
    assert own["harmonic_mean"] == pytest.approx(2 * a * b / (a + b) if a + b else 0)
  # Without the teacher: the checkpoint has the embeddings of the classes.
  again = evaluate_checkpoint(config, tmp_path)
  assert again["harmonic_mean"] == pytest.approx(results["student_prompt_kd"]["harmonic_mean"])
  with pytest.raises(KdjaxError, match=r"class 1 has 0 labelled .* config\.data\.told = True"):
    evaluate_checkpoint(config, tmp_path, shots=2)
  told = merge(config, {"data": {"told": True}})
  helped = evaluate_checkpoint(told, tmp_path, shots=5)
  # Five images of each class say more than six steps of training.
  assert helped["few_shot/accuracy"] > helped["accuracy"]
  assert 0 < helped["few_shot/harmonic_mean"] <= 1


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("variant", ["small", "paper"])
def test_configs_name_what_exists(key, variant):
  config = importlib.import_module(f"configs.{key}").get_config(variant).to_dict()
  for own in (config, merge(config, config["baseline"])):
    check_config(own)
    for stage in stages_of(own):
      build_objective(stage.config["objective"], data=DATA)


def test_what_does_not_fit_is_told_before_compute():
  config = tiny(vlm_ood)
  wrong = merge(config, {"student": config["student"] | {"embedding": 32}})
  with pytest.raises(KdjaxError, match=r"set config.student.embedding = 64"):
    dry_run(wrong)
  wrong = merge(config, {"data": {"images": "fashion"}})
  with pytest.raises(KdjaxError, match=r"config\.data\.images\.name = 'fashion' does not exist"):
    dry_run(wrong)
  mlp = {"name": "mlp", "hidden": (8,)}
  wrong = merge(config, {"teacher": {"model": mlp, "train": {"objective": config["objective"]}}})
  with pytest.raises(KdjaxError, match="embedding"):
    dry_run(wrong)
  wrong = merge(config, {"objective": {"name": "hinton_kd"}, "teacher": {"kind": "ema"}})
  with pytest.raises(KdjaxError, match="classifies by its teacher's head"):
    dry_run(wrong)
