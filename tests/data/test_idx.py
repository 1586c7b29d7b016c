"""IDX files: good ones, and each way in which one can be bad."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from kdjax.data import fashion_mnist, idx_images
from kdjax.data.idx import FASHION_MNIST, read_idx
from kdjax.errors import KdjaxError


def idx_bytes(array):
  header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
  return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path):
  rng = np.random.default_rng(0)
  for split, count in (("train", 12), ("t10k", 6)):
    images = rng.integers(0, 256, (count, 5, 4))
    (tmp_path / f"{split}-images-idx3-ubyte").write_bytes(idx_bytes(images))
    packed = gzip.compress(idx_bytes(np.arange(count) % 3))
    (tmp_path / f"{split}-labels-idx1-ubyte.gz").write_bytes(packed)
  return tmp_path


def test_reads_plain_and_compressed_files(folder):
  data = idx_images(path=str(folder))
  assert (len(data.train), len(data.test)) == (12, 6)
  assert (data.num_classes, data.image_shape, data.name) == (3, (5, 4, 1), folder.name)
  np.testing.assert_array_equal(data.train.labels, np.arange(12) % 3)
  expected = np.random.default_rng(0).integers(0, 256, (12, 5, 4)) / np.float32(255)
  np.testing.assert_allclose(data.train[3]["image"][..., 0], expected[3], rtol=1e-6)


def test_missing_folder_names_it_and_the_field(tmp_path):
  with pytest.raises(KdjaxError, match=r"nowhere.*config\.data\.path"):
    idx_images(path=str(tmp_path / "nowhere"))


def test_missing_file_is_named(folder):
  (folder / "t10k-labels-idx1-ubyte.gz").unlink()
  with pytest.raises(KdjaxError, match="neither t10k-labels-idx1-ubyte nor"):
    idx_images(path=str(folder))


def test_truncated_file(folder):
  path = folder / "train-images-idx3-ubyte"
  path.write_bytes(path.read_bytes()[:-7])
  with pytest.raises(KdjaxError, match=r"train-images.*240 bytes, but holds only 233"):
    idx_images(path=str(folder))


def test_file_that_ends_within_its_header(folder):
  path = folder / "train-images-idx3-ubyte"
  path.write_bytes(path.read_bytes()[:9])
  with pytest.raises(KdjaxError, match="ends within its header"):
    idx_images(path=str(folder))


def test_bytes_after_the_end(folder):
  path = folder / "train-images-idx3-ubyte"
  path.write_bytes(path.read_bytes() + b"x")
  with pytest.raises(KdjaxError, match="240 bytes, but holds more"):
    idx_images(path=str(folder))


def test_wrong_magic(folder):
  path = folder / "train-images-idx3-ubyte"
  path.write_bytes(b"\x89PNG" + path.read_bytes()[4:])
  with pytest.raises(KdjaxError, match=r"starts with the bytes 89 50 4e 47.*00 00 08 03"):
    idx_images(path=str(folder))


def test_truncated_gzip(folder):
  path = folder / "train-labels-idx1-ubyte.gz"
  path.write_bytes(path.read_bytes()[:-9])
  with pytest.raises(KdjaxError, match=r"labels-idx1-ubyte\.gz cannot be read"):
    idx_images(path=str(folder))


def test_damaged_gzip(folder):
  path = folder / "train-labels-idx1-ubyte.gz"
  damaged = bytearray(path.read_bytes())
  damaged[12:20] = b"\xff" * 8
  path.write_bytes(damaged)
  with pytest.raises(KdjaxError, match=r"labels-idx1-ubyte\.gz cannot be read"):
    idx_images(path=str(folder))


def test_gz_in_name_only(folder):
  path = folder / "train-labels-idx1-ubyte.gz"
  path.write_bytes(gzip.decompress(path.read_bytes()))
  with pytest.raises(KdjaxError, match="cannot be read"):
    idx_images(path=str(folder))


def test_counts_that_differ(folder):
  (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(np.arange(11) % 3)))
  with pytest.raises(KdjaxError, match=r"12 images, but .* 11 labels"):
    idx_images(path=str(folder))


def test_label_out_of_range(folder):
  with pytest.raises(KdjaxError, match=r"0 \.\. 1 is wanted"):
    idx_images(path=str(folder), num_classes=2)


def test_an_enormous_size_in_the_header_allocates_nothing(tmp_path):
  path = tmp_path / "images"
  path.write_bytes(bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**32 - 1, 2**16, 2**16) + b"abc")
  with pytest.raises(KdjaxError, match="holds only 3"):
    read_idx(path, ndim=3)


def test_fashion_mnist_from_a_given_folder(folder):
  assert fashion_mnist(path=str(folder)).name == "fashion_mnist"


def test_fashion_mnist_says_how_to_get_it(monkeypatch, tmp_path):
  monkeypatch.setattr("kdjax.data.idx.FASHION_MNIST", str(tmp_path / "absent"))
  with pytest.raises(KdjaxError, match=r"apt install dataset-fashion-mnist.*config\.data\.path"):
    fashion_mnist()


def test_the_installed_fashion_mnist():
  if not Path(FASHION_MNIST).is_dir():
    pytest.skip(f"Debian's package dataset-fashion-mnist is not installed in {FASHION_MNIST}")
  data = fashion_mnist()
  assert (len(data.train), len(data.test), data.num_classes) == (60_000, 10_000, 10)
  assert data.image_shape == (28, 28, 1)
  np.testing.assert_array_equal(np.bincount(data.train.labels), np.full(10, 6000))
  np.testing.assert_array_equal(np.bincount(data.test.labels), np.full(10, 1000))
  # The mean grey value of the training images, known from many a normalisation constant.
  assert data.train.images.mean() / 255 == pytest.approx(0.2860, abs=1e-4)
