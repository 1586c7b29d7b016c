"""Batches: pure functions of (seed, k), resumable, the same for any number of processes."""

import dataclasses
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.data import (
  ArraySource,
  arrays,
  augment,
  evaluation_batches,
  paired_stream,
  split_off,
  subset,
  training_stream,
)
from kdjax.data.text.mixture import Mixture
from kdjax.errors import KdjaxError

N = 30
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (N, 5, 4, 1), dtype=np.uint8)
SOURCE = arrays(IMAGES, np.arange(N) % 3, IMAGES, np.arange(N) % 3).train
AUGMENT = augment.compose(augment.shift(pixels=1), augment.flip())


def take(stream, count):
  batches = [next(stream) for _ in range(count)]
  stream.close()
  return batches


def stream(batch_size=8, seed=1, **options):
  options = {"augment": AUGMENT, "threads": 0} | options
  return training_stream(SOURCE, batch_size=batch_size, seed=seed, **options)


def assert_same(got, wanted):
  assert got.keys() == wanted.keys()
  for key, value in wanted.items():
    np.testing.assert_array_equal(got[key], value)
    assert got[key].dtype == value.dtype


def together(shards):
  return {key: np.concatenate([shard[key] for shard in shards]) for key in shards[0]}


def test_what_a_batch_holds():
  batch = take(stream(augment=None), 1)[0]
  assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
    "image": ((8, 5, 4, 1), "float32"),
    "label": ((8,), "int32"),
    "index": ((8,), "int32"),
    "mask": ((8,), "bool"),
  }
  assert batch["mask"].all()
  np.testing.assert_array_equal(batch["label"], batch["index"] % 3)
  np.testing.assert_array_equal(batch["image"], IMAGES[batch["index"]] / np.float32(255))


def test_an_epoch_holds_every_record_once_and_each_is_shuffled_anew():
  ids = np.concatenate([batch["index"] for batch in take(stream(batch_size=6), 15)])
  epochs = ids.reshape(3, N)
  for epoch in epochs:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(N))
    assert not np.array_equal(epoch, np.arange(N))
  assert len({epoch.tobytes() for epoch in epochs}) == 3


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(1, N), st.integers(1, 12), st.integers(0, 2**31), st.integers(0, 3))
def test_every_epoch_is_a_permutation(size, batch_size, seed, epochs_before):
  source = subset(SOURCE, np.arange(size))
  reader = training_stream(source, batch_size=batch_size, seed=seed, threads=0)
  reader.set_state({"global_next_index": epochs_before * size})
  ids = [next(reader)["index"] for _ in range(-(-2 * size // batch_size))]
  ids = np.concatenate(ids)[: 2 * size].reshape(2, size)
  for epoch in ids:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(size))


def test_batch_k_is_a_function_of_seed_and_k():
  first, second = take(stream(threads=0), 9), take(stream(threads=2), 9)
  for got, wanted in zip(second, first, strict=True):
    assert_same(got, wanted)
  other = take(stream(seed=2), 9)
  assert not any(np.array_equal(a["index"], b["index"]) for a, b in zip(first, other, strict=True))


def test_batch_k_may_be_read_alone():
  wanted = take(stream(), 7)[6]
  reader = stream()
  reader.set_state({"global_next_index": 6 * 8})
  assert_same(take(reader, 1)[0], wanted)


def test_resuming_continues_exactly():
  reader = stream(threads=2)
  for _ in range(5):
    next(reader)
  state = json.loads(json.dumps(reader.get_state()))
  wanted = take(reader, 6)
  again = stream(threads=2)
  again.set_state(state)
  for got, batch in zip(take(again, 6), wanted, strict=True):
    assert_same(got, batch)


def test_the_position_counts_what_was_handed_out_not_what_was_read_ahead():
  reader = stream(threads=2)
  assert reader.get_state() == {"global_next_index": 0}
  next(reader)
  time.sleep(0.05)  # the threads run ahead
  assert reader.get_state() == {"global_next_index": 8}
  wanted = next(stream_at(8))
  assert_same(next(reader), wanted)
  reader.close()


def stream_at(position, **options):
  reader = stream(**options)
  reader.set_state({"global_next_index": position})
  return reader


def test_going_back_after_reading_ahead():
  reader = stream(threads=2)
  start = reader.get_state()
  first = next(reader)
  reader.set_state(start)
  assert_same(next(reader), first)
  reader.close()


@pytest.mark.parametrize("count", [2, 4, 8])
def test_shards_are_disjoint_and_together_the_global_batch(count):
  whole = take(stream(), 5)
  shards = [take(stream(shard_index=i, shard_count=count), 5) for i in range(count)]
  for k, batch in enumerate(whole):
    assert_same(together([shard[k] for shard in shards]), batch)


def test_the_number_of_processes_may_change_on_the_way():
  whole = take(stream(), 9)
  state, got = stream().get_state(), []
  for count in (1, 2, 4):
    readers = [stream(shard_index=i, shard_count=count) for i in range(count)]
    for reader in readers:
      reader.set_state(state)
    got += [together([next(reader) for reader in readers]) for _ in range(3)]
    states = [reader.get_state() for reader in readers]
    assert all(other == states[0] for other in states)
    state = states[0]
  for batch, wanted in zip(got, whole, strict=True):
    assert_same(batch, wanted)


def test_the_batch_size_may_change_on_the_way():
  ids = np.concatenate([batch["index"] for batch in take(stream(), 6)])
  reader = stream()
  head = [next(reader)["index"] for _ in range(2)]
  bigger = stream_at(reader.get_state()["global_next_index"], batch_size=16)
  tail = [batch["index"] for batch in take(bigger, 2)]
  np.testing.assert_array_equal(np.concatenate(head + tail), ids)


@pytest.mark.parametrize(
  ("batch_size", "shard", "position", "source"),
  [
    (8, (0, 1), 0, SOURCE),
    (5, (0, 1), 35, SOURCE),
    (12, (1, 3), 24, SOURCE),
    (6, (0, 2), 66, split_off(SOURCE, 0.2, seed=0)[0]),
  ],
)
def test_an_image_depends_on_seed_epoch_and_record_alone(batch_size, shard, position, source):
  reader = training_stream(
    source,
    batch_size=batch_size,
    seed=7,
    shard_index=shard[0],
    shard_count=shard[1],
    augment=AUGMENT,
    threads=0,
  )
  reader.set_state({"global_next_index": position})
  for _ in range(8):
    first = reader.get_state()["global_next_index"] + shard[0] * batch_size // shard[1]
    batch = next(reader)
    for row, record in enumerate(batch["index"]):
      epoch = (first + row) // len(source)
      rng = np.random.default_rng((7, epoch, int(record)))
      np.testing.assert_array_equal(batch["image"][row], AUGMENT(SOURCE[record], rng)["image"])


def test_two_streams_in_step():
  train, validation = split_off(SOURCE, 0.4, seed=0)

  def pair():
    return paired_stream(
      {
        "train": training_stream(train, batch_size=6, seed=1, augment=AUGMENT),
        "validation": training_stream(validation, batch_size=4, seed=2),
      }
    )

  reader = pair()
  first = next(reader)
  assert first["image"].shape == (6, 5, 4, 1)
  assert first["validation"]["image"].shape == (4, 5, 4, 1)
  assert set(first) == {"image", "label", "index", "mask", "validation"}
  for _ in range(3):
    next(reader)
  state = json.loads(json.dumps(reader.get_state()))
  wanted = next(reader)
  reader.close()
  again = pair()
  again.set_state(state)
  got = next(again)
  again.close()
  assert_same(got.pop("validation"), wanted.pop("validation"))
  assert_same(got, wanted)
  held = set(np.asarray(validation.positions))
  assert set(wanted["index"]).isdisjoint(held)


def test_pairs_are_checked():
  with pytest.raises(KdjaxError, match="one must be 'train'"):
    paired_stream({"validation": stream()})
  with pytest.raises(KdjaxError, match="keys of a batch"):
    paired_stream({"train": stream(), "label": stream()})
  pair = paired_stream({"train": stream(), "validation": stream()})
  with pytest.raises(KdjaxError, match="another kind of run"):
    pair.set_state({"global_next_index": 8})


@dataclasses.dataclass(frozen=True)
class Mixed(ArraySource):
  """Records of three domains, 20, 7 and 3 of them, in this order."""

  mixture: Mixture


MIXED = Mixed(SOURCE.images, SOURCE.labels, Mixture(("a", "b", "c"), (20, 7, 3), (2.0, 1.0, 1.0)))
STARTS = np.array([0, 20, 27, 30])
NEW = {"a": 0, "b": 3, "c": 1.5}


def mixed(**options):
  options = {"batch_size": 8, "seed": 1, "augment": AUGMENT, "threads": 0} | options
  return training_stream(MIXED, **options)


def test_domains_have_their_shares_and_epochs_of_their_own():
  ids = np.concatenate([batch["index"] for batch in take(mixed(), 45)])
  domains = np.searchsorted(STARTS, ids, side="right") - 1
  n = np.arange(1, len(ids) + 1)
  for domain, share in enumerate([0.5, 0.25, 0.25]):
    assert (np.abs(np.cumsum(domains == domain) - share * n) <= 1).all()
    own, size = ids[domains == domain], STARTS[domain + 1] - STARTS[domain]
    epochs = own[: len(own) // size * size].reshape(-1, size)
    assert len(epochs) >= 9
    for epoch in epochs:
      np.testing.assert_array_equal(np.sort(epoch), np.arange(STARTS[domain], STARTS[domain + 1]))
    assert len({epoch.tobytes() for epoch in epochs}) > 1


def test_an_augmentation_in_a_mixture_knows_the_epoch_of_the_domain():
  seen = {}
  for batch in take(mixed(), 12):
    for image, record in zip(batch["image"], batch["index"].tolist(), strict=True):
      rng = np.random.default_rng((1, seen.get(record, 0), record))
      np.testing.assert_array_equal(image, AUGMENT(SOURCE[record], rng)["image"])
      seen[record] = seen.get(record, 0) + 1


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.integers(0, 12), st.integers(0, 8), st.sampled_from([1, 2, 4]))
def test_a_mixture_resumes_exactly_also_after_its_weights_changed(before, after, count):
  def run():
    reader = mixed(threads=2)
    out = [next(reader) for _ in range(before)]
    reader.set_weights(NEW)
    return reader, out + [next(reader) for _ in range(after)]

  reader, _ = run()
  state = json.loads(json.dumps(reader.get_state()))
  wanted = take(reader, 4)
  shards = [mixed(shard_index=i, shard_count=count) for i in range(count)]
  for shard in shards:
    shard.set_state(state)
  for batch in wanted:
    assert_same(together([next(shard) for shard in shards]), batch)
  assert all(shard.get_state() == reader.get_state() for shard in shards)


def test_weights_hold_from_the_next_batch_on_whatever_was_read_ahead():
  plain, changed = mixed(threads=2), mixed(threads=2)
  for _ in range(4):
    assert_same(next(plain), next(changed))
  time.sleep(0.05)  # the threads run ahead
  assert changed.get_state() == {"global_next_index": 32}
  changed.set_weights(NEW)
  assert changed.get_state() == {
    "global_next_index": 32,
    "weights": [[0, {"a": 2.0, "b": 1.0, "c": 1.0}], [32, {"a": 0.0, "b": 3.0, "c": 1.5}]],
  }
  ids = np.concatenate([batch["index"] for batch in take(changed, 6)])
  assert (ids >= 20).all() and (ids >= 27).sum() == 16
  changed.set_weights({"a": 1, "b": 0, "c": 0})
  # The domain that was paused goes on where it was.
  first = [i for batch in take(plain, 16) for i in batch["index"] if i < 20][:4]
  plain_start = [i for batch in take(mixed(), 4) for i in batch["index"] if i < 20]
  assert next(changed)["index"][:4].tolist() == first
  assert len(set(plain_start + first)) == 20
  changed.close()


def test_the_same_weights_change_nothing_and_a_state_brings_its_own():
  reader = mixed()
  next(reader)
  reader.set_weights({"a": 2, "b": 1, "c": 1})
  assert reader.get_state() == {"global_next_index": 8}
  reader.set_weights(NEW)
  reader.set_weights({"c": 1, "b": 1, "a": 1})
  assert [start for start, _ in reader.get_state()["weights"]] == [0, 8]
  reader.set_state({"global_next_index": 0})
  assert_same(next(reader), next(mixed()))


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: stream().set_weights({"a": 1}), "made without weights"),
    (lambda: mixed().set_weights({"a": 1}), "must name each domain: a, b, c"),
    (lambda: mixed().set_weights({"a": -1, "b": 1, "c": 1}), r"weights\.a = -1"),
    (lambda: mixed().set_weights({"a": 0, "b": 0, "c": 0}), "all 0"),
    (lambda: resumed(stream(), [[0, NEW]]), "another kind of run"),
    (lambda: resumed(mixed(), [[8, NEW]]), "another kind of run"),
    (lambda: resumed(mixed(), [[0, NEW], [24, NEW]]), "another kind of run"),
    (lambda: resumed(mixed(), [[0, NEW], [8, NEW], [8, NEW]]), "another kind of run"),
    (lambda: resumed(mixed(), "none"), "another kind of run"),
    (lambda: resumed(mixed(), [[0, {"d": 1}]]), "must name each domain"),
  ],
)
def test_weights_and_states_that_do_not_fit(make, message):
  with pytest.raises(KdjaxError, match=message):
    make()


def resumed(reader, weights):
  reader.set_state({"global_next_index": 16, "weights": weights})


def test_evaluation_reads_each_record_once_and_pads_the_last_batch():
  batches = list(evaluation_batches(SOURCE, batch_size=8))
  assert len(batches) == 4
  assert {tuple(batch["image"].shape) for batch in batches} == {(8, 5, 4, 1)}
  ids = np.concatenate([batch["index"][batch["mask"]] for batch in batches])
  np.testing.assert_array_equal(ids, np.arange(N))
  last = batches[-1]
  np.testing.assert_array_equal(last["mask"], [True] * 6 + [False] * 2)
  np.testing.assert_array_equal(last["index"][6:], [-1, -1])
  np.testing.assert_array_equal(last["label"][6:], [0, 0])
  assert not last["image"][6:].any()
  np.testing.assert_array_equal(last["image"][:6], IMAGES[24:] / np.float32(255))


@pytest.mark.parametrize("batch_size", [8, 40])
def test_evaluation_shards_have_equal_numbers_of_batches(batch_size):
  whole = list(evaluation_batches(SOURCE, batch_size=batch_size))
  shards = [
    list(evaluation_batches(SOURCE, batch_size=batch_size, shard_index=i, shard_count=4))
    for i in range(4)
  ]
  assert {len(shard) for shard in shards} == {len(whole)}
  for k, batch in enumerate(whole):
    assert_same(together([shard[k] for shard in shards]), batch)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: stream(batch_size=0), r"config\.batch_size = 0 must be a positive multiple"),
    (lambda: stream(batch_size=6, shard_count=4), r"config\.batch_size = 6 .*4"),
    (lambda: stream(shard_index=2, shard_count=2), "shard_index = 2"),
    (lambda: stream(seed=-1), "seed of the data is -1"),
    (lambda: training_stream(subset(SOURCE, []), batch_size=1, seed=0), r"\(0 records\)"),
    (lambda: evaluation_batches(subset(SOURCE, []), batch_size=1), "evaluation data are empty"),
    (lambda: evaluation_batches(SOURCE, batch_size=9, shard_count=2), r"config\.batch_size = 9"),
    (lambda: stream().set_state({"next": 3}), "no position in a data stream"),
    (lambda: stream().set_state({"global_next_index": -8}), "no position in a data stream"),
    (lambda: stream().set_state(None), "no position in a data stream"),
  ],
)
def test_mistakes_are_told_before_anything_is_read(make, message):
  with pytest.raises(KdjaxError, match=message):
    make()


WORKERS = """
import numpy as np
from absl import flags
from kdjax.data import arrays, augment, training_stream

if __name__ == "__main__":
  flags.FLAGS.mark_as_parsed()
  images = np.random.default_rng(0).random((30, 4, 4, 1))
  source = arrays(images, np.arange(30) % 3, images, np.arange(30) % 3).train
  options = dict(batch_size=8, seed=1, augment=augment.shift())
  ahead = training_stream(source, workers=1, **options)
  plain = training_stream(source, **options)
  for stream in (ahead, plain):
    stream.set_state({"global_next_index": 16})
  for _ in range(5):
    a, b = next(ahead), next(plain)
    assert all(np.array_equal(a[key], b[key]) for key in b)
  assert ahead.get_state() == plain.get_state() == {"global_next_index": 56}
  ahead.close()
  print("passed")
"""


def test_reader_processes_change_nothing(tmp_path):
  script = tmp_path / "workers.py"
  script.write_text(WORKERS)
  done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
  assert done.returncode == 0, done.stderr[-3000:]
  assert "passed" in done.stdout


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_partner_of_a_mixed_row_is_the_next_row_of_the_stream(count):
  # Whatever the number of processes, over the ends of batches and of epochs.
  mixed = augment.compose(augment.flip(), augment.mixup())
  plain = take(stream(augment=augment.flip()), 7)
  rows = np.concatenate([batch["image"] for batch in plain])
  shards = [take(stream(augment=mixed, shard_index=i, shard_count=count), 6) for i in range(count)]
  for k in range(6):
    batch = together([shard[k] for shard in shards])
    np.testing.assert_array_equal(batch["index"], plain[k]["index"])
    own, next_one = rows[8 * k : 8 * k + 8], rows[8 * k + 1 : 8 * k + 9]
    step = own - next_one
    share = np.sum((batch["image"] - next_one) * step, (1, 2, 3)) / np.sum(step**2, (1, 2, 3))
    share = share.reshape(-1, 1, 1, 1).astype(np.float32)
    assert (share >= 0.49).all()
    np.testing.assert_allclose(batch["image"], next_one + share * step, atol=1e-5)
