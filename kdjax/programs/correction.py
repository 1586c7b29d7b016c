"""Where a text that the student wrote goes wrong by the teacher's word, and what stays of it.

Reference:
  Liu et al., "Multi-Granularity Semantic Revision for Large Language Model Distillation", 2024,
  https://arxiv.org/abs/2407.10068, "sequence correction and re-generation" (SCRG).
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kdjax import losses
from kdjax.generation import Generation
from kdjax.models.base import Batch
from kdjax.objectives.base import valid
from kdjax.objectives.chunks import map_chunks
from kdjax.outputs import Outputs

CHUNK = 32  # positions of the time axis whose logits exist at a time


class Fault(NamedTuple):
  """The worst token of each row.

  Attributes:
    place: [B], the position whose label it is; 0 where there is none.
    token: [B], what the teacher thinks likeliest there.
    found: [B], False where every token is the teacher's choice.
  """

  place: Int[Array, "batch"]
  token: Int[Array, "batch"]
  found: Bool[Array, "batch"]


def faults(student: Outputs, teacher: Outputs, rows: Batch) -> Fault:
  """Among the labels that are not the teacher's likeliest token, where the two sides differ most.

  Published are the set of disagreements and that a divergence picks one of them; that it is
  KL(teacher || student) is reconstructed.

  Args:
    student: `hidden` and `head` on the rows.
    teacher: the same of the teacher, over the same vocabulary.
    rows: `label` [B, T] and `mask`: prompts and padding, which have no label, are never wrong.
  """
  label = rows["label"]
  where = valid(rows, label) & (label >= 0)

  def chunk(part):
    hidden, told, label, where = part
    q, p = student.head.logits(hidden), teacher.head.logits(told)
    likeliest = jnp.argmax(p, -1).astype(jnp.int32)
    wrong = where & (label != likeliest)
    return jnp.where(wrong, losses.forward_kl(q, p, where=wrong), -jnp.inf), likeliest

  parts = student.hidden, teacher.hidden, label, where
  divergence, likeliest = map_chunks(chunk, parts, label.shape, CHUNK)
  place = jnp.argmax(divergence, axis=1).astype(jnp.int32)
  token = jnp.take_along_axis(likeliest, place[:, None], axis=1)[:, 0]
  return Fault(place, token, (divergence > -jnp.inf).any(1))


def corrected(
  generation: Generation, fault: Fault, begin: Int[Array, "batch"]
) -> tuple[Int[Array, "batch new"], Int[Array, "batch"]]:
  """What of a text stays: all before the fault, and the teacher's token in its place.

  Args:
    generation: the text, N tokens.
    fault: in rows that hold a prompt and the text after it.
    begin: where each row's text begins.

  Returns:
    Tokens [B, N] and how many of them stay [B], as `continued` takes them: all N where there is no
    fault.
  """
  count = generation.tokens.shape[1]
  nth = (fault.place + 1 - begin)[:, None]
  here = (jnp.arange(count)[None] == nth) & fault.found[:, None]
  tokens = jnp.where(here, fault.token[:, None], generation.tokens)
  return tokens, jnp.where(fault.found, nth[:, 0] + 1, count)


def joined(
  old: Generation, new: Generation, count: Int[Array, "batch"], changed: Bool[Array, "batch"]
) -> Generation:
  """The new text with what was known of the tokens that stay.

  Args:
    old: the text before.
    new: the text whose first `count` tokens were given.
    count: [B], with the token that was replaced.
    changed: [B], whether one was: it was not drawn, and its `sample_log_probs` stays 0.
  """
  drawn_before = jnp.where(changed, count - 1, count)[:, None]
  stays = jnp.arange(old.tokens.shape[1])[None] < drawn_before
  spoken: Float[Array, "batch new"] = jnp.where(stays, old.sample_log_probs, new.sample_log_probs)
  return new._replace(sample_log_probs=spoken)
