"""The store: resumed, shared out, refused, damaged."""

import json
import pickle
import shutil
import subprocess

import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.signals import Cache, CacheWriter
from tests.signals.helpers import (
  Tokens,
  files,
  key_of,
  made_up,
  record,
  records,
  spec_of,
  write,
)


@pytest.fixture
def source():
  return Tokens()


def test_records_are_found_by_content_in_any_order(source, tmp_path):
  cache = write(tmp_path, source)
  spans = [span for row in (6, 0, 3, 2) for span in source.spans(row)]
  copy = pickle.loads(pickle.dumps(cache))  # as reader processes get it
  for found in (cache, copy):
    for span, arrays in zip(spans, found.read([s.key for s in spans]), strict=True):
      draws = made_up(span.key, span.stop - span.start)
      for row, ids, weights in zip(draws, arrays["ids"], arrays["values"], strict=True):
        classes, counts = np.unique(row, return_counts=True)
        np.testing.assert_array_equal(ids[weights > 0], classes)
        np.testing.assert_allclose(weights[weights > 0], counts / 10, rtol=1e-6)
  assert cache.find([key_of(np.arange(3)), spans[0].key]).tolist()[0] == -1


def test_the_manifest_says_what_it_is(source, tmp_path):
  cache = write(tmp_path, source)
  told = json.loads((tmp_path / "manifest.json").read_text())
  # 7 rows: rows 0, 3, 6 are one example of 12, the others two of 5.
  assert (told["examples"], told["positions"]) == (3 + 4 * 2, 3 * 12 + 4 * 10)
  assert told["format"] == "kdjax.signals" and told["version"] == 1
  assert [shard["examples"] for shard in told["shards"]] == [3, 3, 4, 1]
  assert told["bytes"] == sum(
    path.stat().st_size for path in tmp_path.iterdir() if path.suffix in (".array_record", ".npy")
  )
  read = cache.manifest
  assert read.slots == told["slots"] <= 10
  keys = [span.key for row in range(7) for span in source.spans(row)]
  payloads = [len(record(span).payload) for row in range(7) for span in source.spans(row)]
  assert len(keys) == 11 and read.record_bytes == 20 * 11 + sum(payloads)
  assert read.bytes_per_position == read.record_bytes / 76
  assert not (tmp_path / "plan.json").exists() and not list(tmp_path.glob("*tmp*"))
  cache.check_shards()


def test_a_killed_writer_goes_on_with_identical_files(source, tmp_path):
  write(tmp_path / "whole", source)
  folder = tmp_path / "killed"
  writer = CacheWriter(folder, spec_of(source))
  writer.write(0, records(writer, source, 0))

  def dies():
    yield records(writer, source, 1)[0]
    raise InterruptedError("killed")

  with pytest.raises(InterruptedError):
    writer.write(1, dies())
  (folder / "signals-00002-of-00004.array_record.tmp").write_bytes(b"half a shard")
  with pytest.raises(KdjaxError, match="unfinished cache"):
    Cache(folder)
  with pytest.raises(KdjaxError, match="3 shards yet to be written, the first is signals-00001"):
    writer.finish()
  before = (folder / "signals-00000-of-00004.array_record").stat().st_mtime_ns
  again = CacheWriter(folder, spec_of(source))
  assert again.missing() == [1, 2, 3] and not again.finished
  write(folder, source)
  assert (folder / "signals-00000-of-00004.array_record").stat().st_mtime_ns == before
  assert files(folder) == files(tmp_path / "whole")


def test_two_processes_write_what_one_writes(source, tmp_path):
  write(tmp_path / "one", source)
  spec = spec_of(source)
  second = CacheWriter(tmp_path / "two", spec, process=1, processes=2)
  assert second.missing() == [1, 3]
  assert not (tmp_path / "two").exists()  # process 0 says what will be there
  write(tmp_path / "two", source, processes=2)
  assert files(tmp_path / "two") == files(tmp_path / "one")


def test_a_finished_cache_is_left_alone(source, tmp_path):
  write(tmp_path, source)
  before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
  writer = CacheWriter(tmp_path, spec_of(source))
  assert writer.finished and writer.missing() == []
  assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("finished", [True, False])
def test_another_cache_in_the_folder_is_refused(source, tmp_path, finished):
  if finished:
    write(tmp_path, source)
  else:
    CacheWriter(tmp_path, spec_of(source))
  changed = {
    "teacher": "u" * 64,
    "tokenizer": None,
    "support": 20,
    "data": {"sequence_length": 99},
  }
  for field, value in changed.items():
    with pytest.raises(KdjaxError, match=rf"holds another cache: {field}.*saved.*now"):
      CacheWriter(tmp_path, spec_of(source, **{field: value}))


def shard(folder):
  return folder / "signals-00002-of-00004.array_record"


def test_a_truncated_shard_is_named_and_written_again(source, tmp_path):
  write(tmp_path, source)
  whole = files(tmp_path)
  content = shard(tmp_path).read_bytes()
  shard(tmp_path).write_bytes(content[: len(content) // 2])
  with pytest.raises(KdjaxError, match=r"signals-00002.* has \d+ bytes instead of \d+"):
    Cache(tmp_path)
  assert CacheWriter(tmp_path, spec_of(source)).missing() == [2]
  write(tmp_path, source)
  assert files(tmp_path) == whole
  shard(tmp_path).unlink()
  with pytest.raises(KdjaxError, match=r"signals-00002.* is missing"):
    Cache(tmp_path)


def test_flipped_bits_are_told_with_the_shard(source, tmp_path):
  cache = write(tmp_path, source)
  keys = [span.key for row in (4, 5) for span in source.spans(row)]
  content = shard(tmp_path).read_bytes()
  place = content.index(keys[0])
  told = 0
  for offset in (3, 17, 24, 40):  # the key, the checksum, the payload
    damaged = bytearray(content)
    damaged[place + offset] ^= 0x10
    shard(tmp_path).write_bytes(damaged)
    opened = Cache(tmp_path)
    with pytest.raises(KdjaxError, match=r"signals-00002.* is damaged .*delete it and run"):
      opened.read(keys)
    with pytest.raises(KdjaxError, match=r"signals-00002.*checksum is wrong"):
      opened.check_shards()
    told += 1
  assert told == 4
  assert cache.manifest.examples == 11


@pytest.mark.parametrize("name", ["index.npy", "manifest.json"])
def test_a_damaged_index_or_manifest_is_told(source, tmp_path, name):
  write(tmp_path, source)
  content = bytearray((tmp_path / name).read_bytes())
  content[len(content) // 2] ^= 0x80
  (tmp_path / name).write_bytes(content)
  with pytest.raises(KdjaxError, match=rf"{name} is damaged"):
    Cache(tmp_path)


def test_a_lost_index_is_made_again(source, tmp_path):
  write(tmp_path, source)
  whole = files(tmp_path)
  (tmp_path / "index.npy").unlink()
  writer = CacheWriter(tmp_path, spec_of(source))
  assert not writer.finished
  writer.finish()
  assert files(tmp_path) == whole


def test_a_damaged_head_is_told(source, tmp_path):
  cache = write(tmp_path, source, "hidden")
  assert cache.head()["kernel"].shape == (4, 300)
  path = tmp_path / "head.safetensors"
  content = bytearray(path.read_bytes())
  content[-1] ^= 1
  path.write_bytes(content)
  with pytest.raises(KdjaxError, match=r"head\.safetensors is damaged .*checksum"):
    cache.head()


def test_no_cache_and_other_formats(source, tmp_path):
  with pytest.raises(KdjaxError, match="holds no cache of signals"):
    Cache(tmp_path / "nowhere")
  write(tmp_path, source)
  path = tmp_path / "manifest.json"
  told = json.loads(path.read_text())
  for change, message in (
    ({"version": 9}, "is of format 9; this version reads 1"),
    ({"format": "other"}, "does not belong to a cache"),
    ({"extra": 1}, "is damaged"),
  ):
    path.write_text(json.dumps(told | change))
    with pytest.raises(KdjaxError, match=message):
      Cache(tmp_path)


def test_a_disk_that_cannot_be_written_to(source, tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(KdjaxError, match=r"cannot write .*file.*finished shards are kept"):
    CacheWriter(tmp_path / "file" / "cache", spec_of(source))


def test_a_disk_that_fills_up_costs_no_finished_shard(tmp_path):
  mounted = shutil.which("mount") and subprocess.run(
    ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(tmp_path)], capture_output=True
  )
  if not mounted or mounted.returncode:
    pytest.skip("this user may not mount a file system")
  try:
    rows = Tokens(rows=3000)
    spec = spec_of(rows, rows_per_shard=1500)
    writer = CacheWriter(tmp_path / "cache", spec)
    writer.write(0, [record(rows.spans(0)[0])])
    with pytest.raises(KdjaxError, match=r"cannot write .*00001.*No space left.*Free space"):
      writer.write(1, records(writer, rows, 1))
    assert CacheWriter(tmp_path / "cache", spec).missing() == [1]
  finally:
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)
