"""Compares a cache with the teacher that it was made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.errors import KdjaxError
from kdjax.outputs import Head
from kdjax.signals import Cache, CachedRows, codec
from kdjax.signals.manifest import differences
from kdjax.signals.rows import PREFIX
from kdjax.train.cache import (
  encode,
  local_rows,
  over_logits,
  signals_of,
  taps_of,
)
from kdjax.train.cache_session import Session

ROWS = 32


def verify_cache(session: Session, folder: Path, *, rows: int = ROWS) -> dict[str, float]:
  """Reads every file of a cache, and asks the teacher again for a sample of its rows.

  Args:
    session: the one it was made in, or one just like it.
    folder: of the cache.
    rows: how many, spread evenly over the data.

  Returns:
    positions compared, and of them, in nats where nothing else is said,
    sampled: equal_draws (share of positions whose draws come out again), entropy_error (mean of
    -log p over the stored draws, less the teacher's entropy: 0 on average) and its standard_error;
    top_k: max_error of log-probabilities, forward_kl from the teacher's whole distribution to the
    record's with its tail spread evenly; hidden: max_error, forward_kl.

  Raises:
    KdjaxError: a damaged cache, or one of another teacher or other data.
  """
  cache = Cache(folder)
  saved, wanted = cache.manifest.spec.as_json(), session.spec.as_json()
  if lines := differences(saved, wanted):
    raise KdjaxError(f"{folder} was made otherwise: {'; '.join(lines)}")
  cache.check_shards()
  source = session.source
  cached = CachedRows(
    source.rows, cache, length=source.length, data=source.data, tokenizer=source.tokenizer
  )
  checked = session._replace(source=source._replace(rows=cached))
  head = None
  if session.spec.kind == "hidden":
    arrays = cache.head()
    tied = "embedding" in arrays
    weight = jnp.asarray(arrays["embedding" if tied else "kernel"])
    bias = jnp.asarray(arrays["bias"]) if "bias" in arrays else None
    head = Head(weight, bias, session.spec.softcap, tied)
  again = jax.jit(signals_of(session), out_shardings=session.sharding)
  compare = jax.jit(_comparison(session), out_shardings=session.sharding)
  chosen = np.unique(np.linspace(0, len(source.rows) - 1, rows).astype(np.int64))
  own = session.batch_size // session.share[1]
  total: dict[str, list[np.ndarray]] = {}
  for first in range(0, len(chosen), own):
    part = [int(row) for row in chosen[first : first + own]]
    batch, words = checked.place(part)
    found = {k: local_rows(v) for k, v in compare(session.frozen, head, batch).items()}
    made = {k: local_rows(v) for k, v in again(session.frozen, batch, words).items()}
    stored = {k: local_rows(v) for k, v in batch.items() if k.startswith(PREFIX)}
    for place, row in enumerate(part):
      for _, start, stop in source.rows.spans(row):
        at = place if source.length is None else (place, slice(start, stop))
        values = {name: np.atleast_1d(array[at]) for name, array in found.items()}
        if session.spec.kind == "sampled":
          values["equal"] = _equal_draws(session, stored, made, at, cache.manifest.slots)
        for name, array in values.items():
          total.setdefault(name, []).append(array)
  return _summary({name: np.concatenate(arrays) for name, arrays in total.items()})


def _comparison(session):
  """`(frozen, head, batch) -> arrays [B, T]`: errors of the stored signals of a batch."""
  spec, teacher = session.spec, session.teacher
  temperature = spec.temperature or 1.0

  def entropy(log_p):
    return -jnp.sum(jnp.exp(log_p) * jnp.where(log_p > -jnp.inf, log_p, 0.0), axis=-1)

  def sampled(logits, ids, weights):
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    own = jnp.take_along_axis(log_p, ids, axis=-1)
    cross = -jnp.sum(jnp.where(weights > 0, weights * own, 0.0), axis=-1)
    return {"entropy_error": cross - entropy(log_p)}

  def top_k(logits, ids, log_probs):
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    own, used = jnp.take_along_axis(log_p, ids, axis=-1), log_probs > -jnp.inf
    error = jnp.where(used, jnp.abs(own - log_probs), 0.0)
    # The record says nothing of single classes in the tail: they share it evenly.
    left = 1 - jnp.sum(jnp.exp(log_probs), axis=-1)
    others = jnp.maximum(spec.vocab - used.sum(axis=-1), 1)
    spread = jnp.log(jnp.maximum(left, 1e-7) / others)
    inside = jnp.sum(jnp.where(used, jnp.exp(own) * (log_probs - spread[..., None]), 0.0), axis=-1)
    return {"max_error": error.max(axis=-1), "forward_kl": -entropy(log_p) - inside - spread}

  def hidden(logits, stored_logits):
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(stored_logits)
    return {"forward_kl": jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)}

  def compare(frozen, head, batch):
    outputs = teacher.apply(frozen, (), batch, taps=taps_of(teacher, spec.kind))
    if spec.kind == "hidden":
      own = batch[PREFIX + "hidden"].astype(outputs.hidden.dtype)
      out = over_logits(lambda x, y: hidden(x, head.logits(y)), outputs, own)
      return out | {"max_error": jnp.abs(outputs.hidden - own).max(axis=-1)}
    fn = {"sampled": sampled, "top_k": top_k}[spec.kind]
    return over_logits(fn, outputs, batch[PREFIX + "ids"], batch[PREFIX + "values"])

  return compare


def _equal_draws(session, stored, made, at: Any, slots: int) -> np.ndarray:
  spec = session.spec
  single = session.source.length is None
  ids = made["ids"][at][None] if single else made["ids"][at]
  payload, _ = encode(spec, {"ids": ids})
  wanted = codec.decode_sampled(payload, vocab=spec.vocab, draws=spec.support, slots=spec.support)
  equal = np.ones(len(ids), bool)
  for name, array in zip(("ids", "values"), wanted, strict=True):
    own = stored[PREFIX + name][at][None] if single else stored[PREFIX + name][at]
    equal &= (array[:, :slots] == own).all(axis=1) & (array[:, slots:] == 0).all(axis=1)
  return equal


def _summary(values: dict[str, np.ndarray]) -> dict[str, float]:
  out = {"positions": len(next(iter(values.values())))}
  if "equal" in values:
    out["equal_draws"] = float(values["equal"].mean())
    errors = values["entropy_error"].astype(np.float64)
    out["entropy_error"] = float(errors.mean())
    out["standard_error"] = float(errors.std() / np.sqrt(len(errors)))
    return out
  out["max_error"] = float(values["max_error"].max())
  out["forward_kl"] = float(values["forward_kl"].astype(np.float64).mean())
  return out
