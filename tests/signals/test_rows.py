"""Rows with signals: packed rows of tokens, images, augmented images."""

import functools

import numpy as np
import pytest

from kdjax.data.augment import augment_rows, compose, cutout, shift
from kdjax.data.base import ArraySource
from kdjax.data.labels import hide_labels, subset
from kdjax.data.pipeline import evaluation_batches, training_stream
from kdjax.errors import KdjaxError
from kdjax.signals import CachedRows, ImageRows
from tests.signals.helpers import DATA, LENGTH, Tokens, made_up, write

TOKENIZER = "k" * 64
IMAGES = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 1), dtype=np.uint8)
LABELS = np.arange(10, dtype=np.int32) % 3


def rows(source, cache, **changes):
  arguments = {"length": LENGTH, "data": DATA, "tokenizer": TOKENIZER} | changes
  return CachedRows(source, cache, **arguments)


def images():
  return ArraySource(IMAGES, LABELS)


@pytest.mark.parametrize("kind", ["sampled", "top_k", "hidden"])
def test_signals_lie_at_their_positions_whatever_the_order(kind, tmp_path):
  cache = write(tmp_path, Tokens(), kind)
  source = Tokens(order=[5, 2, 6, 0])  # another order, and not all of them
  batch = rows(source, cache).read(np.array([3, 1, 0]))
  assert batch["index"].tolist() == [0, 2, 5]
  for place, position in enumerate((3, 1, 0)):
    covered = np.zeros(LENGTH, bool)
    for key, start, stop in source.spans(position):
      wanted = made_up(key, stop - start, kind)
      if kind == "hidden":
        own = batch["signal/hidden"][place, start:stop].astype(np.float32)
        np.testing.assert_allclose(own, wanted, rtol=2**-8)
      elif kind == "top_k":
        ids = batch["signal/ids"][place, start:stop]
        np.testing.assert_array_equal(ids, np.sort(wanted[0], axis=1))
      else:
        weights = batch["signal/values"][place, start:stop]
        assert (weights > 0).sum(1).tolist() == [len(np.unique(row)) for row in wanted]
      covered[start:stop] = True
    if kind != "hidden":
      empty = {"sampled": 0.0, "top_k": -np.inf}[kind]
      assert (batch["signal/values"][place, ~covered] == empty).all()
  shape = batch["signal/hidden" if kind == "hidden" else "signal/ids"].shape
  assert shape == (3, LENGTH, {"sampled": cache.manifest.slots, "top_k": 6, "hidden": 4}[kind])


def test_other_data_or_tokenizer_are_refused_before_training(tmp_path):
  cache = write(tmp_path, Tokens())
  with pytest.raises(KdjaxError, match=r"tokenizer: saved 'k+', now 'z+'"):
    rows(Tokens(), cache, tokenizer="z" * 64)
  with pytest.raises(KdjaxError, match=r"data\.sequence_length: saved 12, now 16"):
    rows(Tokens(), cache, data=DATA | {"sequence_length": 16})
  with pytest.raises(KdjaxError, match=r"row 0 .* is not in the cache .*the cache: .* 7 rows"):
    rows(Tokens(seed=1), cache)


def test_a_row_that_was_not_cached_is_told_when_it_comes(tmp_path):
  cache = write(tmp_path, Tokens(rows=60))
  source = Tokens(rows=60)
  source.tokens[1] += 1  # not among the probes
  wrapped = rows(source, cache)
  wrapped.read(np.array([0, 2]))
  with pytest.raises(KdjaxError, match="row 1 of the training data is not in the cache"):
    wrapped.read(np.array([0, 1]))


def test_batches_bring_their_signals(tmp_path):
  cache = write(tmp_path, Tokens())
  stream = training_stream(rows(Tokens(), cache), batch_size=4, seed=3)
  plain = training_stream(Tokens(), batch_size=4, seed=3)
  for _ in range(3):
    batch, bare = next(stream), next(plain)
    for name, values in bare.items():
      np.testing.assert_array_equal(batch[name], values)
    weights = batch["signal/values"].sum(-1)
    np.testing.assert_allclose(weights[batch["signal/values"].any(-1)], 1, rtol=1e-6)
  *_, last = evaluation_batches(rows(Tokens(), cache), batch_size=4)
  assert last["mask"].tolist() == [True] * 3 + [False]
  assert not last["signal/values"][3].any()


def test_keys_of_images_are_of_their_content():
  source = images()
  keys = [ImageRows(source).spans(i)[0].key for i in range(10)]
  assert len(set(keys)) == 10 and {len(key) for key in keys} == {16}
  view = hide_labels(subset(source, np.array([7, 2])), 1.0, seed=0)
  assert [ImageRows(view).spans(i)[0].key for i in range(2)] == [keys[7], keys[2]]
  other = ArraySource(IMAGES.reshape(10, 2, 8, 1), LABELS)
  assert ImageRows(other).spans(0)[0].key != keys[0]
  # One example a row, at its one position.
  assert ImageRows(source).spans(3)[0][1:] == (0, 1)


def change(seed):
  return functools.partial(
    lambda rows, versions, augment: augment_rows(rows, augment, seed=seed, epochs=versions),
    augment=compose(shift(pixels=1), cutout(size=2)),
  )


def test_versions_of_augmented_images_are_those_of_a_run_without_a_cache():
  stored = ImageRows(images(), change(seed=5), versions=2)
  assert len(stored) == 20 and len(stored.labels) == 20
  cached = training_stream(stored, batch_size=10, seed=5, versions=2)
  augment = compose(shift(pixels=1), cutout(size=2))
  live = training_stream(images(), batch_size=10, seed=5, augment=augment)
  epochs = [(next(cached), next(live)) for _ in range(4)]
  for ours, theirs in epochs[:2]:
    for name, values in theirs.items():
      np.testing.assert_array_equal(ours[name], values)
  # The third epoch sees the first version again, in an order of its own.
  first, third = (
    {int(i): image for i, image in zip(e["index"], e["image"], strict=True)}
    for e in (epochs[0][0], epochs[2][0])
  )
  for index, image in first.items():
    np.testing.assert_array_equal(third[index], image)
  assert epochs[0][0]["index"].tolist() != epochs[2][0]["index"].tolist()


def test_keys_of_augmented_images_know_version_and_index():
  stored = ImageRows(images(), change(seed=5), versions=2)
  keys = {stored.spans(i)[0].key for i in range(20)}
  assert len(keys) == 20
  # At another index the same image is augmented otherwise, so the key is another.
  moved = ImageRows(ArraySource(IMAGES[::-1].copy(), LABELS), change(seed=5), versions=2)
  assert not keys & {moved.spans(i)[0].key for i in range(20)}
