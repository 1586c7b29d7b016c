"""Caching a teacher: what is stored, resumed, verified, and read again in training."""

import functools
import re

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from kdjax.errors import KdjaxError
from kdjax.outputs import Head, Outputs
from kdjax.programs import distill
from kdjax.signals import Cache, codec
from kdjax.signals.draws import draw_words
from kdjax.teachers import Teacher
from kdjax.train.build import build_model, build_objective
from kdjax.train.cache import cache_teacher, encode, signals_of
from kdjax.train.cache_check import verify_cache
from kdjax.train.cache_session import CacheOptions, open_session, session_of
from kdjax.train.job import prepare_teacher
from kdjax.train.loop import Interrupted
from kdjax.train.mesh import make_mesh
from kdjax.train.pretrained import build_teacher
from kdjax.train.signal_rows import SignalRows
from kdjax.train.streams import load_data, open_data
from tests.end_to_end.helpers import tiny
from tests.signals.helpers import LENGTH, VOCAB, Tokens, files

WIDTH = 8
EPOCH = 1200 // 40
KINDS = {
  "sampled": CacheOptions(num_samples=20, rows_per_shard=3),
  "top_k": CacheOptions(kind="top_k", k=12, temperature=2.0, rows_per_shard=3),
  "hidden": CacheOptions(kind="hidden", rows_per_shard=3),
}


def language_teacher(seed=0):
  """Reads tokens one by one; hands over hidden states and head, as language models do."""
  keys = jax.random.split(jax.random.key(seed), 2)
  frozen = {
    "embed": jax.random.normal(keys[0], (VOCAB, WIDTH)),
    "kernel": jax.random.normal(keys[1], (WIDTH, VOCAB)),
  }

  def apply(frozen, state, batch, *, taps):
    assert taps <= {"hidden", "head"}
    return Outputs(hidden=frozen["embed"][batch["tokens"]], head=Head(frozen["kernel"]))

  axes = jax.tree.map(lambda _: PartitionSpec(), frozen)
  return Teacher(apply, frozenset({"hidden", "head"}), VOCAB, frozen=frozen, axes=axes)


def session(kind, *, teacher=0, rows=None, devices=4, batch_size=4, **changes):
  rows = Tokens(rows=11) if rows is None else rows
  source = SignalRows(rows, LENGTH, {"sequence_length": LENGTH}, "k" * 64, 1)
  options = KINDS[kind]._replace(**changes)
  mesh = make_mesh(data=devices)
  return session_of(language_teacher(teacher), source, options, mesh, batch_size, "tokens")


def exact(spans_of, kind="sampled"):
  """log-probabilities [T, V] of the teacher for a row."""
  frozen = language_teacher().frozen
  logits = np.asarray(frozen["embed"][spans_of] @ frozen["kernel"], np.float64)
  logits /= KINDS[kind].temperature
  return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def test_top_k_records_are_the_teachers_likeliest_classes(tmp_path):
  cache_teacher(session("top_k"), tmp_path)
  rows, cache = Tokens(rows=11), Cache(tmp_path)
  for row in (0, 4, 10):
    for key, start, stop in rows.spans(row):
      log_p = exact(rows.tokens[row, start:stop], "top_k")
      (found,) = cache.read([key])
      likeliest = np.sort(np.argsort(-log_p, axis=1)[:, :12], axis=1)
      np.testing.assert_array_equal(found["ids"], likeliest)
      wanted = np.take_along_axis(log_p, likeliest, axis=1)
      np.testing.assert_allclose(found["values"], wanted, atol=0.03)
  assert cache.manifest.spec.temperature == 2.0


def test_sampled_records_come_from_the_teacher(tmp_path):
  cache_teacher(session("sampled", num_samples=4000), tmp_path)
  rows = Tokens(rows=11)
  (key, start, stop), *_ = rows.spans(3)
  (found,) = Cache(tmp_path).read([key])
  p = np.exp(exact(rows.tokens[3, start:stop]))
  given = np.zeros_like(p)
  np.put_along_axis(given, found["ids"], found["values"], axis=1)
  # Slots that are not used write weight 0 to class 0; put that class back.
  for row, ids, weights in zip(given, found["ids"], found["values"], strict=True):
    row[0] = weights[(ids == 0) & (weights > 0)].sum()
  assert (np.abs(given - p) < 5 * np.sqrt(p * (1 - p) / 4000) + 1e-3).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_verified(kind, tmp_path):
  own = session(kind)
  cache_teacher(own, tmp_path)
  found = verify_cache(own, tmp_path)
  assert found["positions"] == Cache(tmp_path).manifest.positions
  if kind == "sampled":
    assert found["equal_draws"] == 1
    assert abs(found["entropy_error"]) < 4 * found["standard_error"]
  else:
    # bfloat16 has 8 bits: a value below 4 is off by at most 2^-7. Levels of log-probabilities: by
    # some hundredths. What is left of the divergence is the tail of 288 classes.
    assert 0 < found["max_error"] < {"top_k": 0.03, "hidden": 2**-7 + 1e-6}[kind]
    assert 0 <= found["forward_kl"] < {"top_k": 2.0, "hidden": 1e-3}[kind]
  if kind == "top_k":
    rows, errors = Tokens(rows=11), []
    for row in range(11):
      for _, start, stop in rows.spans(row):
        log_p = -np.sort(-exact(rows.tokens[row, start:stop], kind), axis=1)
        tail = np.exp(log_p[:, 12:])
        mass = tail.sum(1, keepdims=True)
        errors.append((tail * (log_p[:, 12:] - np.log(mass / (VOCAB - 12)))).sum(1))
    assert found["forward_kl"] == pytest.approx(np.concatenate(errors).mean(), abs=1e-3)


def test_a_killed_cache_goes_on_and_no_split_changes_it(tmp_path):
  cache_teacher(session("sampled"), tmp_path / "whole")
  asked = iter([False, False, True])
  with pytest.raises(Interrupted, match="kept the finished shards"):
    cache_teacher(session("sampled", batch_size=2, devices=2), tmp_path / "a", stop=asked.__next__)
  assert len(list((tmp_path / "a").glob("*.array_record"))) == 1
  cache_teacher(session("sampled"), tmp_path / "a")
  assert files(tmp_path / "a") == files(tmp_path / "whole")
  # Again is nothing: the teacher is not even asked.
  cache_teacher(session("sampled"), tmp_path / "a", stop=lambda: pytest.fail("asked"))


def test_examples_keep_their_draws_in_another_order(tmp_path):
  cache_teacher(session("sampled"), tmp_path / "a")
  order = [7, 2, 9, 0]
  cache_teacher(session("sampled", rows=Tokens(rows=11, order=order)), tmp_path / "b")
  rows = Tokens(rows=11)
  keys = [key for row in order for key, _, _ in rows.spans(row)]
  slots = {name: Cache(tmp_path / name).manifest.slots for name in "ab"}
  for one, two in zip(*(Cache(tmp_path / name).read(keys) for name in "ab"), strict=True):
    least = min(slots.values())
    for name in ("ids", "values"):
      np.testing.assert_array_equal(one[name][:, :least], two[name][:, :least])


def test_another_teacher_is_refused(tmp_path):
  cache_teacher(session("sampled"), tmp_path)
  with pytest.raises(KdjaxError, match=r"holds another cache: teacher: saved '\w{64}', now"):
    cache_teacher(session("sampled", teacher=1), tmp_path)
  with pytest.raises(KdjaxError, match="was made otherwise: teacher"):
    verify_cache(session("sampled", teacher=1), tmp_path)


@pytest.mark.parametrize("kind", ["sampled", "top_k"])
def test_no_array_of_all_positions_and_classes_is_computed(kind):
  class Long(Tokens):
    def read(self, positions):
      return {"tokens": np.zeros((len(positions), 512), np.int32)}

  own = session(kind, rows=Long(rows=4), devices=1)
  own = own._replace(source=own.source._replace(length=512))
  text = jax.jit(signals_of(own)).lower(own.frozen, *own.place([0, 1, 2, 3])).compile().as_text()
  sizes = [
    np.prod([int(n) for n in shape.split(",")]) for shape in re.findall(r"\[([\d,]+)\]", text)
  ]
  assert max(sizes) < 4 * 512 * VOCAB / 4


def trained_teacher(tmp_path, **changes):
  config = tiny({"batch_size": 40, "teacher.train.total_steps": 100} | changes)
  config["teacher"]["train"]["optimizer"] = {"learning_rate": 0.02}
  prepare_teacher(config, tmp_path, stop=lambda: False)
  return config | {"teacher": config["teacher"] | {"checkpoint": str(tmp_path / "teacher")}}


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
  with jax.numpy_dtype_promotion("standard"):
    return trained_teacher(tmp_path_factory.mktemp("taught"))


@pytest.fixture(scope="module")
def signals(taught, tmp_path_factory):
  """The folder of a cache of that teacher."""
  folder = tmp_path_factory.mktemp("signals")
  cache_teacher(open_session(taught, CacheOptions()), folder)
  return folder


def from_cache(config, folder):
  return config | {"teacher": config["teacher"] | {"kind": "cached", "cache": str(folder)}}


def opened(config):
  mesh = make_mesh(**config["mesh"])
  return open_data(config, load_data(config["data"]), mesh, ("train",))


@pytest.mark.parametrize("kind", ["sampled", "top_k"])
def test_batches_from_the_cache_equal_signals_made_online(taught, kind, tmp_path):
  config = taught | {"data": taught["data"] | {"augment": [{"name": "shift", "pixels": 1}]}}
  options = CacheOptions(kind=kind, num_samples=20, k=4, versions=2, seed=config["seed"])
  own = open_session(config, options)
  manifest = cache_teacher(own, tmp_path)
  told = {"augment": [{"name": "shift", "pixels": 1}], "augment_seed": 0, "versions": 2}
  assert manifest.spec.data == told and manifest.examples == 2 * 1200
  online = jax.jit(signals_of(own))
  live, stored = opened(config).stream, opened(from_cache(config, tmp_path)).stream
  for step in range(2 * EPOCH):
    here, there = next(live), next(stored)
    if step not in (0, EPOCH - 1, EPOCH, 2 * EPOCH - 1):
      continue
    for name, values in here.items():  # the pixels of a run without a cache
      np.testing.assert_array_equal(there[name], values)
    # What the teacher says of these pixels now is what the batch brought.
    rows = [step // EPOCH * 1200 + int(index) for index in there["index"]]
    keys = [own.source.rows.spans(row)[0].key for row in rows]
    words = np.concatenate([draw_words(0, key, 1) for key in keys])
    arrays = jax.device_get(online(own.frozen, here, words))
    payloads = [encode(own.spec, {n: v[i][None] for n, v in arrays.items()})[0] for i in range(40)]
    if kind == "sampled":
      read = functools.partial(codec.decode_sampled, draws=20, slots=manifest.slots)
    else:
      read = functools.partial(codec.decode_top_k, k=4)
    made = [read(payload, vocab=10) for payload in payloads]
    np.testing.assert_array_equal(there["signal/ids"], np.concatenate([m[0] for m in made]))
    np.testing.assert_array_equal(there["signal/values"], np.concatenate([m[1] for m in made]))
  # The third epoch sees the first version again; without a cache it would be a third one.
  assert not np.array_equal(next(live)["image"], next(stored)["image"])


def test_a_student_learns_from_the_cache(taught, signals):
  config = from_cache(taught, signals)
  data = load_data(config["data"]).whole
  teacher = build_teacher(config, data)
  objective = build_objective({"name": "logit_kd", "loss": "sparse_cross_entropy"})
  student = build_model(config["student"], data, "config.student")
  program = distill(student, objective, optax.adam(1e-2), teacher=teacher)
  stream = opened(config).stream
  batch = next(stream)
  state = jax.jit(program.init)(jax.random.key(0), batch)
  step = jax.jit(program.step)
  losses = []
  for _ in range(60):
    state, metrics = step(state, program.frozen, batch)
    batch = next(stream)
    losses.append(float(metrics["loss"][0]))
  assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.2
  # The live teacher stands beside the stored one: evaluation asks it of other data.
  held_out = next(iter(opened(config).evaluation()))
  metrics = jax.jit(program.evaluate)(state, program.frozen, held_out)
  assert {"accuracy", "teacher/accuracy", "forward_kl"} <= metrics.keys()
  # Without its weights, evaluation goes without it.
  alone = config | {"teacher": config["teacher"] | {"checkpoint": ""}}
  program = distill(student, objective, optax.adam(1e-2), teacher=build_teacher(alone, data))
  metrics = jax.jit(program.evaluate)(state, program.frozen, held_out)
  assert "accuracy" in metrics and not any("teacher" in name for name in metrics)


def test_training_refuses_a_cache_of_another_teacher(taught, signals, tmp_path):
  config = from_cache(taught, signals)
  other = trained_teacher(tmp_path / "other", **{"seed": 5, "teacher.train.total_steps": 1})
  config["teacher"]["checkpoint"] = other["teacher"]["checkpoint"]
  with pytest.raises(
    KdjaxError, match=rf"{signals.name} was made of another teacher .*cache that teacher"
  ):
    build_teacher(config, load_data(config["data"]).whole)


def test_training_refuses_a_cache_of_other_data(taught, signals, tmp_path):
  config = from_cache(taught, signals)
  shifted = config | {"data": config["data"] | {"augment": [{"name": "shift", "pixels": 1}]}}
  with pytest.raises(KdjaxError, match=r"config\.teacher\.cache: .*data\.augment: saved \[\], now"):
    opened(shifted)
  with pytest.raises(KdjaxError, match=r"config\.teacher\.cache: .*holds no cache"):
    opened(from_cache(taught, tmp_path / "nowhere"))
  # Fewer images, in another order, are fine: they are found by what they are.
  fewer = config | {"data": config["data"] | {"validation_fraction": 0.5}}
  assert "signal/ids" in next(opened(fewer).stream)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"kind": "dense"}, "--kind is 'dense'; it must be one of sampled, top_k, hidden"),
    ({"num_samples": 0}, "--num_samples is 0"),
    ({"kind": "top_k", "k": 11}, "--k is 11; the teacher has 10 classes"),
    ({"temperature": 0.0}, "--temperature is 0.0"),
    ({"versions": 2}, r"--versions is 2; .* config\.data\.augment is empty"),
    ({"dtype": "int8"}, "--dtype is 'int8'"),
  ],
)
def test_options_that_do_not_fit(taught, options, message):
  with pytest.raises(KdjaxError, match=message):
    open_session(taught, CacheOptions(**options))


def test_only_a_frozen_teacher_is_cached(taught):
  config = taught | {"teacher": taught["teacher"] | {"kind": "ema"}}
  with pytest.raises(KdjaxError, match=r"config\.teacher\.kind = 'ema' cannot be cached"):
    open_session(config, CacheOptions())
