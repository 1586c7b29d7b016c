"""Rows of text in batches: their own masks stay, and a mixture of domains is read and resumed."""

import json

import numpy as np
import pytest

from kdjax.data import evaluation_batches, paired_stream, text, training_stream
from kdjax.errors import KdjaxError
from kdjax.train.streams import Together

T = 12


@pytest.fixture
def make(tmp_path, tokenizer_folder):
  sources = {}
  for domain, count in {"first": 40, "second": 12}.items():
    path = tmp_path / f"{domain}.jsonl"
    texts = [f"{domain} {'x' * (i % 17)} {i}" for i in range(count)]
    path.write_text("".join(json.dumps({"text": each}) + "\n" for each in texts))
    sources[domain] = {"kind": "jsonl", "path": str(path)}

  def made(**options):
    return text(
      tokenizer=tokenizer_folder, sequence_length=T, sources=sources, test_fraction=0.2, **options
    )

  return made


def same(got, wanted):
  assert got.keys() == wanted.keys()
  for key, values in wanted.items():
    np.testing.assert_array_equal(got[key], values)


def test_without_weights_an_epoch_is_every_row_with_its_own_mask(make):
  rows = make().train
  assert rows.mixture is None
  stream = training_stream(rows, batch_size=1, seed=0, threads=0)
  seen = [next(stream) for _ in range(len(rows))]
  assert sorted(int(batch["index"][0]) for batch in seen) == list(range(len(rows)))
  for batch in seen:
    same({key: values[0] for key, values in batch.items()}, rows[int(batch["index"][0])])
  assert not all(batch["mask"].all() for batch in seen)


def test_evaluation_blanks_what_is_past_the_end(make):
  rows = make().test
  size = len(rows) - 2  # so that the second batch has two rows
  first, second = evaluation_batches(rows, batch_size=size)
  same(first, rows.read(np.arange(size)))
  wanted = rows.read(np.arange(size, size + 2))
  same({key: values[:2] for key, values in second.items()}, wanted)
  assert second["mask"].shape == (size, T) and not second["mask"][2:].any()
  assert not second["segment_ids"][2:].any() and (second["index"][2:] == -1).all()


def test_the_library_of_domains_is_mixed_changed_and_resumed(make):
  data = make(weights={"first": 1, "second": 3})
  assert data.test.mixture is None

  def stream(**options):
    return training_stream(data.train, batch_size=8, seed=3, **options)

  reader = stream()
  domains = np.concatenate([next(reader)["domain"] for _ in range(10)])
  n = np.arange(1, 81)
  assert (np.abs(np.cumsum(domains) - 0.75 * n) <= 1).all()
  reader.set_weights({"first": 1, "second": 0})
  assert not next(reader)["domain"].any()
  state = json.loads(json.dumps(reader.get_state()))
  wanted = next(reader)
  reader.close()
  shards = [stream(shard_index=i, shard_count=2, threads=0) for i in range(2)]
  for shard in shards:
    shard.set_state(state)
  parts = [next(shard) for shard in shards]
  same({key: np.concatenate([part[key] for part in parts]) for key in wanted}, wanted)


def test_weights_reach_the_training_rows_of_streams_in_step_and_are_resumed(make):
  data = make(weights={"first": 1, "second": 3}, validation_fraction=0.2)

  def pair(seed=0, threads=1):
    return paired_stream(
      {
        name: training_stream(getattr(data, name), batch_size=4, seed=seed, threads=threads)
        for name in ("train", "validation")
      }
    )

  def flat(batch):
    own = dict(batch)
    return own | {f"validation/{key}": v for key, v in own.pop("validation").items()}

  unchanged, reader = pair(), pair()
  for _ in range(3):
    same(flat(next(reader)), flat(next(unchanged)))
  reader.set_weights({"first": 1, "second": 0})
  after = [flat(next(reader)) for _ in range(2)]
  state = json.loads(json.dumps(reader.get_state()))
  wanted = [flat(next(reader)) for _ in range(4)]
  assert not any(batch["domain"].any() for batch in after + wanted)
  other = [flat(next(unchanged)) for _ in range(2)]
  assert any(batch["domain"].any() for batch in other)
  for a, b in zip(after, other, strict=True):  # what is validated on stays as it is
    np.testing.assert_array_equal(a["validation/index"], b["validation/index"])
  again = pair(threads=0)
  again.set_state(state)
  for batch in wanted:
    same(flat(next(again)), batch)
  before = again.get_state()
  with pytest.raises(KdjaxError, match="must name each domain"):
    again.set_weights({"first": 1})
  assert again.get_state() == before
  # One stream per seed of a program: all of them change, and go on together.
  several = Together([pair(0, 0), pair(1, 0)])
  several.set_weights({"first": 0, "second": 1})
  assert next(several)["domain"].all()
  state, wanted = json.loads(json.dumps(several.get_state())), flat(next(several))
  several = Together([pair(0, 0), pair(1, 0)])
  several.set_state(state)
  same(flat(next(several)), wanted)
  for stream in (unchanged, reader):
    stream.close()


def test_streams_without_weights_say_so(make):
  data = make(validation_fraction=0.2)
  streams = {
    name: training_stream(getattr(data, name), batch_size=2, seed=0)
    for name in ("train", "validation")
  }
  with pytest.raises(KdjaxError, match=r"without weights; give config\.data\.weights"):
    paired_stream(streams).set_weights({"first": 1, "second": 1})


def test_names_of_streams_are_no_keys_of_rows(make):
  rows = make().train
  streams = {name: training_stream(rows, batch_size=2, seed=0) for name in ("train", "tokens")}
  with pytest.raises(KdjaxError, match="keys of a batch"):
    paired_stream(streams)
