"""MiniLLM: reverse KL of whole texts, as a policy gradient with an exact single-step part."""

from __future__ import annotations

import jax.numpy as jnp

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives.base import Objective, ObjectiveResult, masked_sum, valid
from kdjax.objectives.sampled_reverse_kl import sample_log_probs
from kdjax.objectives.tokens import label_log_probs, logit_taps, map_logits


def minillm(
  *,
  discount: float = 0.95,
  reward_scale: float = 0.5,
  reward_clip: float = 100.0,
  clip: float = 0.2,
  single_step: bool = True,
  data_weight: float = 1.0,
  kd_share: float = 0.5,
  chunk_size: int | None = None,
) -> Objective:
  """MiniLLM's loss on written rows, and beside it a supervised one on rows of data.

  Of each drawn token y_t: the reward r_t = (log p(y_t) - log q(y_t)) / `reward_scale`, clipped; the
  return R_t, discounted and over the tokens left; the advantage A_t, whitened; and with
  w_t = q(y_t) / drawn-from(y_t) the clipped loss of PPO. `single_step` adds KL(q || p) at each
  position, exactly. On rows of data: `kd_share` KL(p || q) + (1 - `kd_share`) CE.

  Args:
    discount: gamma, in [0, 1].
    reward_scale: positive.
    reward_clip: positive.
    clip: of the ratio, in (0, 1).
    single_step: whether the exact part is added.
    data_weight: of the supervised part; 0 leaves it out.
    kd_share: in [0, 1].
    chunk_size: see `token_level`.

  Returns:
    An objective for the program `on_policy` with `fraction=1`; with `keep_data=True` unless
    `data_weight` is 0.

  Raises:
    KdjaxError: an option out of its range; when traced, rows that are not the program's.

  Reference:
    Gu et al., "MiniLLM: Knowledge Distillation of Large Language Models", ICLR 2024,
    https://arxiv.org/abs/2306.08543, algorithm 1; microsoft/LMOps, minillm/minillm/losses.py and
    sampler.py. Theirs takes four passes over the same texts and lets padding count when it whitens;
    here every text is learnt from once, so that q_old is q.
  """
  for name, value, fits in (
    ("discount", discount, 0 <= discount <= 1),
    ("reward_scale", reward_scale, reward_scale > 0),
    ("reward_clip", reward_clip, reward_clip > 0),
    ("clip", clip, 0 < clip < 1),
    ("data_weight", data_weight, data_weight >= 0),
    ("kd_share", kd_share, 0 <= kd_share <= 1),
  ):
    if not fits:
      raise KdjaxError(f"config.objective.{name} = {value} is out of its range; see minillm")

  def apply(variables, student, teacher, batch, *, step, rng):
    drawn = sample_log_probs(batch, "minillm")
    label = batch["label"]
    learnt = valid(batch, label) & (label >= 0)
    written = learnt if data_weight == 0 else learnt & _written(batch)[:, None]

    old, told = (
      label_log_probs(outputs, label, written, chunk_size=chunk_size, side=side)
      for outputs, side in ((student, "the student"), (teacher, "the teacher"))
    )
    rewards = jnp.clip((told - old) / reward_scale, -reward_clip, reward_clip)
    returns = losses.remaining_return(rewards, written, discount=discount)
    advantages = losses.whiten(returns, written)
    weights = jnp.exp(jnp.where(written, old - drawn, 0.0))

    def loss(logits, teacher_logits, label, old, advantages, weights, *, where):
      own = -losses.cross_entropy(logits, label, where=where)
      policy = losses.clipped_policy_gradient(own, old, advantages, weights, clip=clip)
      if not single_step:
        return policy, {"policy": policy}
      exact = losses.reverse_kl(logits, teacher_logits, where=where)
      return policy + exact, {"policy": policy, "single_step": exact}

    def supervised(logits, teacher_logits, label, *, where):
      kd = losses.forward_kl(logits, teacher_logits, where=where)
      ce = losses.cross_entropy(logits, label, where=where)
      return kd_share * kd + (1 - kd_share) * ce, {"kd": kd, "ce": ce}

    def on(function, where, *beside):
      rows = {**batch, "mask": where}
      return map_logits(
        function, student, teacher, rows, chunk_size=chunk_size, labels=True, beside=beside
      )

    terms, parts = {}, {}
    terms["text"], parts = on(loss, written, old, advantages, weights)
    if data_weight:
      data, more = on(supervised, learnt & ~written)
      terms["data"], parts = data._replace(weight=data_weight), parts | more
    metrics = {f"loss/{name}": masked_sum(*part[:2]) for name, part in parts.items()}
    log_ratio = old - told
    metrics["reverse_kl/k1"] = masked_sum(log_ratio, written)
    return ObjectiveResult(terms, metrics)

  return Objective(apply=apply, taps=logit_taps(chunk_size))


def _written(batch):
  if "written" not in batch:
    raise KdjaxError(
      "minillm: these rows are either all written or all data; set config.program.keep_data ="
      " True, or config.objective.data_weight = 0"
    )
  return batch["written"]
