"""A student that reads bytes learns from a teacher of 1,024 tokens by sorted probabilities (ULD).

  python -m launch.train   --config=configs/uld.py --workdir=runs/uld
  python -m launch.compare --config=configs/uld.py --workdir=runs/uld_compare --seeds=3

The text is the docstrings of Python's own library. Rows hold it in both sides' tokens; the teacher
is trained first, in its own. For checkpoints, give `config.teacher.model` and
`config.data.teacher_tokenizer` the teacher's path and `config.student` and `config.data.tokenizer`
the student's, as the variant `paper` does.
"""

import ml_collections

from configs import base, small_text

SMOLLM2_BYTES = str(small_text.MODELS / "smollm2_bytes")  # of no merges


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """The student has labels too; the baseline has nothing else.

  `small`: two CPU cores, some two minutes. `paper`: Llama-2-7B-chat into Pythia-410M
  on FairytaleQA, as in the official README; `data/fairytaleqa` holds the teacher's answers as
  chats.
  """
  config = base.get_config()
  config.total_steps = 120
  config.batch_size = 8
  config.data = config.data.copy_and_resolve_references()
  config.data.unlock()
  config.data.update(
    {
      "name": "text",
      "tokenizer": SMOLLM2_BYTES,
      "sequence_length": 96,
      "teacher_tokenizer": small_text.SMOLLM2,
      "teacher_sequence_length": 48,
      "sources": {"docs": {"kind": "python", "field": "docs"}},
      "max_documents": 100,
    }
  )
  config.student = {"name": "pretrained", "path": SMOLLM2_BYTES}
  config.teacher.model = dict(small_text.TEACHER)
  config.teacher.fine_tune = True
  config.teacher.train = {
    "total_steps": 250,
    "objective": {"name": "cross_entropy", "chunk_size": 48},
  }
  config.objective = {"name": "uld", "chunk_size": 48}
  config.optimizer.learning_rate = 1e-3
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
  if variant == "paper":
    with_checkpoints(config, teacher="models/llama-2-7b-chat", student="models/pythia-410m-deduped")
    config.data.sources = {"fairytaleqa": {"kind": "chat", "path": "data/fairytaleqa"}}
    config.batch_size, config.total_steps = 4, 10_700  # five epochs of 8,548 questions, four a step
    config.optimizer.learning_rate = 1e-6
  elif variant != "small":
    raise ValueError(f"variant {variant!r} does not exist; what exists: small, paper")
  return config


def with_checkpoints(config: ml_collections.ConfigDict, *, teacher: str, student: str) -> None:
  """Puts two checkpoints with their own tokenizers in place of the small models."""
  config.data.update(
    {
      "tokenizer": student,
      "sequence_length": 1024,
      "teacher_tokenizer": teacher,
      "teacher_sequence_length": 1024,
      "max_documents": None,
      "pack": "none",
    }
  )
  small_text.between_checkpoints(config, teacher=teacher, student=student)
  config.optimizer.warmup_steps = 0
  config.eval.every = config.checkpoint.every = 1000
  config.samples.prompts = ()
