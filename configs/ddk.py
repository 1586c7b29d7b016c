"""DDK: the domain in which the student is further behind its teacher is read more often.

  python -m launch.train   --config=configs/ddk.py --workdir=runs/ddk
  python -m launch.compare --config=configs/ddk.py --workdir=runs/ddk_compare --seeds=3

The student sees hardly any docstrings in its first 40 steps, and then a mixture that follows the
perplexities on held-out documents every 40 steps. The baseline goes on with equal shares.
"""

import ml_collections

from configs import small_text

EVERY = 40


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores, some two minutes. `paper`: its ten domains, from `data/DOMAIN/*.jsonl`.

  The paper distils Qwen1.5-14B into 1.8B: folders of both go to `config.teacher.model.path` and
  `config.student.path`, and `config.data.tokenizer`.
  """
  config = small_text.get_config()
  kd = {"name": "logit_kd", "loss": "forward_kl", "kd_weight": 0.2, "ce_weight": 1.0}
  config.objective = kd | {"chunk_size": 32}
  config.compare.names = {"baseline": "student_equal_shares", "method": "student_ddk"}
  config.compare.title = "DDK: shares of domains that follow the student"
  if variant == "small":
    config.data.weights = {"code": 0.98, "docs": 0.02}
    config.teacher.train.data = {"weights": {"code": 0.5, "docs": 0.5}}
    config.domain_weights = {"name": "ddk", "every": EVERY, "rows": 64}
    equal = {"name": "ddk", "every": EVERY, "rows": 64, "smoothing": 0.0}
    config.baseline = {"domain_weights": equal}
    return config
  if variant != "paper":
    raise ValueError(f"variant {variant!r} does not exist; what exists: small, paper")
  domains = (
    "common_crawl", "c4", "stack", "wikipedia", "books",
    "arxiv", "stack_exchange", "chinese_common_crawl", "chinese_books", "open_web_math",
  )  # fmt: skip
  config.data.update(
    {
      "tokenizer": "models/qwen1.5-1.8b",
      "sequence_length": 2048,
      "max_documents": None,
      "validation_fraction": 0.001,
      "sources": {name: {"kind": "jsonl", "path": f"data/{name}"} for name in domains},
      "weights": dict.fromkeys(domains, 1.0),
    }
  )
  small_text.between_checkpoints(
    config, teacher="models/qwen1.5-14b", student="models/qwen1.5-1.8b"
  )
  config.total_steps, config.batch_size = 30_000, 256  # some 15 B tokens
  config.optimizer.learning_rate = 3e-5  # the paper ends at 3e-6, this schedule at 0
  config.optimizer.warmup_steps = 1000
  config.domain_weights = {"name": "ddk"}  # every 1,000 steps, 500 rows of each domain
  config.baseline = {"domain_weights": {"name": "fixed"}}
  config.eval.every = config.checkpoint.every = 1000
  return config
