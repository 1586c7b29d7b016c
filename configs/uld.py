"""A student that reads bytes learns from a teacher of 1,024 tokens by sorted probabilities (ULD).

  python -m launch.train   --config=configs/uld.py --workdir=runs/uld
  python -m launch.compare --config=configs/uld.py --workdir=runs/uld_compare --seeds=3

The text is the docstrings of Python's own library. Rows hold it in both sides' tokens; the teacher
is trained first, in its own. On two busy CPU cores that took 154 s, the student 253 s (an idle
machine was not measured). For checkpoints, give
`config.teacher.model` and `config.data.teacher_tokenizer` the teacher's path and `config.student`
and `config.data.tokenizer` the student's.
"""

from pathlib import Path

import ml_collections

from configs import base

TOKENIZERS = Path(__file__).parent / "tokenizers"


def get_config() -> ml_collections.ConfigDict:
  """The student has labels too; the baseline has nothing else."""
  config = base.get_config()
  config.total_steps = 120
  config.batch_size = 8
  config.data = config.data.copy_and_resolve_references()
  config.data.unlock()
  config.data.update(
    {
      "name": "text",
      "tokenizer": str(TOKENIZERS / "bytes"),
      "sequence_length": 192,
      "teacher_tokenizer": str(TOKENIZERS / "bpe_1024"),
      "teacher_sequence_length": 96,
      "sources": {"docs": {"kind": "python", "field": "docs"}},
      "max_documents": 100,
    }
  )
  config.student = {"name": "decoder", "width": 96, "depth": 2, "heads": 4}
  config.teacher.model = {"name": "decoder", "width": 160, "depth": 3, "heads": 5}
  config.teacher.train = {
    "total_steps": 250,
    "objective": {"name": "cross_entropy", "chunk_size": 48},
  }
  config.objective = {"name": "uld", "chunk_size": 48}
  config.optimizer.learning_rate = 3e-3
  config.optimizer.warmup_steps = 20
  config.optimizer.weight_decay = 0.01
  config.eval = {
    "every": 60,
    "batch_size": 16,
    "log_every": 20,
    "best_metric": "nll",
    "higher_is_better": False,
  }
  config.checkpoint.every = 60
  config.baseline = {"objective": {"name": "cross_entropy", "chunk_size": 48}}
  config.compare.title = "Bytes taught by a teacher of 1,024 tokens"
  config.compare.vectorize = False
  config.samples = {"prompts": ("Return the number of",), "max_new_tokens": 60}
  return config
