"""DriveAdapter: a planner's features and actions under true input, for a student that sees."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import optax

from kdjax import losses
from kdjax.errors import KdjaxError
from kdjax.objectives.base import Objective, ObjectiveResult, Taps, Term, valid
from kdjax.simulation import beta_action

BRAKE = (0.8, 5.5)  # of Beta: what a rule's braking is as a label


def drive_adapter(
  *,
  feature_weights: Sequence[float] = (50.0, 20.0, 10.0, 5.0, 2.0, 1.0),
  state_weight: float = 2.5,
  action_weight: float = 2.0,
  perception_weight: float = 5.0,
  mask_rule: bool = True,
) -> Objective:
  """Features and state like the teacher's, but where a rule overruled it; and the right actions.

  Where `batch["rule"]` says that a rule braked and the teacher did not, features are no target and
  the label of the acceleration is Beta(0.8, 5.5), a full brake. Turns weigh (1 + |steering|)^3 / 2.

  Args:
    feature_weights: of the smooth L1 distance after each convolution; () leaves features out, as
      cloning of behaviour does.
    state_weight: of that of the state where map and speed are joined.
    action_weight: of the mean KL of acceleration and steering.
    perception_weight: of dice and cross-entropy of what is around, but for the route, which is
      told; 0 for a student that does not say it.
    mask_rule: False takes the teacher's features as a target everywhere.

  Returns:
    An objective for students and teachers with the tap policy, and with features and embedding
    where these are compared.

  Raises:
    KdjaxError: when traced, another number of convolutions than of weights.

  Reference:
    Jia et al., "DriveAdapter", ICCV 2023, https://arxiv.org/abs/2308.00398
    (OpenDriveLab/DriveAdapter, driver_adapter_head.py, whose released config leaves the mask off,
    and whose steering weights are averaged by themselves, since they are [B, 1]; here they weigh
    the examples, as the paper has it). Of its auxiliary losses depth, images and waypoints are
    left out: the world here has none.
  """
  own = {"policy"} | ({"features", "embedding"} if feature_weights or state_weight else set())
  seeing = {"perceived"} if perception_weight else set()

  def apply(variables, student, teacher, batch, *, step, rng):
    rule = batch["rule"]
    label = teacher.policy.at[:, 0].set(
      jnp.where(rule[:, None], jnp.array(BRAKE), teacher.policy[:, 0])
    )
    turning = (1 + jnp.abs(beta_action(label)[:, 1])) ** 3 / 2
    action = losses.beta_kl(student.policy, label).mean(-1) * turning
    counted = valid(batch, action)
    terms = {"action": Term(action, counted, action_weight)}
    # A mean over all examples, of which those under the rule are 0.
    kept = ~rule if mask_rule else jnp.ones_like(rule)

    def like(ours, theirs):
      distance = optax.losses.huber_loss(ours, theirs).reshape(len(ours), -1).mean(-1)
      return jnp.where(kept, distance, 0.0)

    if feature_weights:
      names = sorted(teacher.features)
      if len(names) != len(feature_weights):
        raise KdjaxError(
          f"config.objective.feature_weights has {len(feature_weights)} weights, and the teacher"
          f" {len(names)} convolutions; give each its own"
        )
      for name, weight in zip(names, feature_weights, strict=True):
        distance = like(student.features[name], teacher.features[name])
        terms[name] = Term(distance, counted, weight)
    if state_weight:
      terms["state"] = Term(like(student.embedding, teacher.embedding), counted, state_weight)
    if perception_weight:
      around = jnp.delete(batch["bev"], 1, axis=-1, assume_unique_indices=True)
      found = student.perceived
      told = losses.dice(found, around) + losses.mask_cross_entropy(found, around)
      terms["perception"] = Term(told, counted, perception_weight)
    return ObjectiveResult(terms)

  return Objective(apply=apply, taps=Taps(frozenset(own | seeing), frozenset(own)))


def imitation() -> Objective:
  """-log of the density of a driver's actions, for a policy that is told what is around.

  Reads `batch["action"]`, what the driver meant, in which there is no rule.
  """

  def apply(variables, student, teacher, batch, *, step, rng):
    values = losses.beta_nll(student.policy, batch["action"]).mean(-1)
    return ObjectiveResult({"": Term(values, valid(batch, values))})

  return Objective(apply=apply, taps=Taps(student=frozenset({"policy"})))
