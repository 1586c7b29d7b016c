"""TFDS data sets, prepared by the test itself, in a process of its own: TensorFlow stays out."""

import subprocess
import sys

SCRIPT = """
import io
import sys
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from kdjax.data import tfds_images
from kdjax.errors import KdjaxError

folder = Path(sys.argv[1])


class Stripes(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version("1.0.0")
  label = "label"

  def _info(self):
    features = {
      "image": tfds.features.Tensor(shape=(4, 3, 1), dtype=np.uint8),
      self.label: tfds.features.ClassLabel(num_classes=3),
    }
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, download_manager):
    return {"train": self._generate_examples(6), "test": self._generate_examples(3)}

  def _generate_examples(self, count):
    for i in range(count):
      yield i, {"image": np.full((4, 3, 1), 51 * i, np.uint8), self.label: i % 3}


class Unlabelled(Stripes):
  label = "kind"


class Photos(Stripes):
  def _info(self):
    features = {
      "image": tfds.features.Image(shape=(None, None, 3)),
      "label": tfds.features.ClassLabel(num_classes=3),
    }
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _generate_examples(self, count):
    for i in range(count):
      file = io.BytesIO()
      Image.fromarray(np.full((9 + i, 12 - i, 3), 51 * i, np.uint8)).save(file, "png")
      file.seek(0)
      yield i, {"image": file, "label": i % 3}


def refused(wanted, **arguments):
  try:
    tfds_images(**arguments)
  except KdjaxError as error:
    assert wanted in str(error), (wanted, str(error))
    assert "\\n" not in str(error)
  else:
    raise AssertionError(f"{arguments} was accepted")


builder = Stripes(data_dir=folder, file_format="array_record")
refused("prepare it once", dataset="stripes", path=str(folder))
builder.download_and_prepare()
for path in (folder, builder.data_dir):
  data = tfds_images(dataset="stripes", path=str(path))
  assert (len(data.train), len(data.test)) == (6, 3)
  assert (data.num_classes, data.image_shape, data.name) == (3, (4, 3, 1), "stripes")
  batch = data.train.read(np.arange(6))
  assert batch["image"].dtype == np.float32 and batch["image"].shape == (6, 4, 3, 1)
  found = {(round(float(i.max()) * 5), int(l)) for i, l in zip(batch["image"], batch["label"])}
  assert found == {(i, i % 3) for i in range(6)}, found
half = tfds_images(dataset="stripes", path=str(folder), train_split="train[:50%]")
assert len(half.train) == 3

refused("not found", dataset="no_such_data_set", path=str(folder))
refused("stored as TFRecord", dataset="mnist", path=str(folder))
refused("cannot be read", dataset="stripes", path=str(folder), test_split="validation")
Unlabelled(data_dir=folder, file_format="array_record").download_and_prepare()
refused("features ['image', 'kind']", dataset="unlabelled", path=str(folder))

Photos(data_dir=folder, file_format="array_record").download_and_prepare()
photos = tfds_images(dataset="photos", path=str(folder), size=8)
assert photos.image_shape == (8, 8, 3)
assert photos.train.read(np.arange(6))["image"].shape == (6, 8, 8, 3)
stored = photos.train.as_stored(np.arange(6))
shapes = {(round(float(each["image"].max()) * 5), each["image"].shape) for each in stored}
assert shapes == {(i, (9 + i, 12 - i, 3)) for i in range(6)}, shapes
np.testing.assert_array_equal(photos.train.labels, [e["label"] for e in stored])
refused("size is 0", dataset="photos", path=str(folder), size=0)
wide = tfds_images(dataset="photos", path=str(folder))
try:
  wide.train.read(np.arange(6))
except KdjaxError as error:
  assert "config.data.size" in str(error), error
else:
  raise AssertionError("images of several sizes were stacked")

assert "tensorflow" not in sys.modules
print("passed")
"""


def test_reads_prepared_data_without_tensorflow(tmp_path):
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=120
  )
  assert done.returncode == 0, done.stderr[-3000:]
  assert done.stdout.endswith("passed\n")
