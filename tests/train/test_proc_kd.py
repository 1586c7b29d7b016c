"""The config of `proc_kd`: a teacher of classes that the student does not have."""

import pytest

from configs import proc_kd
from kdjax.data import digits
from kdjax.errors import KdjaxError
from kdjax.train.build import build_model, build_objective
from kdjax.train.config import check_config, merge
from kdjax.train.job import dry_run


def test_a_teacher_of_other_classes_is_no_mistake():
  config = proc_kd.get_config()
  config.mesh.data = 1
  for data, classes in ((config.data, (6, 7, 8, 9)), (config.teacher.train.data, range(6))):
    data.images = {"name": "digits"}
    data.classes = tuple(classes)
  config.data.label_fraction = 0.2
  config.student.update({"patch": 4, "width": 8, "depth": 1})
  config.teacher.model.update({"patch": 4, "width": 8, "depth": 3})
  config.batch_size, config.objective.prototypes = 16, 2
  dry_run(config.to_dict(), ("baseline", "method"))
  config.teacher.model.patch = 2
  with pytest.raises(KdjaxError, match="as many of both are wanted"):
    dry_run(config.to_dict())


@pytest.mark.parametrize("variant", ["small", "paper"])
def test_configs_name_what_exists(variant):
  config = proc_kd.get_config(variant).to_dict()
  for own in (config, merge(config, config["baseline"])):
    check_config(own)
    build_objective(own["objective"])
  shape = {"num_classes": 4, "image_shape": (224, 224, 3)}
  student = build_model(
    config["student"] | shape, digits()._replace(num_classes=4), "config.student"
  )
  assert build_objective(config["objective"]).taps.student <= student.taps
