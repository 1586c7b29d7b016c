"""Return of the Encoder: a decoder teaches an encoder-decoder on the targets that it writes.

python -m launch.train --config=configs/return_of_the_encoder.py --workdir=runs/rote
python -m launch.compare --config=configs/return_of_the_encoder.py --seeds=3 --workdir=runs/rote_3

Of a function of Python's library, the first tokens of its code are the source and the first line of
its docstring is the target. The teacher reads one behind the other. At every step the student draws
targets of its own, about which the teacher is asked; the baseline has the labels alone.
"""

import ml_collections

from configs import base, small_text


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores. `paper`: the 330M student of Phi-3.5-mini, fine-tuned for the task.

  `paper` wants `models/phi-3.5-mini-task`, whose adapter is merged, and pairs in `data/pairs`. Its
  tokenizer's padding is no token of a text here. Of the paper's code are sizes, weights, drawing
  and optimiser (marked); it trains 128 epochs, of which the number of steps follows.
  """
  if variant not in ("small", "paper"):
    raise ValueError(f"variant {variant!r} does not exist; what exists: small, paper")
  config = base.get_config()
  small = variant == "small"
  config.data = config.data.copy_and_resolve_references()
  config.data.unlock()
  config.data.update({"name": "text_pairs", "validation_fraction": 0.1})
  joined = {"data": {"joined": True}}
  chunk = {"chunk_size": 32}
  config.objective = {
    "name": "written_kd",
    "kd_weight": 0.9,  # published
    "ce_weight": 0.1,  # published
  } | chunk
  config.program = {"name": "on_policy_targets", "temperature": 0.9, "top_k": 128}  # published
  if small:
    config.data.update({"tokenizer": small_text.SMOLLM2, "source_length": 48})
    config.data.update({"target_length": 16, "max_pairs": 4000})
    config.student = {"name": "seq2seq", "width": 32, "encoder_depth": 2, "decoder_depth": 1}
    config.student.heads = 2
    config.teacher.model = dict(small_text.TEACHER)
    config.teacher.fine_tune = True
    config.teacher.train = joined | {
      "total_steps": 600,
      "objective": {"name": "cross_entropy"} | chunk,
    }
    config.total_steps, config.batch_size = 300, 16
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 3e-3, 20
  else:
    config.data.update(
      {
        "tokenizer": "models/phi-3.5-mini-task",
        "path": "data/pairs",
        "source_length": 1024,  # published
        "target_length": 256,  # published
        "start": 1,  # published
      }
    )
    config.student = {  # published
      "name": "seq2seq",
      "width": 1024,
      "encoder_depth": 20,
      "decoder_depth": 10,
      "heads": 6,
      "kv_heads": 3,
      "head_dim": 64,
      "mlp_width": 4096,
      "dropout": 0.1,
    }
    config.teacher.model = {"name": "pretrained", "path": "models/phi-3.5-mini-task"}
    config.teacher.dtype = "bfloat16"  # published
    config.total_steps, config.batch_size = 10_000, 128  # the batch is published
    config.optimizer.update({"learning_rate": 1e-4, "warmup_steps": 4, "b2": 0.98})  # published
  config.optimizer.weight_decay = 0.01  # published
  config.eval.update({"every": 300, "batch_size": 64, "log_every": 50})
  config.eval.update({"best_metric": "nll", "higher_is_better": False})
  config.checkpoint.every = 300
  config.baseline = {
    "program": {"name": "distill"},
    "objective": {"name": "cross_entropy"} | chunk,
  }
  config.compare.names = {"baseline": "student_labels", "method": "student_distilled"}
  config.compare.title = "An encoder-decoder taught by a decoder, against labels alone"
  config.compare.vectorize = False
  return config
