"""ProC-KD: prototypes carry what a teacher sees in parts of images to a task with other labels."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives.base import Objective, ObjectiveResult, ObjectiveVars, Taps, Term, valid
from kdjax.objectives.combinators import combine
from kdjax.objectives.logits import cross_entropy
from kdjax.objectives.networks import init_norm, normalize
from kdjax.objectives.prototypes import aggregate, augment, init_prototypes

POOLS = ("cls", "mean")
_STATES = frozenset({"hidden_states"})


def proc_kd(
  *,
  teacher_layers: Sequence[int] = (-3, -2, -1),
  prototypes: int = 72,
  pool: str = "cls",
  guided_weight: float = 1.0,
  augmented_weight: float = 1.0,
  kl_weight: float = 1.0,
  feature_weight: float = 1.0,
  ce_weight: float = 1.0,
) -> Objective:
  """Labels, and a student whose tokens learn to find what prototypes of the teacher's tokens have.

  The teacher's tokens of some layers go through a bank of learned prototypes and, enriched by it,
  through the student's head: labels so train the bank. The student's own tokens, enriched by the
  same bank, are to say and to be the same. No logits are compared, so that the teacher may have
  been trained for other classes.

  Args:
    teacher_layers: hidden states of the teacher whose tokens are joined.
    prototypes: K, at least 1.
    pool: what the student's head reads of the enriched tokens: "cls", the first; "mean".
    guided_weight: of the labels on the teacher's path.
    augmented_weight: of the labels on the student's enriched path.
    kl_weight: of KL(teacher's path || student's enriched path).
    feature_weight: of the mean squared difference of the enriched tokens, student's to teacher's.
    ce_weight: of the labels on the student's plain logits.

  Returns:
    An objective that learns the bank and a norm before the head. It is dropped after training: the
    student classifies by its plain path.

  Raises:
    KdjaxError: values out of range; when shapes are known, layers that do not exist, or tokens that
      are not as many on both sides.

  Reference:
    Li et al., "Prototype-guided Cross-task Knowledge Distillation for Large-scale Models", 2022,
    https://arxiv.org/abs/2212.13180 (Daniel00008/ProC-KD, models.py, `vlad3` and `aug3`). Its
    training script has the plain labels alone: the other terms follow the paper's text, their
    weights are ours. There the student's last norm serves all paths; no tap reaches it, so that
    the enriched tokens have one of their own.
  """
  if prototypes < 1:
    raise KdjaxError(f"proc_kd: prototypes = {prototypes} must be at least 1")
  if pool not in POOLS:
    raise KdjaxError(f"proc_kd: pool = {pool!r} must be one of {POOLS}")
  if not teacher_layers:
    raise KdjaxError("proc_kd: teacher_layers is empty; give at least one layer of the teacher")

  def sides(student, teacher) -> tuple[Array, Array]:
    own = student.require("hidden_states", "the student")
    told = teacher.require("hidden_states", "the teacher")
    depth = len(told)
    if wrong := [layer for layer in teacher_layers if not -depth <= layer < depth]:
      raise KdjaxError(
        f"proc_kd: teacher_layers holds {wrong[0]}; the teacher has the layers 0 to {depth - 1}"
      )
    told = jnp.concatenate([told[layer] for layer in teacher_layers], axis=-1)
    if own[-1].ndim != 3 or own[-1].shape[:2] != told.shape[:2]:
      raise KdjaxError(
        f"proc_kd: the student's tokens have shape {own[-1].shape} and the teacher's {told.shape};"
        " as many of both are wanted: give both the same image, patch and pool"
      )
    return own[-1], jax.lax.stop_gradient(told)

  def init(rng, student, teacher, batch):
    own, told = jax.eval_shape(sides, student, teacher)
    width = own.shape[-1]
    bank = init_prototypes(rng, told.shape[-1], width, prototypes)
    return ObjectiveVars({"prototypes": bank, "norm": init_norm(width)})

  def apply(variables, student, teacher, batch, *, step, rng):
    params, label = variables.params, batch["label"]
    own, told = sides(student, teacher)
    guided = augment(params["prototypes"], aggregate(params["prototypes"], told))
    enriched = augment(params["prototypes"], own)

    def logits(tokens: Float[Array, "batch time width"]) -> Array:
      pooled = tokens[:, 0] if pool == "cls" else tokens.mean(1)
      pooled = normalize(pooled)
      scale, bias = (jnp.broadcast_to(params["norm"][k], pooled.shape) for k in ("scale", "bias"))
      return student.head.logits(pooled * scale + bias)

    from_teacher, from_student = logits(guided), logits(enriched)
    where = valid(batch, label)
    known = where & (label >= 0)

    def ce(logits: Array) -> Array:
      return losses.cross_entropy(logits, jnp.maximum(label, 0), where=known)

    apart = jnp.square(enriched - jax.lax.stop_gradient(guided)).mean((1, 2))
    kl = losses.forward_kl(from_student, from_teacher, where=where)
    return ObjectiveResult(
      {
        "guided": Term(ce(from_teacher), known, guided_weight),
        "augmented": Term(ce(from_student), known, augmented_weight),
        "kl": Term(kl, where, kl_weight),
        "feature": Term(apart, where, feature_weight),
      }
    )

  through = Objective(apply=apply, taps=Taps(_STATES | {"head"}, _STATES), init=init)
  return combine({"ce": (ce_weight, cross_entropy()), "prototypes": (1.0, through)})
