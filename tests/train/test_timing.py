"""The split of a run's time, and traces of chosen steps."""

import gzip
import json
import time

import jax
import pytest

from kdjax.errors import KdjaxError
from kdjax.train.job import run_job
from kdjax.train.loop import Interrupted
from kdjax.train.metrics import read_metrics, timing
from kdjax.train.timing import Stopwatch, profile_range
from tests.end_to_end.helpers import tiny


def test_a_lap_tells_the_parts_of_each_step_and_what_is_left():
  watch = Stopwatch()
  with watch.on("data"):
    time.sleep(0.02)
  with watch.on("save"):
    time.sleep(0.01)
  time.sleep(0.03)
  whole, split = watch.lap(2)
  assert set(split) == {f"seconds/{part}" for part in ("compute", "data", "eval", "save")}
  assert sum(split.values()) == pytest.approx(whole / 2)
  assert split["seconds/data"] >= 0.01 and split["seconds/save"] >= 0.005
  assert split["seconds/compute"] >= 0.015 and split["seconds/eval"] == 0
  _, again = watch.lap(1)
  assert again["seconds/data"] == 0 and again["seconds/compute"] < 0.01


def test_what_fails_is_counted_too():
  watch = Stopwatch()
  with pytest.raises(ValueError), watch.on("eval"):
    time.sleep(0.01)
    raise ValueError
  assert watch.lap(1)[1]["seconds/eval"] >= 0.01


def test_ranges_of_steps():
  assert profile_range("10:13", 20) == range(10, 13) and not profile_range("", 20)
  for told in ("10", "13:10", "0:2", "a:b", "5:5"):
    with pytest.raises(KdjaxError, match="must be FIRST:END"):
      profile_range(told, 20)
  with pytest.raises(KdjaxError, match=r"ends after config\.total_steps = 11"):
    profile_range("10:13", 11)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("timing")
  fields = {"total_steps": 6, "teacher.train.total_steps": 2, "eval.log_every": 2, "profile": "3:5"}
  with jax.numpy_dtype_promotion("standard"):
    run_job(tiny(fields), workdir)
  return workdir


def test_rows_of_a_run_have_the_split(folder):
  rows = [row for row in read_metrics(folder / "metrics.jsonl") if row["split"] == "train"]
  assert [row["step"] for row in rows] == [2, 4, 6]
  for row in rows:
    split = [value for name, value in row.items() if name.startswith("seconds/")]
    assert len(split) == 4 and all(value >= 0 for value in split)
    # The same seconds as the speed is of.
    batch = tiny()["batch_size"]
    assert sum(split) == pytest.approx(batch / row["examples_per_second"], rel=1e-6)
  assert timing("seconds/data") and timing("tokens_per_second") and not timing("loss")


def test_a_trace_of_the_steps_asked_for_and_of_no_teacher(folder):
  (trace,) = (folder / "profile").rglob("perfetto_trace.json.gz")
  events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
  names = [event.get("name", "") for event in events]
  assert sum("PjitFunction(step)" in name or "PjitFunction(traced)" in name for name in names) >= 1
  assert list((folder / "profile").rglob("*.xplane.pb"))
  assert not (folder / "teacher" / "profile").exists()


def test_a_run_that_stops_inside_the_range_has_its_trace(tmp_path):
  count = iter(range(100))
  fields = {"total_steps": 9, "teacher.train.total_steps": 1, "profile": "1:9"}
  with jax.numpy_dtype_promotion("standard"), pytest.raises(Interrupted):
    run_job(tiny(fields), tmp_path, stop=lambda: next(count) == 5)
  assert list((tmp_path / "profile").rglob("perfetto_trace.json.gz"))
  jax.profiler.start_trace(str(tmp_path / "another"))  # only one can run at a time
  jax.profiler.stop_trace()
