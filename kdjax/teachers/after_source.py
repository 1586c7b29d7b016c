"""A decoder as teacher of an encoder-decoder: it reads the source and the target as one text."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array

from kdjax.errors import KdjaxError
from kdjax.models.base import Batch
from kdjax.outputs import Outputs
from kdjax.teachers.base import Teacher

READ = ("tokens", "segment_ids", "decoder_tokens", "decoder_segment_ids")


def after_source(teacher: Teacher) -> Teacher:
  """The teacher, told about a target by what it says after the source.

  The source, padded on its left, ends at the same place in every row, so that the row of the
  teacher's outputs which predicts the target's n-th token is the n-th from there: it is handed over
  as the n-th, as an encoder-decoder's are.

  Args:
    teacher: a causal language model with the student's tokens.

  Returns:
    A teacher with the taps logits, hidden and head, for batches of `kdjax.data.text.PairRows`'
    form.

  Raises:
    KdjaxError: a teacher without these taps; when traced, a batch of another form.

  Reference:
    Elfeki et al., "Return of the Encoder: Maximizing Parameter Efficiency for SLMs", 2025,
    https://arxiv.org/abs/2501.16273; microsoft/encoder-decoder-slm,
    src/mu/train_text2text_by_kd.py (`KDDataset`, `KDModel.forward_kd`).
  """
  taps = teacher.taps & {"logits", "hidden", "head"}
  if not taps:
    raise KdjaxError(
      f"config.teacher gives {sorted(teacher.taps)}; of pairs of texts a live causal language model"
      " is wanted"
    )

  def apply(frozen, state, batch, *, taps):
    out = teacher.apply(frozen, state, joined(batch), taps=taps)
    begin = batch["tokens"].shape[1] - 1
    parts = {name: getattr(out, name) for name in ("logits", "hidden")}
    cut = {name: part[:, begin:] for name, part in parts.items() if part is not None}
    return dataclasses.replace(Outputs(head=out.head), **cut)

  return teacher._replace(apply=apply, taps=taps, decode=None)


def joined(batch: Batch) -> dict[str, Array]:
  """Source and target of each row as one text, `tokens`, `segment_ids`, `positions` [B, S + D - 1].

  The target's last token, after which nothing is predicted, is left out, and so is the token that
  starts targets.
  """
  if missing := [name for name in READ if name not in batch]:
    raise KdjaxError(
      f"the batch has no {missing[0]!r}: a teacher of encoder-decoders reads pairs of texts"
      " (config.data.name = 'text_pairs')"
    )
  tokens, segments, target, target_segments = (batch[name] for name in READ)
  size = tokens.shape[1]
  padding = size - (segments > 0).sum(1, dtype=jnp.int32)[:, None]
  place = jnp.arange(size, dtype=jnp.int32)[None]
  source = jnp.take_along_axis(tokens, (place - padding) % size, axis=1)
  where = jnp.concatenate([place >= padding, target_segments[:, 1:] > 0], axis=1)
  text = jnp.where(where, jnp.concatenate([source, target[:, 1:]], axis=1), 0)
  positions = jnp.cumsum(where, axis=1, dtype=jnp.int32) - 1
  return {
    "tokens": text,
    "segment_ids": where.astype(jnp.int32),
    "positions": jnp.where(where, positions, 0),
  }
