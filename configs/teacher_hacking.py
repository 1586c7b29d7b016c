"""Does a student hack its teacher? An oracle as the truth, and four sources of text to learn from.

python -m launch.teacher_hacking --config=configs/teacher_hacking.py --seeds=3 --workdir=runs/hack

The oracle learns Python's library and continues the beginnings of its documents; teacher and
student learn these texts; the student is then distilled from the teacher on the beginnings of
others. The table has its distances to the teacher (proxy) and to the oracle (golden) on held-out
beginnings, and how each source compares with the teacher's fixed texts.
"""

import ml_collections

from configs import small_text

SOURCES = {
  "offline_teacher": {"writer": "teacher"},
  "offline_8_texts": {"writer": "teacher", "generations": 8},
  "online_teacher": {"writer": "teacher", "online": True},
  "online_student": {"writer": "student", "online": True},
}


def get_config(variant: str = "small") -> ml_collections.ConfigDict:
  """`small`: two CPU cores. `paper`: its sizes and rates, with Pythia for T5, on `data/xsum`.

  T5 reads a prompt by its encoder, which the rows of the students' own texts do not have here.
  """
  config = small_text.get_config()
  config.compare.title = "Teacher hacking"
  config.eval.best_metric = "golden"
  config.teacher_hacking = {
    "prompt_length": 16,
    "oracle_prompts": 1500,
    "prompts": 96,
    "test_rows": 128,
    "drawn_from": "student",
    "divergence": "reverse_kl",
    "oracle": {"model": dict(small_text.TEACHER)},
    "sft": {"objective": {"name": "cross_entropy", "chunk_size": 32}},
    "sources": SOURCES,
    "baseline": "offline_teacher",
  }
  if variant == "paper":
    config.data.update(
      {
        "tokenizer": "models/pythia-2.8b",
        "sequence_length": 1152,
        "max_documents": None,
        "pack": "none",
        "sources": {"xsum": {"kind": "jsonl", "path": "data/xsum"}},
      }
    )
    pythia = lambda size: {"name": "pretrained", "path": f"models/pythia-{size}"}  # noqa: E731
    config.student = pythia("160m")
    config.teacher.model = pythia("410m") | {"weights": False}
    config.teacher.fine_tune = None
    config.batch_size, config.total_steps = 32, 390_625  # 62.5 epochs of 200,000 prompts
    config.optimizer.update({"learning_rate": 3e-4, "warmup_steps": 100, "schedule": "constant"})
    config.eval.every = config.checkpoint.every = 6250
    config.teacher_hacking.update(
      {"prompt_length": 1024, "oracle_prompts": 100_000, "prompts": 200_000, "test_rows": 1000}
    )
    config.teacher_hacking.oracle = {"model": pythia("2.8b")}
    config.teacher_hacking.sources = {
      name: own for name, own in SOURCES.items() if name != "offline_8_texts"
    } | {
      "offline_2_texts": {"writer": "teacher", "generations": 2},
      "offline_half": {"writer": "teacher", "generations": 2, "prompts": 100_000},
      "offline_fifth": {"writer": "teacher", "generations": 5, "prompts": 40_000},
    }
    return config
  if variant != "small":
    raise ValueError(f"variant {variant!r} does not exist; what exists: small, paper")
  config.data.sequence_length = 48
  config.batch_size, config.total_steps = 16, 400
  config.optimizer.schedule = "constant"
  config.teacher.model = small_text.TEACHER | {"width": 48, "mlp_width": 96}
  learn = {"objective": {"name": "cross_entropy", "chunk_size": 32}}
  config.teacher.train = {"total_steps": 400} | learn
  config.teacher_hacking.sft = {"total_steps": 200} | learn
  config.teacher_hacking.oracle.train = {"total_steps": 800} | learn
  config.eval.every, config.checkpoint.every = 25, 400
  return config
