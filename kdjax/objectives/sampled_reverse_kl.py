"""Reverse KL from the tokens that the student drew, as a policy gradient."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives.base import Objective, ObjectiveResult, masked_sum, valid
from kdjax.objectives.tokens import label_log_probs, logit_taps, map_logits


def sampled_reverse_kl(*, weight: float = 1.0, chunk_size: int | None = None) -> Objective:
  """Of each drawn token y: A = -c (log q_old(y) - log p(y)), loss -A q(y) / q_old(y).

  In expectation over y its gradient is that of c KL(q || p) at each position, with the text before
  it held fixed. It needs what the teacher says of the drawn tokens, and nothing else.

  Args:
    weight: c, positive.
    chunk_size: see `token_level`.

  Returns:
    An objective for rows with `sample_log_probs`, which the program `on_policy` writes; `fraction`
    is to be 1. Its metrics are the estimates k1 and k3 of the divergence, in nats a token.

  Raises:
    KdjaxError: a weight that is not positive; when traced, rows without `sample_log_probs`.

  Reference:
    Lu and Thinking Machines Lab, "On-Policy Distillation", 2025; tinker-cookbook,
    `incorporate_kl_penalty` (tinker_cookbook/distillation/train_on_policy.py). Schulman,
    "Approximating KL Divergence", 2020, for k1 and k3.
  """
  if weight <= 0:
    raise KdjaxError(f"config.objective.weight = {weight} must be positive")

  def apply(variables, student, teacher, batch, *, step, rng):
    label = batch["label"]
    where = valid(batch, label) & (label >= 0)
    drawn = sample_log_probs(batch, "sampled_reverse_kl")
    told = label_log_probs(teacher, label, where, chunk_size=chunk_size, side="the teacher")
    advantages = -weight * (drawn - told)

    def loss(logits, label, drawn, advantages, *, where):
      own = -losses.cross_entropy(logits, label, where=where)
      return losses.policy_gradient(own, drawn, advantages)

    term, _ = map_logits(
      loss, student, None, batch, chunk_size=chunk_size, labels=True, beside=(drawn, advantages)
    )
    gap = told - drawn
    estimates = {"k1": -gap, "k3": jnp.expm1(gap) - gap}
    return ObjectiveResult(
      {"": term}, {f"reverse_kl/{name}": masked_sum(x, where) for name, x in estimates.items()}
    )

  return Objective(apply=apply, taps=logit_taps(chunk_size))


def sample_log_probs(batch, who: str) -> Array:
  """The batch's `sample_log_probs`; raises KdjaxError where nobody wrote any."""
  if "sample_log_probs" not in batch:
    raise KdjaxError(
      f"{who} learns from tokens that the student drew, and these rows are data; set"
      " config.program.name = 'on_policy' with fraction = 1"
    )
  return batch["sample_log_probs"]
