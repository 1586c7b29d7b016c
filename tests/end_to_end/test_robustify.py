"""The comparison of `robustify`, cut to seconds: what it tells of clean and damaged images."""

import json

import pytest

from configs import robustify
from kdjax.errors import KdjaxError
from kdjax.train.build import build_objective
from kdjax.train.compare import run_compare
from kdjax.train.config import check_config, merge
from kdjax.train.job import dry_run
from kdjax.train.stages import stages_of


def tiny() -> dict:
  """The config on digits, with small models and few steps, as a mapping."""
  config = robustify.get_config()
  config.mesh.data = 1
  config.data.images = {"name": "digits"}
  config.data.copied = 40
  large = {"name": "mlp", "hidden": (16, 8)}
  config.student.update({"model": large, "tuned": "layer_1"})
  config.teacher.model = {"name": "mlp", "hidden": (8,)}
  config.teacher.train.update({"total_steps": 4})
  config.batch_size = config.teacher.train.batch_size = 32
  config.total_steps = config.eval.every = config.checkpoint.every = 4
  plain = config.to_dict()
  short = {"total_steps": 4, "student": config.student.to_dict() | {"trained": "original"}}
  for part in (plain, plain["baseline"]):
    stages = part["stages"]
    part["stages"] = tuple(s | (short if "student" in s else {}) for s in stages)
  return plain


def test_a_comparison_tells_clean_and_damaged_errors_of_every_head(tmp_path):
  told = run_compare(tiny(), tmp_path, seeds=1)
  own, other = (told["evaluations"][variant][0] for variant in ("method", "baseline"))
  kinds = [name for name in own if name.startswith("corruption_error/")]
  assert len(kinds) == 7
  mean = sum(own[name] for name in kinds) / 7
  assert own["corruption_error"] == pytest.approx(mean, rel=1e-5)
  ratios = [own[name] / other[name] for name in kinds]
  assert told["mean_corruption_error"] == [pytest.approx(sum(ratios) / 7)]
  assert {f"{head}_head/accuracy" for head in ("clean", "robust", "combined")} <= own.keys()
  assert told["teacher"]["teacher"] > 0 and own["teacher/corruption_error"] > 0
  assert json.loads((tmp_path / "comparison.json").read_text())["evaluations"]["method"] == [own]


@pytest.mark.parametrize("variant", ["small", "seen", "paper"])
def test_configs_name_what_exists(variant):
  config = robustify.get_config(variant).to_dict()
  for own in (config, merge(config, config["baseline"])):
    check_config(own)
    for stage in stages_of(own):
      build_objective(stage.config["objective"])


def test_a_student_of_one_head_is_told():
  config = tiny() | {"stages": None, "student": {"name": "mlp", "hidden": (8,)}}
  with pytest.raises(KdjaxError, match=r"asks for the tap\(s\) \['head_logits'\] of the student"):
    dry_run(config)
