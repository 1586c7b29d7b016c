"""The config of `trans_kd`: labels of places, from scenes to evaluation."""

import pytest

from configs import trans_kd
from kdjax.errors import KdjaxError
from kdjax.train.config import check_config, merge
from kdjax.train.job import dry_run
from kdjax.train.streams import load_data


def tiny() -> dict:
  config = trans_kd.get_config()
  config.mesh.data = 1
  config.data.update({"images": {"name": "digits"}, "shrink": 1, "train_scenes": 8})
  config.data.test_scenes = config.eval.batch_size = config.batch_size = 4
  for model in (config.student, config.teacher.model):
    model.update({"widths": (4, 4), "depths": (1, 1), "heads": (1, 1), "reductions": (4, 1)})
  config.objective.update({"stages": ("stage1", "stage2"), "patches": ("embed2",)})
  config.objective.patch_weights = (1.0,)
  return config.to_dict()


@pytest.mark.parametrize("variant", ["small", "paper"])
def test_configs_are_whole(variant):
  config = trans_kd.get_config(variant).to_dict()
  for own in (config, merge(config, config["baseline"])):
    check_config(own)


def test_a_job_on_labels_of_places_traces_to_its_metric():
  dry_run(tiny())  # the metric of the config is evaluated, or this is told


def test_what_does_not_fit_is_told():
  alone = tiny() | {"objective": {"name": "cross_entropy"}, "teacher": {}}
  told = r"config.student gives logits of shape \(1, 64, 11\).*16 x 16 places"
  with pytest.raises(KdjaxError, match=told):
    dry_run(merge(alone, {"student": alone["student"] | {"stride": 4}}))
  for changed in ({"label_fraction": 0.5}, {"labelled_only": True}, {"validation_fraction": 0.1}):
    with pytest.raises(KdjaxError, match="have one for each place"):
      load_data(tiny()["data"] | changed)
