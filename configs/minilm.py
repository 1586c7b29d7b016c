"""MiniLM relations between two ViTs of unequal heads, against labels alone: digits.

python -m launch.train --config=configs/minilm.py --workdir=runs/minilm
python -m launch.compare --config=configs/minilm.py --seeds=3 --workdir=runs/minilm_compare
"""

import ml_collections

from configs import digits_kd


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores, about two minutes. `paper`: MiniLM's own relations (QK and VV).

  Both variants see labels for a tenth of the images; relations are matched on all of them.
  """
  config = digits_kd.get_config()
  config.total_steps = 800
  config.student = {"name": "vit", "patch": 4, "width": 24, "depth": 2, "heads": 3}
  relations = {"name": "minilm", "relations": ("qq", "kk", "vv"), "relation_heads": 8}
  config.objective = {
    "name": "combine",
    "terms": {
      "ce": {"weight": 1.0, "objective": {"name": "cross_entropy"}},
      "relations": {"weight": 1.0, "objective": relations},
    },
  }
  config.baseline = {"objective": {"name": "cross_entropy"}, "data": {"labelled_only": True}}
  config.compare.names = {"baseline": "student_alone", "method": "student_minilm"}
  config.compare.title = "MiniLM relations between ViTs on digits"
  if variant == "paper":
    config.student.heads = 4  # version 1 compares head by head
    config.objective.terms.relations.objective = {"name": "minilm", "relations": ("qk", "vv")}
  elif variant != "small":
    raise ValueError(f"variant {variant!r} does not exist; what exists: small, paper")
  return config
