"""Metrics: pairs divided once, files that resume, non-finite values told."""

import json

import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.train.metrics import MetricLog, add, check_finite, curves, divide, read_metrics


def test_pairs_are_summed_and_divided_once():
  total = add(add({}, {"a": (3.0, 1.0)}), {"a": (1.0, 3.0), "none": (0.0, 0.0)})
  assert divide(total) == {"a": 1.0}  # not the mean of 3 and 1/3


def test_non_finite_terms_are_named_with_their_step():
  pairs = {"loss": (np.nan, 1.0), "loss/kd": (np.inf, 1.0), "loss/ce": (1.0, 1.0)}
  with pytest.raises(KdjaxError, match="step 17 in loss/kd;"):
    check_finite(17, pairs)


def test_resuming_drops_what_came_after(tmp_path):
  log = MetricLog(tmp_path, resume_step=0, write=True)
  for step in (10, 20, 30):
    log.write(step, "train", {"loss": 1 / step, "bad": float("nan")})
  log.close()
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 40, "spl')  # cut off by a kill
  log = MetricLog(tmp_path, resume_step=20, write=True)
  log.write(30, "train", {"loss": 7.0})
  log.close()
  rows = list(read_metrics(tmp_path / "metrics.jsonl"))
  assert [row["step"] for row in rows] == [10, 20, 30]
  assert rows[-1]["loss"] == 7.0 and "bad" not in rows[0]
  assert curves(tmp_path / "metrics.jsonl") == {"train/loss": ([10, 20, 30], [0.1, 0.05, 7.0])}
  for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
    json.loads(line)


def test_tensorboard_events_hold_the_values(tmp_path):
  from tensorboardX.proto.event_pb2 import Event

  log = MetricLog(tmp_path, resume_step=0, write=True)
  log.write(10, "eval", {"accuracy": 0.75})
  log.close()
  (path,) = (tmp_path / "tensorboard").iterdir()
  seen, data = {}, path.read_bytes()
  while data:  # a record: length (8), checksum (4), event, checksum (4)
    size = int.from_bytes(data[:8], "little")
    event = Event.FromString(data[12 : 12 + size])
    seen |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
    data = data[16 + size :]
  assert seen == {("eval/accuracy", 10): 0.75}


def test_only_one_process_writes(tmp_path):
  log = MetricLog(tmp_path, resume_step=0, write=False)
  log.write(1, "train", {"loss": 1.0})
  log.close()
  assert not list(tmp_path.iterdir())
