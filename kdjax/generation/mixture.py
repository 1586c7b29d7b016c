"""Text drawn from two models at once: every next token from the mixture of their distributions."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kdjax.generation.generate import next_logits
from kdjax.models.base import Decoding
from kdjax.outputs import Outputs


def mixture(student: Decoding, teacher: Decoding, teacher_share: float) -> Decoding:
  """A decoding whose next token has the probabilities (1 - a) q + a p.

  Args:
    student: says q.
    teacher: says p, over the same tokens.
    teacher_share: a, in (0, 1).

  Returns:
    A decoding with `logits` [B, 1, V], the logarithms of these probabilities in float32.

  Reference:
    Gu et al., "MiniLLM: Knowledge Distillation of Large Language Models", ICLR 2024, section 2.2
    (teacher-mixed sampling), https://arxiv.org/abs/2306.08543
  """
  shares = jnp.log1p(-teacher_share), jnp.log(teacher_share)

  def mixed(own: Outputs, told: Outputs) -> Outputs:
    parts = [
      share + jax.nn.log_softmax(next_logits(out).astype(jnp.float32))
      for share, out in zip(shares, (own, told), strict=True)
    ]
    return Outputs(logits=jnp.logaddexp(*parts)[:, None])

  def prefill(prompts, lengths, new):
    own, begin, cache = student.prefill(prompts, lengths, new)
    told, _, told_cache = teacher.prefill(prompts, lengths, new)
    return mixed(own, told), begin, (cache, told_cache)

  def extend(tokens, positions, caches):
    own, cache = student.extend(tokens, positions, caches[0])
    told, told_cache = teacher.extend(tokens, positions, caches[1])
    return mixed(own, told), (cache, told_cache)

  return Decoding(prefill, extend)
