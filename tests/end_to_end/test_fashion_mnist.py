"""Fashion-MNIST's config on files of the same form, as IDX and through TFDS."""

import gzip
import json
import subprocess
import sys

import numpy as np

from configs import fashion_mnist_kd
from kdjax.train.job import run_job


def idx(array: np.ndarray) -> bytes:
  head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
  return head + array.astype(np.uint8).tobytes()


def images(number: int, seed: int):
  """Ten classes that a bright row tells apart, with noise."""
  rng = np.random.default_rng(seed)
  label = np.arange(number) % 10
  image = rng.integers(0, 60, (number, 28, 28))
  image[np.arange(number), 2 * label + 3] += 180
  return image.astype(np.uint8), label.astype(np.uint8)


def tiny(variant: str, path) -> dict:
  config = fashion_mnist_kd.get_config(variant)
  config.data.path = str(path)
  config.data.label_fraction = 0.1
  config.total_steps = config.teacher.train.total_steps = 30
  config.batch_size = 64
  config.mesh.data = 1
  config.checkpoint.every = config.eval.every = 30
  config.teacher.model.hidden = (32,)
  return config.to_dict()


def test_idx_files(tmp_path):
  for prefix, number in (("train", 400), ("t10k", 100)):
    image, label = images(number, number)
    (tmp_path / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(image)))
    (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(label))
  report = run_job(tiny("small", tmp_path), tmp_path / "run")
  assert report["results"]["teacher"]["accuracy"] > 0.9
  assert report["results"]["student_distilled"]["accuracy"] > 0.5
  assert json.loads((tmp_path / "run" / "report.json").read_text())["step"] == 30


# Run by itself, so that TFDS finds no source file beside the builder.
PREPARE = """
import io, sys
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

class FashionMnist(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version("3.0.1")

  def _info(self):
    features = {
      "image": tfds.features.Image(shape=(28, 28, 1)),
      "label": tfds.features.ClassLabel(num_classes=10),
    }
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, manager):
    return {name: self._generate_examples(name) for name in ("train", "test")}

  def _generate_examples(self, name):
    data = np.load(sys.argv[2])
    for i, (image, label) in enumerate(zip(data[name + "_image"], data[name + "_label"])):
      png = io.BytesIO()  # PNG bytes as they are: only encoding arrays would need TensorFlow
      Image.fromarray(image).save(png, "PNG")
      png.seek(0)
      yield i, {"image": png, "label": int(label)}

FashionMnist(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
assert "tensorflow" not in sys.modules
"""


def test_tfds(tmp_path):
  (train_image, train_label), (test_image, test_label) = images(400, 0), images(96, 1)
  np.savez(
    tmp_path / "images.npz",
    train_image=train_image,
    train_label=train_label,
    test_image=test_image,
    test_label=test_label,
  )
  command = [sys.executable, "-c", PREPARE, tmp_path / "tfds", tmp_path / "images.npz"]
  done = subprocess.run(command, capture_output=True, text=True, timeout=120)
  assert done.returncode == 0, done.stderr
  report = run_job(tiny("tfds", tmp_path / "tfds"), tmp_path / "run")
  assert report["results"]["teacher"]["accuracy"] > 0.9
