"""Every vision distiller on one pair: a residual network into a smaller one on Fashion-MNIST.

  apt-get install dataset-fashion-mnist    # or --config.data.path=FOLDER with the four IDX files
  python -m launch.leaderboard --task=fashion_mnist --seeds=3 --workdir=runs/leaderboard_vision

Every student has all labels, as in the papers, and reads the same images. Each method has the
objective of its own config; none was tuned here.
"""

import importlib

import ml_collections

from configs import small_vision

# Public name to the config whose objective, and augmentation, it takes.
CONFIGS = {
  "attention_transfer": "attention_transfer",
  "contrastive_representation": "contrastive_representation",
  "curriculum_temperature": "curriculum_temperature",
  "fitnet": "fitnet",
  "function_matching": "function_matching",
  "logit_standardization": "logit_standardization",
  "multi_level": "multi_level",
  "neuron_selectivity": "neuron_selectivity",
  "overhaul": "overhaul",
  "probabilistic_knowledge_transfer": "probabilistic_transfer",
  "relational_kd": "relational_kd",
  "review": "review",
  "similarity_preserving": "similarity_preserving",
  "variational_information": "variational_information",
}


def get_config() -> ml_collections.ConfigDict:
  """Two CPU cores: some half a minute a method and seed; 300 steps are two thirds of an epoch."""
  config = on_fashion_mnist(small_vision.distilled_by("small", {"name": "cross_entropy"}, ""))
  config.compare.title = "A residual network into a smaller one on Fashion-MNIST"
  config.compare.vectorize = False
  methods = {
    "alone": {"objective": {"name": "cross_entropy"}},
    "hinton_kd": {"objective": {"name": "hinton_kd"}},
    "decoupled_kd": {
      "objective": {
        "name": "logit_kd",
        "loss": "decoupled_kd",
        "beta": 8.0,
        "temperature": 4.0,
        "ce_weight": 1.0,
      }
    },
    "dist_relation": {
      "objective": {"name": "logit_kd", "loss": "dist_relation", "kd_weight": 2.0, "ce_weight": 1.0}
    },
    "nd_loss": {"objective": {"name": "nd_loss"}},
  }
  for name, module in CONFIGS.items():
    own = importlib.import_module(f"configs.{module}").get_config("small").to_dict()
    methods[name] = {"objective": own["objective"], "data": {"augment": own["data"]["augment"]}}
  taid = importlib.import_module("configs.taid").get_config("small").to_dict()["objective"]
  methods["taid"] = {"objective": taid | {"total_steps": config.get_ref("total_steps")}}
  config.leaderboard = {"reference": "alone", "methods": methods}
  return config


def on_fashion_mnist(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The small pair on larger images, of which there are more."""
  config.total_steps = 300
  config.data.name = "fashion_mnist"
  config.data.label_fraction = 1.0
  config.teacher.train.total_steps = 600
  config.eval.update({"every": 300, "batch_size": 500})
  config.checkpoint.update({"every": 300, "keep_last": 1, "keep_best": 0})
  return config
