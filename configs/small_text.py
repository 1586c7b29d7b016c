"""What the configs of language models on two CPU cores share: text, a teacher and a student.

The text is the code and the docstrings of Python's own library in the first 1,024 tokens of
SmolLM2. Teacher and student are SmolLM2-135M shrunken, to 0.3 M and 0.05 M parameters, which have
learnt to predict code again (third_party/models/README.md); the teacher is then fine-tuned on the
text.
"""

from pathlib import Path

import ml_collections

from configs import base

MODELS = Path(__file__).parents[1] / "third_party" / "models"
SMOLLM2 = str(MODELS / "smollm2_1024")  # of eight layers; its tokenizer lies beside it
TEACHER = {"name": "pretrained", "path": str(MODELS / "smollm2_1024_teacher")}
STUDENT = {"name": "pretrained", "path": str(MODELS / "smollm2_1024_student")}
SIZES = {"layers": 1, "width": 32, "heads": 1, "kv_heads": 1, "mlp_width": 64}  # of the student


def get_config() -> ml_collections.ConfigDict:
  """Labels alone; each config puts its objective and its baseline in."""
  config = base.get_config()
  config.total_steps = 300
  config.batch_size = 8
  config.data = config.data.copy_and_resolve_references()
  config.data.unlock()
  config.data.update(
    {
      "name": "text",
      "tokenizer": SMOLLM2,
      "sequence_length": 64,
      "max_documents": 100,
      "validation_fraction": 0.1,
    }
  )
  config.student = dict(STUDENT)
  config.teacher.model = dict(TEACHER)
  config.teacher.fine_tune = True
  config.teacher.train = {
    "total_steps": 300,
    "objective": {"name": "cross_entropy", "chunk_size": 32},
  }
  config.objective = {"name": "logit_kd", "loss": "forward_kl", "chunk_size": 32}
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = 20
  config.optimizer.weight_decay = 0.01
  config.eval = {
    "every": 300,
    "batch_size": 64,
    "log_every": 50,
    "best_metric": "nll",
    "higher_is_better": False,
  }
  config.checkpoint.every = 300
  config.baseline = {"objective": {"name": "cross_entropy", "chunk_size": 32}}
  return config


def between_checkpoints(config: ml_collections.ConfigDict, teacher: str, student: str) -> None:
  """Puts two checkpoints of a paper in place of the small models; the teacher is as it is."""
  config.teacher.model = {"name": "pretrained", "path": teacher}
  config.teacher.dtype = "bfloat16"
  config.teacher.fine_tune = None
  config.student = {"name": "pretrained", "path": student}


def distilled_by(variant: str, loss: str, title: str, **arguments) -> ml_collections.ConfigDict:
  """A config of one loss of `kdjax.losses` on tokens, beside forward KL.

  Args:
    variant: "small", or "paper" for the setting in which the losses of language models are usually
      compared: GPT-2 XL fine-tuned on Dolly teaches GPT-2 (jongwooko/distillm, scripts/gpt2/kd).
    loss: its name.
    title: of the comparison.
    **arguments: of the loss.
  """
  config = get_config()
  config.objective = {"name": "logit_kd", "loss": loss, "chunk_size": 32} | arguments
  config.baseline = {"objective": {"name": "logit_kd", "loss": "forward_kl", "chunk_size": 32}}
  config.compare.names = {"baseline": "student_forward_kl", "method": f"student_{loss}"}
  config.compare.title = title
  if variant == "paper":
    on_dolly(config)
  elif variant != "small":
    raise ValueError(f"variant {variant!r} does not exist; what exists: small, paper")
  return config


def on_dolly(config: ml_collections.ConfigDict) -> None:
  """Sets text, models and training: chats in `data/dolly`, both models in `models/`."""
  config.data.update(
    {
      "tokenizer": "models/gpt2",
      "sequence_length": 512,
      "max_documents": None,
      "pack": "none",
      "sources": {"dolly": {"kind": "chat", "path": "data/dolly"}},
    }
  )
  between_checkpoints(config, teacher="models/gpt2-xl-dolly", student="models/gpt2")
  config.teacher.dtype = "float16"
  config.batch_size, config.total_steps = 32, 7140  # 20 epochs of some 11,400 examples
  config.optimizer.learning_rate = 5e-4
  config.optimizer.warmup_steps = 0
  config.eval.every = config.checkpoint.every = 357
