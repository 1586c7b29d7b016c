"""Any objective on logits that sees only their shape: both sides' logits as z-scores."""

from __future__ import annotations

import dataclasses

from kdjax.errors import KdjaxError
from kdjax.losses import standardize_logits
from kdjax.objectives.base import Objective
from kdjax.outputs import Outputs


def standardized(objective: Objective) -> Objective:
  """The objective on logits of mean 0 and standard deviation 1 over the classes, on both sides.

  Its temperature then has one meaning for all examples and models, and the student need not have
  the teacher's range. Labels want the student's own logits: put `cross_entropy` beside it, as a
  term of `combine`.

  Args:
    objective: reads logits of both sides.

  Returns:
    The objective; its parameters and state are those of the one given.

  Raises:
    KdjaxError: an objective without logits, or one that reads hidden states and head in their
      place; when traced, a teacher that hands over a stored signal.

  Reference:
    Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024,
    https://arxiv.org/abs/2403.01427 (sunshangquan/logit-standardization-KD)
  """
  for side, taps in zip(("student", "teacher"), objective.taps, strict=True):
    if "logits" not in taps:
      raise KdjaxError(
        f"standardized: its objective reads {sorted(taps) or 'nothing'} of the {side}, and no"
        " logits; give one on logits of both sides, without chunk_size"
      )

  def changed(outputs: Outputs, side: str) -> Outputs:
    logits = outputs.require("logits", f"the {side}")
    return dataclasses.replace(outputs, logits=standardize_logits(logits))

  def apply(variables, student, teacher, batch, *, step, rng):
    student, teacher = changed(student, "student"), changed(teacher, "teacher")
    return objective.apply(variables, student, teacher, batch, step=step, rng=rng)

  def prepare(variables, teacher, batch):
    return objective.prepare(variables, changed(teacher, "teacher"), batch)

  return objective._replace(apply=apply, prepare=objective.prepare and prepare)
