"""Self-attention relations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kdjax.errors import KdjaxError
from kdjax.losses import _common

__all__ = ["attention_relation"]


def attention_relation(
  student_x: Float[Array, "batch time student_head student_width"],
  teacher_x: Float[Array, "batch time teacher_head teacher_width"],
  student_y: Float[Array, "batch time student_head student_width"] | None = None,
  teacher_y: Float[Array, "batch time teacher_head teacher_width"] | None = None,
  *,
  relation_heads: int | None = None,
  causal: bool = False,
  mask: Bool[Array, "batch time"] | None = None,
  segments: Int[Array, "batch time"] | None = None,
) -> Float[Array, "batch"]:
  r"""KL(teacher || student) of softmax(x yᵀ / sqrt(width)), averaged over heads and positions.

  With x the queries and y the keys this is MiniLM's attention transfer; with x the values and no
  y, its value relation. MiniLMv2 joins all heads and splits them again into `relation_heads`, for
  queries, keys and values each with itself; then the two models may differ in heads as well as in
  width.

  Args:
    student_x: [B, T, H, K], queries, keys or values of one layer, any float dtype.
    teacher_x: [B, T, H', K']; no gradient flows here.
    student_y: [B, T, H, K]; None means student_x.
    teacher_y: [B, T, H', K']; None means teacher_x. Give both or neither; no gradient flows here.
    relation_heads: static number of heads to compare, a divisor of H K and H' K'. None keeps the
      models' own heads, which must then be as many.
    causal: lets each position see itself and earlier ones only, as a decoder does. Static.
    mask: bool [B, T], True for tokens; the others are neither keys nor queries. None means all.
    segments: integers [B, T], 0 for padding, which counts as under `mask`; a position sees those of
      its own segment alone, as when several texts are packed into a row. None means one.

  Returns:
    float32[B], in nats for each position and head: the sum over a sequence is divided by its own
    number of tokens, so padding changes nothing. A sequence without tokens returns 0.

  Raises:
    KdjaxError: if batch, time or heads do not fit.

  Example:
    >>> student, teacher = jnp.ones((1, 3, 2, 4)), jnp.ones((1, 3, 4, 6))  # 8 and 24 wide
    >>> print(attention_relation(student, teacher, relation_heads=8))
    [0.]

  Reference:
    Wang et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of
    Pre-Trained Transformers", NeurIPS 2020, https://arxiv.org/abs/2002.10957;
    Wang et al., "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing
    Pretrained Transformers", Findings of ACL 2021, https://arxiv.org/abs/2012.15828
  """
  name = "attention_relation"
  if (student_y is None) != (teacher_y is None):
    raise KdjaxError(f"{name}: only one of student_y and teacher_y was given; give both or neither")
  if student_y is None:
    student_y, teacher_y = student_x, teacher_x
  _common.check_same_shape(name, "student_x", student_x, "student_y", student_y)
  _common.check_same_shape(name, "teacher_x", teacher_x, "teacher_y", teacher_y)
  if student_x.ndim != 4 or teacher_x.ndim != 4 or student_x.shape[:2] != teacher_x.shape[:2]:
    raise KdjaxError(
      f"{name}: student_x has shape {student_x.shape} and teacher_x has shape {teacher_x.shape}; "
      "both must be [batch, time, head, head width] with the same batch and time"
    )
  if relation_heads is None and student_x.shape[2] != teacher_x.shape[2]:
    raise KdjaxError(
      f"{name}: the student has {student_x.shape[2]} heads and the teacher {teacher_x.shape[2]}; "
      "pass relation_heads, a divisor of both widths"
    )
  tokens = _common.check_where(name, mask, student_x.shape[:2], "mask")
  if tokens is None:
    tokens = jnp.ones(student_x.shape[:2], jnp.bool_)
  if segments is not None:
    if segments.shape != student_x.shape[:2]:
      raise KdjaxError(
        f"{name}: segments has shape {segments.shape}; [batch, time] = {student_x.shape[:2]} wanted"
      )
    tokens = tokens & (segments > 0)

  heads = relation_heads or student_x.shape[2]
  teacher_x, teacher_y = jax.lax.stop_gradient((teacher_x, teacher_y))
  time = student_x.shape[1]
  seen = tokens[:, None, None, :] & tokens[:, None, :, None]
  if segments is not None:
    seen = seen & (segments[:, None, :, None] == segments[:, None, None, :])
  if causal:
    lower = jnp.tril(jnp.ones((time, time), jnp.bool_))
    seen = seen & jnp.broadcast_to(lower, seen.shape)
  seen = jnp.broadcast_to(seen, (student_x.shape[0], heads, time, time))

  log_q = _relation("student_x", student_x, student_y, heads, tokens, seen)
  log_p = _relation("teacher_x", teacher_x, teacher_y, heads, tokens, seen)
  queries = jnp.broadcast_to(tokens[:, None, :], seen.shape[:3])
  total = jnp.sum(_common.masked(_common.kl(log_p, log_q), queries), axis=(1, 2))
  count = jnp.sum(tokens, axis=1).astype(jnp.float32)
  return total / (heads * jnp.maximum(count, 1.0))


def _relation(name: str, x: Array, y: Array, heads: int, tokens: Array, seen: Array) -> Array:
  """Log of the relation's probabilities, [B, R, T, T]; -inf for keys that are not seen."""
  width = x.shape[2] * x.shape[3]
  if width % heads:
    raise KdjaxError(
      f"attention_relation: {name} of shape {x.shape} has {width} features, which relation_heads="
      f"{heads} does not divide; choose a divisor"
    )

  def split(z: Array) -> Array:
    z = _common.clean(z.reshape(*z.shape[:2], width), tokens)
    return z.reshape(*z.shape[:2], heads, width // heads)

  scores = jnp.einsum("bqrw,bkrw->brqk", split(x), split(y)) / (width // heads) ** 0.5
  # A padded query sees nothing; its row is kept uniform, hence finite, and is not counted.
  empty = ~jnp.any(seen, axis=-1, keepdims=True)
  return jax.nn.log_softmax(jnp.where(seen | empty, jnp.where(seen, scores, 0.0), -jnp.inf))
