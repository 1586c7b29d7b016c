"""Whatever a file holds, its reader returns or raises the library's own error, in little memory.

This is the short form. The long one is guided by coverage: see tests/fuzz/__main__.py.
"""

import gzip
import os
import tracemalloc

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kdjax.errors import KdjaxError
from tests.fuzz.mutations import EDITS, mutated
from tests.fuzz.readers import READERS, images_idx_gz, refuse

EXAMPLES = int(os.environ.get("KDJAX_EXAMPLES", "40"))
MOST = 64 << 20  # bytes that a reader may take for a file of some kilobytes
SLOW = {"tokenizer_json": 8, "labelled_text": 15, "gguf": 25}


@pytest.fixture(scope="module", params=READERS)
def reader(request, tmp_path_factory):
  return request.param, READERS[request.param](tmp_path_factory.mktemp(request.param))


def test_whole_files_are_read(reader):
  for seed in reader[1].seeds:
    assert not refuse(reader[1], seed)


def test_damaged_files_are_read_or_refused(reader):
  name, own = reader
  few = settings(
    max_examples=min(EXAMPLES, SLOW.get(name, EXAMPLES)) if EXAMPLES <= 40 else EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
  )
  refused = []

  @few
  @example(0, [("end", 0.0, 0.0, b"")])
  @example(0, [("end", 0.7, 1.0, b"")])
  @example(0, [("insert", 0.0, 0.0, b"[" * 100_000)])
  @given(st.integers(0, len(own.seeds) - 1), EDITS)
  def check(index, edits):
    tracemalloc.start()
    try:
      refused.append(refuse(own, mutated(own.seeds[index], edits)))
      assert tracemalloc.get_traced_memory()[1] < MOST
    finally:
      tracemalloc.stop()

  check()
  assert any(refused)


def test_a_file_that_unpacks_to_much_more_is_refused_in_little_memory(tmp_path):
  reader = images_idx_gz(tmp_path)
  whole = gzip.decompress(reader.seeds[0])
  bomb = gzip.compress(whole + bytes(1 << 29), mtime=0)
  tracemalloc.start()
  try:
    with pytest.raises(KdjaxError, match="announces"):
      reader.read(bomb)
    assert tracemalloc.get_traced_memory()[1] < MOST
  finally:
    tracemalloc.stop()
