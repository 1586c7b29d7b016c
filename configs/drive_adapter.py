"""DriveAdapter: a driver that is told what is around teaches one that has to see it.

  python -m launch.train   --config=configs/drive_adapter.py --workdir=runs/drive_adapter
  python -m launch.compare --config=configs/drive_adapter.py --seeds=3 --workdir=runs/drive_3

The world is that of `kdjax.simulation`: a winding road, slower cars, and people for whom a rule
brakes. The teacher imitates a scripted driver from above; the student keeps it as its planner, with
adapters between its layers. The baseline clones the same actions with a network of its own;
`:perception` compares with the planner on what was perceived and no adapters, `:unmasked` with
features as targets under the rule, too. Figures are of whole trips in scenes of their own.
"""

import ml_collections

from configs import base

PERCEIVES = {"feature_weights": (), "state_weight": 0.0, "action_weight": 0.0}


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small` (or another baseline's name): two CPU cores. `paper`: its sizes, in the same world.

  The paper drives in CARLA, which is no Python package; `paper` has its networks, weights and
  optimiser, and more trips.
  """
  if variant not in ("small", "paper", "perception", "unmasked"):
    raise ValueError(
      f"variant {variant!r} does not exist; what exists: small, paper, perception, unmasked"
    )
  config = base.get_config()
  config.data = {**config.data, "name": "driving", "trips": 64}
  config.batch_size = 64
  sizes = {"channels": (16, 32, 64), "strides": (2, 2, 2), "width": 64}
  raw, weights = (16, 32, 64), (50.0, 20.0, 10.0)
  steps, taught = 600, 600
  if variant == "paper":
    sizes = {"channels": (8, 16, 32, 64, 128, 256), "strides": (2, 2, 2, 2, 2, 1), "width": 256}
    raw, weights = (256, 256, 512, 512, 1024, 1024), (50.0, 20.0, 10.0, 5.0, 2.0, 1.0)
    config.data.trips, steps, taught = 2000, 75_000, 20_000  # 60 epochs
    config.eval.every = config.checkpoint.every = 1250
  config.student = {"name": "drive_adapter", "raw": raw, **sizes}
  config.teacher.model = {"name": "driving_policy", **sizes}
  config.teacher.train = {"total_steps": taught, "objective": {"name": "imitation"}}
  config.objective = {"name": "drive_adapter", "feature_weights": weights}
  config.total_steps = steps
  config.optimizer = {"name": "adamw", "learning_rate": 1e-3, "schedule": "cosine"}
  config.optimizer.update({"warmup_steps": 50, "weight_decay": 1e-7, "clip_norm": 100.0})
  if variant == "paper":
    config.optimizer.update({"learning_rate": 1e-4, "warmup_steps": 1000})
  config.eval.update({"batch_size": 64, "best_metric": "driving_score", "log_every": 50})
  if variant != "paper":
    config.eval.every = config.checkpoint.every = 300
  cloning = {"feature_weights": (), "state_weight": 0.0, "perception_weight": 0.0}
  config.baseline = {
    "student": {"name": "driving_policy", "reads": "image", **sizes},
    "objective": {"name": "drive_adapter", **cloning},
  }
  name = "cloning"
  if variant == "perception":
    name = "perception"
    config.baseline = {
      "student": {**config.student, "adapters": False},
      "objective": {"name": "drive_adapter", **PERCEIVES},
    }
  elif variant == "unmasked":
    name = "unmasked"
    config.baseline = {"objective": {**config.objective, "mask_rule": False}}
  config.compare.names = {"baseline": f"student_{name}", "method": "student_adapted"}
  config.compare.title = "DriveAdapter: a frozen planner with adapters"
  config.compare.vectorize = False
  return config
