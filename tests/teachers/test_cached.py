"""The cached teacher: what it gives for batches with signals, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from kdjax import losses, teachers
from kdjax.errors import KdjaxError
from kdjax.losses import signals
from kdjax.outputs import Outputs
from kdjax.signals import CachedRows
from tests.signals.helpers import DATA, LENGTH, VOCAB, Tokens, write


def read(folder, kind, **changes):
  cache = write(folder, Tokens(), kind, **changes)
  source = CachedRows(Tokens(), cache, length=LENGTH, data=DATA, tokenizer="k" * 64)
  return teachers.cached(cache), source.read(np.arange(3))


@pytest.mark.parametrize(
  ("kind", "loss", "options"),
  [
    ("sampled", losses.sparse_cross_entropy, {}),
    ("top_k", losses.sparse_forward_kl, {"tail": "bucket"}),
  ],
)
def test_signals_come_with_the_batch_and_losses_take_them(kind, loss, options, tmp_path):
  teacher, batch = read(tmp_path, kind, temperature=2.0)
  assert teacher.taps == {"signal"} and teacher.num_classes == VOCAB

  @jax.jit
  def value(batch):
    out = teacher.apply(teacher.frozen, (), batch, taps=frozenset({"signal"}))
    student = jnp.zeros((3, LENGTH, VOCAB))
    where = jnp.arange(LENGTH)[None] < jnp.array([[LENGTH], [10], [10]])
    return out.signal, loss(student, out.signal, temperature=2.0, where=where, **options)

  signal, values = value(batch)
  assert type(signal) is {"sampled": signals.Sampled, "top_k": signals.TopK}[kind]
  assert (signal.vocab, signal.temperature) == (VOCAB, 2.0)
  np.testing.assert_array_equal(signal.ids, batch["signal/ids"])
  if kind == "sampled":  # an even student is log V away from whatever was drawn
    np.testing.assert_allclose(values[0], np.log(VOCAB), rtol=1e-5)
  assert np.isfinite(values).all() and (values[:, 10:][1:] == 0).all()


def test_hidden_states_come_with_the_head(tmp_path):
  teacher, batch = read(tmp_path, "hidden", softcap=30.0)
  assert teacher.taps == {"hidden", "head"}
  out = teacher.apply(teacher.frozen, (), batch, taps=frozenset({"hidden", "head"}))
  assert out.hidden.dtype == jnp.bfloat16 and out.hidden.shape == (3, LENGTH, 4)
  logits = out.head.logits(jnp.asarray(out.hidden))
  kernel = np.asarray(teacher.frozen["own"]["kernel"], np.float32)
  wanted = 30 * np.tanh(out.hidden.astype(np.float32) @ kernel / 30)
  np.testing.assert_allclose(logits, wanted, atol=0.05)  # the product is of bfloat16


def test_another_cache_is_another_teacher(tmp_path):
  first, _ = read(tmp_path / "a", "sampled")
  again, _ = read(tmp_path / "b", "sampled")
  other, _ = read(tmp_path / "c", "sampled", seed=1)
  same = np.array_equal(first.frozen["manifest"], again.frozen["manifest"])
  assert same and not np.array_equal(first.frozen["manifest"], other.frozen["manifest"])
  assert jax.tree.structure(first.axes) == jax.tree.structure(first.frozen)


def test_a_batch_without_signals_is_told(tmp_path):
  teacher, _ = read(tmp_path, "sampled")
  with pytest.raises(KdjaxError, match="the batch has no 'signal/ids'"):
    teacher.apply(teacher.frozen, (), {"image": jnp.zeros(1)}, taps=frozenset({"signal"}))


def test_a_live_teacher_answers_for_batches_without_signals(tmp_path):
  def apply(frozen, state, batch, *, taps):
    return Outputs(logits=frozen["w"] * batch["image"])

  live = teachers.Teacher(
    apply, frozenset({"logits"}), VOCAB, frozen={"w": jnp.float32(2)}, axes={"w": PartitionSpec()}
  )
  cache = write(tmp_path, Tokens())
  teacher = teachers.cached(cache, live=live)
  assert teacher.taps == {"signal", "logits"} and teacher.anywhere
  assert not teachers.cached(cache).anywhere
  assert jax.tree.structure(teacher.axes) == jax.tree.structure(teacher.frozen)
  held_out = {"image": jnp.ones(VOCAB)}
  out = teacher.apply(teacher.frozen, (), held_out, taps=frozenset({"logits"}))
  np.testing.assert_array_equal(out.logits, 2)
  source = CachedRows(Tokens(), cache, length=LENGTH, data=DATA, tokenizer="k" * 64)
  batch = source.read(np.arange(2))
  out = teacher.apply(teacher.frozen, (), batch, taps=frozenset({"signal"}))
  assert isinstance(out.signal, signals.Sampled) and out.logits is None
