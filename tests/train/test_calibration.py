"""What a model's constructor is given of the training text."""

import types

import numpy as np
import pytest

from kdjax.data.text import TextData
from kdjax.errors import KdjaxError
from kdjax.train.build import build_model, calibration
from tests.models.convert.folders import FOLDER


class Rows:
  """Ten rows of text, each of its own number."""

  def __len__(self):
    return 10

  def read(self, places):
    tokens = np.repeat(places[:, None], 4, axis=1).astype(np.int32)
    return {
      "tokens": tokens,
      "segment_ids": np.ones_like(tokens),
      "positions": np.zeros_like(tokens),
      "label": tokens,
    }


TEXT = TextData(Rows(), Rows(), None, 96, 4, None, ("all",), "text")
IMAGES = types.SimpleNamespace(train=Rows(), num_classes=10, image_shape=(8, 8, 1), name="images")
PRUNED = {"name": "pretrained", "path": str(FOLDER / "llama"), "mlp_width": 40}


def test_calibration_rows_lie_evenly_and_are_the_same_each_time():
  read = calibration(TEXT)
  given = read(4)
  assert given["tokens"][:, 0].tolist() == [0, 3, 6, 9]
  assert set(given) == {"tokens", "segment_ids", "positions"}
  np.testing.assert_array_equal(read(4)["tokens"], given["tokens"])
  assert len(read(64)["tokens"]) == 10


def test_a_config_of_text_brings_it():
  student = build_model(PRUNED | {"calibration_rows": 3}, TEXT, "config.student")
  up = student.start().params["stack"]["blocks"]["mlp"]["up"]["kernel"]
  assert up.shape == (3, 32, 40)


@pytest.mark.parametrize(
  ("spec", "data", "told"),
  [
    (
      PRUNED,
      IMAGES,
      "config.student: what to leave out .* there is none; take config.data",
    ),
    (PRUNED | {"calibration": "x"}, TEXT, "config.student.calibration is not an argument"),
    (PRUNED | {"width": 99}, TEXT, "config.student: width = 99: wanted 1 to 32"),
    (PRUNED | {"heads": "2"}, TEXT, "config.student.heads = '2' is of type str"),
    ({"name": "decoders"}, TEXT, "config.student.name = 'decoders' does not exist"),
  ],
)
def test_a_mistake_names_its_field(spec, data, told):
  with pytest.raises(KdjaxError, match=told):
    build_model(spec, data, "config.student")
