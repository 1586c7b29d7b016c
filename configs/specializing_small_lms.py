"""Distribution matching across tokenizers: a teacher's five likeliest tokens, aligned step by step.

  python -m launch.train   --config=configs/specializing_small_lms.py --workdir=runs/specializing
  python -m launch.compare --config=configs/specializing_small_lms.py --workdir=runs/matched \
    --seeds=3

The teacher reads tokens of 1,024 kinds and the student of 512. Where dynamic time warping pairs two
tokens that are spelled the same, the student matches what the teacher says there; elsewhere it
learns the token. The baseline learns the tokens alone, as the paper's sample matching does.
"""

import ml_collections

from configs import small_text

SMOLLM2_512 = str(small_text.MODELS / "smollm2_512_student")  # the first 512 tokens


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores, some three minutes. `paper`: its optimiser, its targets unscaled.

  `paper` needs chains of thought in `data/chains` (JSON lines with spans; only the solution has
  weight 1) and two models in `models/`. The paper's teacher was an API and its student an
  encoder-decoder; its batches mix four prompt formats, which are up to the data here.
  """
  config = small_text.get_config()
  config.data.update(
    {
      "tokenizer": SMOLLM2_512,
      "sequence_length": 80,
      "teacher_tokenizer": small_text.SMOLLM2,
      "teacher_sequence_length": 64,
      "warped": True,
    }
  )
  config.student.path = SMOLLM2_512
  config.objective = {"name": "match_distribution", "k": 5, "chunk_size": 40}
  config.baseline = {
    "objective": {"name": "cross_entropy", "chunk_size": 40},
    "data": {"warped": False},  # the same rows, without alignment
  }
  config.compare.names = {"baseline": "student_samples", "method": "student_distributions"}
  config.compare.title = "Distribution against sample matching across tokenizers"
  if variant == "small":
    return config
  if variant != "paper":
    raise ValueError(f"variant {variant!r} does not exist; what exists: small, paper")
  config.data.update(
    {
      "tokenizer": "models/student",
      "sequence_length": 512,
      "teacher_tokenizer": "models/teacher",
      "teacher_sequence_length": 512,
      "max_documents": None,
      "pack": "none",
      "sources": {"chains": {"kind": "jsonl", "path": "data/chains"}},
    }
  )
  small_text.between_checkpoints(config, teacher="models/teacher", student="models/student")
  config.objective.tail = "drop"
  config.batch_size, config.total_steps = 375, 10_000  # 25 examples accumulated 15 times
  config.optimizer.accumulate = 15
  config.optimizer.learning_rate = 5e-4
  config.optimizer.warmup_steps = 10
  config.eval.every = config.checkpoint.every = 500
  return config
