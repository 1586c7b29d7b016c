"""ArrayRecord files of images: what is written comes back, and damage is told."""

import pickle
import struct

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from kdjax.data import array_record_images, write_array_records
from kdjax.errors import KdjaxError

IMAGES = np.random.default_rng(0).integers(0, 256, (9, 3, 2, 1), dtype=np.uint8)


def write_raw(path, records):
  writer = ArrayRecordWriter(str(path), "group_size:1")
  for record in records:
    writer.write(record)
  writer.close()


@pytest.fixture
def folder(tmp_path):
  for k in range(2):  # two files of one split are read as one
    part = range(k * 5, min(k * 5 + 5, 9))
    path = tmp_path / f"train-{k}-of-2.array_record"
    assert write_array_records(path, [(IMAGES[i], i % 3) for i in part]) == len(part)
  floats = IMAGES.astype(np.float32) / 255
  write_array_records(tmp_path / "test.array_record", [(floats[i], -1) for i in range(4)])
  return tmp_path


def test_what_is_written_comes_back(folder):
  data = array_record_images(path=str(folder), num_classes=3)
  assert (len(data.train), len(data.test)) == (9, 4)
  assert (data.image_shape, data.name) == ((3, 2, 1), folder.name)
  batch = data.train.read(np.array([8, 0, 4]))
  np.testing.assert_array_equal(batch["image"], IMAGES[[8, 0, 4]] / np.float32(255))
  np.testing.assert_array_equal(batch["label"], [2, 0, 1])
  np.testing.assert_array_equal(batch["index"], [8, 0, 4])
  np.testing.assert_array_equal(data.test[2]["image"], IMAGES[2] / np.float32(255))
  np.testing.assert_array_equal(data.train.labels, np.arange(9) % 3)
  np.testing.assert_array_equal(data.test.labels, np.full(4, -1))


def test_a_source_can_be_pickled_for_reader_processes(folder):
  source = array_record_images(path=str(folder), num_classes=3).train
  copy = pickle.loads(pickle.dumps(source))
  np.testing.assert_array_equal(copy[7]["image"], source[7]["image"])


def test_an_interrupted_writer_leaves_no_file(tmp_path):
  def examples():
    yield IMAGES[0], 1
    raise RuntimeError("source failed")

  with pytest.raises(RuntimeError, match="source failed"):
    write_array_records(tmp_path / "train.array_record", examples())
  assert not (tmp_path / "train.array_record").exists()


def test_unknown_dtype_is_refused(tmp_path):
  with pytest.raises(KdjaxError, match="dtype float64"):
    write_array_records(tmp_path / "a", [(np.zeros((2, 2, 1)), 0)])


def test_missing_folder_or_file(folder, tmp_path):
  with pytest.raises(KdjaxError, match=r"no folder .*nowhere.*config\.data\.path"):
    array_record_images(path=str(tmp_path / "nowhere"), num_classes=3)
  (folder / "test.array_record").unlink()
  with pytest.raises(KdjaxError, match=r"has no test\*\.array_record"):
    array_record_images(path=str(folder), num_classes=3)


@pytest.mark.parametrize("content", [b"", b"not a record file" * 9, "half"])
def test_damaged_file(folder, content):
  path = folder / "test.array_record"
  path.write_bytes(path.read_bytes()[:70_000] if content == "half" else content)
  with pytest.raises(KdjaxError, match=r"test\.array_record is no readable ArrayRecord file"):
    array_record_images(path=str(folder), num_classes=3)


def test_damaged_record(folder):
  path = folder / "train-1-of-2.array_record"
  content = bytearray(path.read_bytes())
  # Riegeli writes the first chunk after its 64-byte file signature.
  content[150:170] = b"\xff" * 20
  path.write_bytes(content)
  source = array_record_images(path=str(folder), num_classes=3).train
  with pytest.raises(KdjaxError, match="write it again"):
    source.read(np.arange(9))


def test_empty_file(folder):
  write_raw(folder / "test.array_record", [])
  with pytest.raises(KdjaxError, match="holds no records"):
    array_record_images(path=str(folder), num_classes=3)


def header(text):
  return struct.pack("<I", len(text)) + text


@pytest.mark.parametrize(
  ("record", "message"),
  [
    (b"ab", "it has 2 bytes"),
    (header(b"\x80\x04\x95"), "no JSON"),  # the start of a pickle
    (header(b"{}"), "its header is {}"),
    (header(b'{"dtype":"object","shape":[1,1,1],"label":0}') + b"x", "its header is"),
    (header(b'{"dtype":"uint8","shape":[1,-1,1],"label":0}') + b"x", "its header is"),
    (header(b'{"dtype":"uint8","shape":[2,2,1],"label":0}') + b"xyz", "takes 4 bytes, it has 3"),
    (struct.pack("<I", 2**31) + b"{}", "no JSON|its header"),
  ],
)
def test_records_of_another_format(folder, record, message):
  write_raw(folder / "test.array_record", [record])
  with pytest.raises(KdjaxError, match=f"record 0: .*({message})"):
    array_record_images(path=str(folder), num_classes=3)


def test_images_and_labels_that_do_not_fit(folder):
  examples = [(IMAGES[0], 0), (IMAGES[0][:2], 0), (IMAGES[0], 3)]
  write_array_records(folder / "test.array_record", examples)
  source = array_record_images(path=str(folder), num_classes=3).test
  with pytest.raises(KdjaxError, match=r"record 1: the image has shape \(2, 2, 1\)"):
    source.read(np.arange(3))
  with pytest.raises(KdjaxError, match=r"record 2: label 3 is not in 0 \.\. 2"):
    source[2]
