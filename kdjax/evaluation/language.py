"""Metrics of next-token prediction, as (sum, count) pairs."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kdjax.evaluation.classification import Pair, classification
from kdjax.losses.entropy import cross_entropy


def next_token(
  logits: Float[Array, "*batch vocab"],
  labels: Int[Array, "*batch"],
  where: Bool[Array, "*batch"],
  domain: Int[Array, "*batch"] | None = None,
  domains: Sequence[str] = (),
) -> dict[str, Pair]:
  """How well each next token is predicted.

  Args:
    logits: [..., V].
    labels: the next tokens, [...]; negative ones are not counted.
    where: [...], True = counted.
    domain: index of each position's domain, [...].
    domains: their names.

  Returns:
    Name to (sum, count): what `classification` gives (`nll` in nats per token), and `perplexity`,
    with `perplexity/<domain>` for each, which `finalize` turns into exp(mean nll).
  """
  metrics = classification(logits, labels, where)
  metrics["perplexity"] = metrics["nll"]
  if domain is not None:
    where = where & (labels >= 0)
    nll = cross_entropy(logits, jnp.where(where, labels, 0), where=where)
    for index, name in enumerate(domains):
      own = where & (domain == jnp.int32(index))
      metrics[f"perplexity/{name}"] = (jnp.where(own, nll, 0.0).sum(), own.sum(dtype=jnp.float32))
  return metrics
