"""The digits in files, and a job of a few seconds on them: --config=tests/faults/records.py:FOLDER.

Of the ArrayRecord files one is not opened before the job is nearly through: its only record is not
drawn earlier.
"""

from pathlib import Path

import numpy as np

from kdjax.data import digits, write_array_records
from kdjax.data.pipeline import training_stream
from tests.end_to_end import helpers

BATCH, STEPS, EVERY = 8, 120, 20
LATE_STEP = 110  # counted from 1
LATE = "train-00001-of-00003.array_record"


def get_config(folder: str):
  """`tests.end_to_end.helpers` on the images of a folder, IDX or ArrayRecord."""
  config = helpers.get_config()
  name = "array_record_images" if list(Path(folder).glob("*.array_record")) else "idx_images"
  config.data.name, config.data.path, config.data.num_classes = name, folder, 10
  config.total_steps, config.batch_size = STEPS, BATCH
  config.checkpoint.every, config.eval.every, config.eval.log_every = EVERY, 3 * EVERY, EVERY
  return config


def _bytes(source):
  every = source.read(np.arange(len(source)))
  return (every["image"] * 16).astype(np.uint8) * 15, every["label"]


def write_idx(folder: Path) -> None:
  """The four files of MNIST's layout."""
  folder.mkdir()
  data = digits()
  for split, source in (("train", data.train), ("t10k", data.test)):
    for kind, array in zip(("images-idx3", "labels-idx1"), _bytes(source), strict=True):
      array = array[..., 0] if array.ndim == 4 else array
      header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
      (folder / f"{split}-{kind}-ubyte").write_bytes(header + array.astype(np.uint8).tobytes())


def write_records(folder: Path, seed: int = 0) -> None:
  """The same images in ArrayRecord files, `LATE` among them."""
  folder.mkdir()
  data = digits()
  stream = training_stream(data.train, batch_size=BATCH, seed=seed)
  late = [next(stream)["index"] for _ in range(LATE_STEP)][-1].min()
  stream.close()
  images, labels = _bytes(data.train)
  for number, part in enumerate((slice(0, late), slice(late, late + 1), slice(late + 1, None))):
    rows = zip(images[part], labels[part], strict=True)
    write_array_records(folder / f"train-{number:05}-of-00003.array_record", rows)
  write_array_records(folder / "test.array_record", zip(*_bytes(data.test), strict=True))
