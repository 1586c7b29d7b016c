"""Robust Active Distillation: which images a teacher that errs is asked about, round by round.

  python -m launch.train   --config=configs/robust_active_distillation.py --workdir=runs/rad
  python -m launch.compare --config=configs/robust_active_distillation.py --seeds=3 \
    --workdir=runs/rad_3

The student learns from a few labels, then in each round from what the teacher says of 40 images
more. The method chooses them by a game against the teacher's mistakes, the baseline those of which
the student is least sure (`:entropy` and `:uniform` for other baselines). What was asked, and how
often the teacher was right, is in WORKDIR/ROUND/queries/queries.json.
"""

import ml_collections

from configs import base

BASELINES = ("margin", "entropy", "uniform")


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small` (or a baseline's name): digits, eight rounds. `paper`: CIFAR-100.

  Of the paper's setting the summary at hand gives the data and that rounds start from the labels;
  sizes, rates and budgets of `paper` are ours.
  """
  if variant not in ("small", "paper", *BASELINES):
    exists = ", ".join(("small", "paper", *BASELINES))
    raise ValueError(f"variant {variant!r} does not exist; what exists: {exists}")
  config = base.get_config()
  config.objective = {"name": "labels_or_teacher"}
  config.data.validation_fraction = 0.1
  config.optimizer.learning_rate = 3e-3
  if variant == "paper":
    rounds, budget, steps = 6, 5000, 20_000
    config.data.update({"name": "tfds_images", "dataset": "cifar100", "label_fraction": 0.1})
    config.data.augment = ({"name": "shift", "pixels": 4}, {"name": "flip"})
    config.student = {"name": "resnet", "depth": 20, "width": 16}
    config.teacher.model = {"name": "resnet", "depth": 56, "width": 16}
    config.teacher.train = {"total_steps": 20_000, "objective": {"name": "cross_entropy"}}
    config.eval.every = config.checkpoint.every = 2000
  else:
    rounds, budget, steps = 8, 40, 100
    config.batch_size = 64
    config.data.label_fraction = 0.04
    config.student = {"name": "resnet", "depth": 8, "width": 4}
    config.teacher.model = {"name": "resnet", "depth": 8, "width": 16}
    # Of the same few labels: it errs.
    config.teacher.train = {"total_steps": 150, "objective": {"name": "cross_entropy"}}
    config.eval.every = config.checkpoint.every = steps
  config.teacher.train.data = {"labelled_only": True}
  config.total_steps = steps
  by = variant if variant in BASELINES else "margin"
  config.stages = stages("robust", rounds, budget)
  config.baseline = {"stages": stages(by, rounds, budget)}
  config.compare.names = {"baseline": f"student_{by}", "method": "student_robust"}
  config.compare.title = f"Robust Active Distillation against queries by {by}"
  config.compare.vectorize = False
  return config


def stages(by: str, rounds: int, budget: int) -> tuple[dict, ...]:
  """Labels alone, then so many rounds of queries."""
  first = {"name": "labels", "selection": {"name": "queries", "by": by, "budget": 0}}
  asked = {"name": "queries", "by": by, "budget": budget}
  return (first, *({"name": f"round_{i + 1}", "selection": asked} for i in range(rounds)))
