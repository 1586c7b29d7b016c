"""A teacher that was asked once: its signals come with the batch."""

from __future__ import annotations

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from kdjax.errors import KdjaxError
from kdjax.losses.signals import Sampled, TopK
from kdjax.outputs import Head, Outputs
from kdjax.signals import Cache, Manifest, Spec
from kdjax.signals.rows import PREFIX
from kdjax.teachers.base import Teacher


def cached(cache: Cache, *, live: Teacher | None = None) -> Teacher:
  """The teacher whose signals a cache holds, for batches of `kdjax.signals.CachedRows`.

  Args:
    cache: a finished one.
    live: the teacher it was made of, which is then asked about batches without signals, as those
      of an evaluation are; training does not run it.

  Returns:
    A teacher with the tap "signal" (`Sampled` or `TopK`), or, for a cache of hidden states, with
    the taps "hidden" and "head"; beside them those of `live`. What it keeps is the head, the
    weights of `live`, and a digest of the manifest: so a run cannot go on with another cache
    unnoticed.

  Raises:
    KdjaxError: a damaged head; and, when traced, a batch without signals.
  """
  spec = cache.manifest.spec
  own = _hidden(cache) if spec.kind == "hidden" else _sparse(spec)
  frozen, axes = {"own": own.frozen, "manifest": _digest(cache.manifest)}, {"own": own.axes}

  def apply(frozen, state, batch, *, taps):
    if live is not None and (not taps <= own.taps or not any(k.startswith(PREFIX) for k in batch)):
      return live.apply(frozen["live"], state, batch, taps=taps)
    return own.apply(frozen["own"], state, batch, taps=taps)

  axes |= {"manifest": PartitionSpec()}
  if live is not None:
    frozen, axes = frozen | {"live": live.frozen}, axes | {"live": live.axes}
  return Teacher(
    apply=apply,
    taps=own.taps | (live.taps if live else frozenset()),
    num_classes=spec.vocab,
    frozen=frozen,
    axes=axes,
    anywhere=live is not None,
  )


def _sparse(spec: Spec) -> Teacher:
  make = Sampled if spec.kind == "sampled" else TopK

  def apply(frozen, state, batch, *, taps):
    ids, values = _read(batch, "ids"), _read(batch, "values")
    signal = make(ids, values, vocab=spec.vocab, temperature=spec.temperature)
    return Outputs(signal=signal if "signal" in taps else None)

  return Teacher(apply=apply, taps=frozenset({"signal"}), num_classes=spec.vocab)


def _hidden(cache: Cache) -> Teacher:
  arrays, softcap = cache.head(), cache.manifest.spec.softcap
  tied = "embedding" in arrays

  def apply(frozen, state, batch, *, taps):
    own = jax.lax.stop_gradient(frozen)
    head = Head(own["embedding" if tied else "kernel"], own.get("bias"), softcap, tied)
    hidden = _read(batch, "hidden") if "hidden" in taps else None
    return Outputs(hidden=hidden, head=head if "head" in taps else None)

  axes = {
    "kernel": PartitionSpec("embed", "vocab"),
    "embedding": PartitionSpec("vocab", "embed"),
    "bias": PartitionSpec("vocab"),
  }
  return Teacher(
    apply=apply,
    taps=frozenset({"hidden", "head"}),
    num_classes=cache.manifest.spec.vocab,
    frozen={name: jnp.asarray(array) for name, array in arrays.items()},
    axes={name: axes[name] for name in arrays},
  )


def _read(batch, name: str):
  if PREFIX + name not in batch:
    raise KdjaxError(
      f"the batch has no {PREFIX + name!r}: its source does not come with the teacher's cached"
      " signals. A cached teacher can only be asked on the data it was cached for"
    )
  return batch[PREFIX + name]


def _digest(manifest: Manifest) -> np.ndarray:
  text = json.dumps(manifest.as_json(), sort_keys=True).encode()
  return np.frombuffer(hashlib.sha256(text).digest(), np.uint8)
