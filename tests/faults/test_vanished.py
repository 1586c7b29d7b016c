"""Data that vanish while a job runs: what is open goes on, what is not is told by name."""

import itertools
import shutil

import jax
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.signals import Cache
from kdjax.train import streams
from kdjax.train.job import run_job
from kdjax.train.loop import Interrupted
from tests.end_to_end.helpers import steps
from tests.end_to_end.text import config_of, text_folder
from tests.faults import records, runs
from tests.signals import helpers as signals


@pytest.fixture(autouse=True)
def _opened_anew():
  streams._load.cache_clear()


def run(data, workdir, *, vanishing=(), after=2 * records.EVERY):
  """Runs the job on a folder of data; some files are moved aside once a checkpoint is there."""
  gone = data.with_name(f"{data.name}-gone")

  def stop():
    if vanishing and not gone.exists() and (workdir / "checkpoints" / str(after)).is_dir():
      gone.mkdir()
      for name in vanishing:
        (data / name).rename(gone / name)
    return False

  report = run_job(records.get_config(str(data)).to_dict(), workdir, stop=stop)
  assert gone.exists() or not vanishing
  return report


def same(report, workdir, other):
  return {k: report[k] for k in runs.SAME} == {k: other[0][k] for k in runs.SAME} and runs.rows(
    workdir
  ) == runs.rows(other[1])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  records.write_records(folder / "records")
  records.write_idx(folder / "idx")
  return folder


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("undisturbed")
  with jax.numpy_dtype_promotion("standard"):
    return run(data / "records", workdir), workdir


def test_what_is_in_memory_or_open_is_not_missed(data, undisturbed, tmp_path):
  idx = shutil.copytree(data / "idx", tmp_path / "idx")
  report = run(idx, tmp_path / "a", vanishing=[path.name for path in idx.iterdir()])
  assert same(report, tmp_path / "a", undisturbed)
  opened = shutil.copytree(data / "records", tmp_path / "records")
  names = [path.name for path in opened.iterdir() if path.name != records.LATE]
  assert len(names) == 3
  report = run(opened, tmp_path / "b", vanishing=names)
  assert same(report, tmp_path / "b", undisturbed)


def test_a_file_not_yet_opened_is_named_and_costs_no_bit(data, undisturbed, tmp_path):
  folder = shutil.copytree(data / "records", tmp_path / "records")
  with pytest.raises(KdjaxError) as caught:
    run(folder, tmp_path / "run", vanishing=[records.LATE])
  told = str(caught.value)
  assert str(folder / records.LATE) in told and "not there any more" in told
  assert "Put it back and run the same command again" in told and "\n" not in told
  kept = steps(tmp_path / "run")
  assert 2 * records.EVERY <= kept[-1] < records.LATE_STEP

  streams._load.cache_clear()
  with pytest.raises(KdjaxError, match=rf"{folder / records.LATE} is missing: 2 of 3"):
    run(folder, tmp_path / "run")
  assert steps(tmp_path / "run") == kept
  (tmp_path / "records-gone" / records.LATE).rename(folder / records.LATE)
  (tmp_path / "records-gone").rmdir()
  streams._load.cache_clear()
  assert same(run(folder, tmp_path / "run"), tmp_path / "run", undisturbed)


def test_fewer_rows_are_no_smaller_run(data, undisturbed, tmp_path):
  workdir = shutil.copytree(undisturbed[1], tmp_path / "run")
  folder = shutil.copytree(data / "records", tmp_path / "records")
  for number in (0, 2):  # under names that tell of no third
    (folder / f"train-{number:05}-of-00003.array_record").rename(
      folder / f"train-{number}.array_record"
    )
  (folder / records.LATE).unlink()
  config = records.get_config(str(data / "records")).to_dict()
  config["data"]["path"] = str(folder)
  with pytest.raises(KdjaxError, match=r"1,200 rows to train on.* gives 1,199 rows to train on"):
    run_job(config | {"data": config["data"]}, workdir)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
  yield from text_folder(tmp_path_factory)


def test_text_that_is_gone_is_missed_at_the_next_start_alone(text, tmp_path):
  student = {"name": "decoder", "width": 8, "depth": 1, "heads": 2}
  alone = {"teacher": {}, "objective": {"name": "cross_entropy"}, "student": student}
  config = config_of(text, total_steps=8, checkpoint__every=4, eval__every=8, **alone)
  config["samples"]["prompts"] = []
  whole = run_job(config, tmp_path / "whole")
  asked, gone = itertools.count(), tmp_path / "gone"

  def stop():
    if next(asked) == 2:  # the texts and their tokens, which are mapped by then
      gone.mkdir()
      for path in (*text.glob("*.jsonl"), text / "cache"):
        path.rename(gone / path.name)
    return next(asked) > 10

  streams._load.cache_clear()
  with pytest.raises(Interrupted, match="saved step"):
    run_job(config, tmp_path / "run", stop=stop)
  assert gone.exists()
  streams._load.cache_clear()
  with pytest.raises(KdjaxError, match=rf"{text / 'counts.jsonl'}"):
    run_job(config, tmp_path / "run")
  for path in gone.glob("*.jsonl"):  # new times of change, and no tokens
    (text / path.name).write_bytes(path.read_bytes())
  report = run_job(config, tmp_path / "run")
  assert same(report, tmp_path / "run", (whole, tmp_path / "whole"))


def test_a_shard_of_signals_is_named(tmp_path):
  source = signals.Tokens()
  cache = signals.write(tmp_path / "cache", source)
  keys = [[span.key for span in source.spans(row)] for row in (1, 5)]
  whole = [Cache(cache.folder).read(each) for each in keys]
  cache.read(keys[0])
  for path in cache.folder.glob("*.array_record"):
    path.rename(tmp_path / path.name)
  for found, wanted in zip(cache.read(keys[0]), whole[0], strict=True):  # its shard is open
    np.testing.assert_array_equal(found["values"], wanted["values"])
  with pytest.raises(KdjaxError, match=r"signals-00002-of-00004\.array_record is not there any"):
    cache.read(keys[1])
