"""Fashion-MNIST's config on files of the same form, as IDX and through TFDS."""

import gzip
import json

import numpy as np
import pytest

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
  config.batch_size = 50
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


def test_tfds(tmp_path):
  tfds = pytest.importorskip("tensorflow_datasets")

  class FashionMnist(tfds.core.GeneratorBasedBuilder):
    """The fields of the real one; a Tensor, since writing PNG needs TensorFlow."""

    VERSION = tfds.core.Version("3.0.1")
    name = "fashion_mnist"

    def _info(self):
      features = tfds.features.FeaturesDict(
        {
          "image": tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8),
          "label": tfds.features.ClassLabel(num_classes=10),
        }
      )
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, manager):
      return {"train": self._generate_examples(400), "test": self._generate_examples(100)}

    def _generate_examples(self, number):
      image, label = images(number, number)
      for i in range(number):
        yield i, {"image": image[i][..., None], "label": int(label[i])}

  FashionMnist(data_dir=str(tmp_path / "tfds"), file_format="array_record").download_and_prepare()
  report = run_job(tiny("tfds", tmp_path / "tfds"), tmp_path / "run")
  assert report["results"]["teacher"]["accuracy"] > 0.9
