"""Evaluates a checkpoint's student or teacher on a config's test data.

python -m launch.evaluate --config=configs/digits_kd.py --checkpoint=runs/digits_kd
python -m launch.evaluate --config=configs/digits_kd.py --checkpoint=runs/digits_kd/teacher \
  --model=teacher
"""

import json
from pathlib import Path

from absl import flags

from kdjax.errors import writing
from kdjax.train.evaluate import evaluate_checkpoint
from kdjax.train.report import format_table
from launch import main

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "folder of a run, or its checkpoints folder")
MODEL = flags.DEFINE_enum("model", "student", ["student", "teacher"], "which model it holds")
TASKS = flags.DEFINE_multi_string("task", [], "multiple-choice task file (BIG-bench JSON)")
SHOTS = flags.DEFINE_integer("shots", 0, "labelled images of each class to help with; see README")
OUT = flags.DEFINE_string("out", "", "also write the metrics to this JSON file")


def job(config, stop) -> None:
  metrics = evaluate_checkpoint(
    config, Path(CHECKPOINT.value), which=MODEL.value, tasks=TASKS.value, shots=SHOTS.value
  )
  print(format_table({MODEL.value: metrics}))
  if OUT.value:
    with writing(Path(OUT.value)):
      Path(OUT.value).write_text(json.dumps(metrics, indent=2) + "\n")


if __name__ == "__main__":
  main.run(job, required=["checkpoint"])
