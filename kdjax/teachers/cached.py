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
from kdjax.signals import Cache, Manifest
from kdjax.signals.rows import PREFIX
from kdjax.teachers.base import Teacher


def cached(cache: Cache) -> Teacher:
  """The teacher whose signals a cache holds, for batches of `kdjax.signals.CachedRows`.

  Args:
    cache: a finished one.

  Returns:
    A teacher with the tap "signal" (`Sampled` or `TopK`), or, for a cache of hidden states, with
    the taps "hidden" and "head". What it keeps is the head, and a digest of the manifest: so a run
    cannot go on with another cache unnoticed.

  Raises:
    KdjaxError: a damaged head; and, when traced, a batch without signals.
  """
  manifest = cache.manifest
  digest = {"manifest": _digest(manifest)}
  if manifest.spec.kind == "hidden":
    return _hidden(manifest, digest, cache.head())
  spec = manifest.spec
  make = Sampled if spec.kind == "sampled" else TopK

  def apply(frozen, state, batch, *, taps):
    ids, values = _read(batch, "ids"), _read(batch, "values")
    signal = make(ids, values, vocab=spec.vocab, temperature=spec.temperature)
    return Outputs(signal=signal if "signal" in taps else None)

  return Teacher(
    apply=apply,
    taps=frozenset({"signal"}),
    num_classes=spec.vocab,
    frozen=digest,
    axes={"manifest": PartitionSpec()},
  )


def _hidden(manifest: Manifest, digest, head) -> Teacher:
  softcap, tied = manifest.spec.softcap, "embedding" in head

  def apply(frozen, state, batch, *, taps):
    own = jax.lax.stop_gradient(frozen["head"])
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
    num_classes=manifest.spec.vocab,
    frozen=digest | {"head": {name: jnp.asarray(value) for name, value in head.items()}},
    axes={"manifest": PartitionSpec(), "head": {name: axes[name] for name in head}},
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
