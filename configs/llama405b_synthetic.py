"""A student learns a teacher's reasoning and label, against its label alone, at equal tokens.

  python -m launch.synthesize --task=two_step_arithmetic --teacher=solver:two_step_arithmetic \
    --template=chain_of_thought --out=runs/arithmetic
  python -m launch.train   --config=configs/llama405b_synthetic.py --workdir=runs/synthetic
  python -m launch.compare --config=configs/llama405b_synthetic.py --workdir=runs/steps --seeds=3

The teacher writes what is learnt, with ordinary cross-entropy on the target alone; its prompt is in
no row. On questions such as 7*8+27=? an exact solver is the teacher. `exact_match` is the share of
test questions that the student answers rightly when it writes greedily, whatever steps it writes
before; the other metrics are of the right answer without any steps.
"""

import ml_collections

from configs import base, small_text

SMOLLM2_BYTES = str(small_text.MODELS / "smollm2_bytes")  # of no merges


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores, some two minutes. `paper`: Llama-3.1-405B-Instruct into 8B.

  A batch of the baseline has more rows, shorter ones, so that both read the same number of tokens.

  For `paper`, `data/synthetic` holds what launch.synthesize made of recorded answers of the 405B
  model (`--teacher=recorded:...`), and `models/` the 8B model. Of the paper are the two models, the
  targets and the plain cross-entropy; lengths, steps and optimiser are ours. Its batches are not
  matched in tokens, since those depend on the answers.
  """
  if variant not in ("small", "paper"):
    raise ValueError(f"variant {variant!r} does not exist; what exists: small, paper")
  config = base.get_config()
  config.data = config.data.copy_and_resolve_references()
  config.data.unlock()
  config.data.update(
    {
      "name": "text_pairs",
      "tokenizer": SMOLLM2_BYTES,
      "path": "runs/arithmetic/train.jsonl",
      "test_path": "runs/arithmetic/test.jsonl",
      "target": "target",
      "source_length": 10,
      "target_length": 24,
      "joined": True,
      "answer_marker": "#",
    }
  )
  config.student = {"name": "pretrained", "path": SMOLLM2_BYTES}
  config.teacher = ml_collections.ConfigDict()
  config.objective = {"name": "cross_entropy", "chunk_size": 17}
  config.total_steps, config.batch_size = 600, 64
  config.optimizer.learning_rate = 3e-3
  config.optimizer.warmup_steps = 50
  config.optimizer.weight_decay = 0.01
  config.eval = {
    "every": 600,
    "batch_size": 250,
    "log_every": 100,
    "best_metric": "exact_match",
    "higher_is_better": True,
  }
  config.checkpoint.every = 300
  config.baseline = {
    "data": {"target": "label"},
    "batch_size": 142,
  }  # of 13.3 tokens a row, not 29.5
  config.compare.names = {"baseline": "student_label_only", "method": "student_steps_and_label"}
  config.compare.title = "A teacher's steps and label against its label alone, at equal tokens"
  if variant == "paper":
    config.data.update(
      {
        "tokenizer": "models/llama-3.1-8b-instruct",
        "path": "data/synthetic/train.jsonl",
        "test_path": "data/synthetic/test.jsonl",
        "source_length": 1024,
        "target_length": 512,
      }
    )
    config.student = {"name": "pretrained", "path": "models/llama-3.1-8b-instruct"}
    config.objective.chunk_size = 128
    config.batch_size, config.total_steps = 64, 1000
    config.optimizer.learning_rate = 1e-5
    config.baseline = {"data": {"target": "label"}}
    config.eval.batch_size = 16
  return config
