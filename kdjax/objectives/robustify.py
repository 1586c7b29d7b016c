"""Robustify: a small robust teacher tunes a part of a large model, which keeps what it could do."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives.base import Objective, ObjectiveResult, Taps, Term, valid

_TAPS = Taps(frozenset({"head_logits"}), frozenset({"logits"}))


def robustify(*, temperature: float = 4.0, uncertain: bool = True) -> Objective:
  """Distillation into the robust and the combined head of a student with three heads.

  On damaged views both learn (1 - u) T^2 KL(teacher || head) + u CE(labels), where u in [0, 1] says
  how uncertain the teacher is. On clean views the combined head learns labels and what the frozen
  clean head says. Nothing trains the clean head.

  Args:
    temperature: T > 0.
    uncertain: whether u is the teacher's entropy over log V, so that a teacher that does not know
      gives way to the labels; else u is 1/2.

  Returns:
    An objective for the model `robustified`, and batches with two views of each image: a clean
    first and a damaged second one (`two_views` in `config.data.augment`).

  Raises:
    KdjaxError: a temperature out of range; when traced, a batch of one view.

  Reference:
    Jain et al., "Efficiently Robustify Pre-Trained Models", ICCV 2023,
    https://arxiv.org/abs/2309.07499. No code is public: weights of 1 and the temperature are ours,
    and u is the entropy of one forward pass, or of an ensemble's mean, in place of that of passes
    with dropout.
  """
  if not temperature > 0:
    raise KdjaxError(f"robustify: temperature = {temperature} must be positive")

  def apply(variables, student, teacher, batch, *, step, rng):
    if "view" not in batch:
      raise KdjaxError(
        "robustify reads a clean and a damaged view of each image; set config.data.augment ="
        " ({'name': 'two_views', 'strong': ({'name': 'corrupt'},)},)"
      )
    heads, label = student.require("head_logits", "the student"), batch["label"]
    told = teacher.require("logits", "the teacher")
    counted = valid(batch, batch["view"])
    clean, damaged = counted & (batch["view"] == 0), counted & (batch["view"] == 1)
    doubt = uncertainty(told) if uncertain else jnp.full(label.shape, 0.5)

    def kd(head: Array, told: Array, where: Array) -> Array:
      return losses.hinton_kd(head, told, temperature=temperature, where=where)

    def ce(head: Array, where: Array) -> Array:
      return losses.cross_entropy(head, jnp.maximum(label, 0), where=where)

    terms = {}
    known = label >= 0
    for name in ("robust", "combined"):
      head = heads[name]
      terms[f"{name}/kd"] = Term((1 - doubt) * kd(head, told, damaged), damaged)
      terms[f"{name}/ce"] = Term(doubt * ce(head, damaged & known), damaged & known)
    head = heads["combined"]
    terms["clean/kd"] = Term(kd(head, heads["clean"], clean), clean)
    terms["clean/ce"] = Term(ce(head, clean & known), clean & known)
    pair = jnp.where(damaged, doubt, 0).sum(), damaged.sum(dtype=jnp.float32)
    return ObjectiveResult(terms, {"uncertainty": pair})

  return Objective(apply=apply, taps=_TAPS)


def uncertainty(logits: Float[Array, "*batch classes"]) -> Float[Array, "*batch"]:
  """Entropy over that of the uniform distribution: 0 for a sure answer, 1 for none at all.

  No gradient flows into the logits.
  """
  log_probs = jax.nn.log_softmax(jax.lax.stop_gradient(logits).astype(jnp.float32))
  entropy = -jnp.where(log_probs > -jnp.inf, jnp.exp(log_probs) * log_probs, 0.0).sum(-1)
  return entropy / math.log(logits.shape[-1])
