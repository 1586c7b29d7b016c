"""Writes a run's student as a Hugging Face folder, which transformers loads.

python -m launch.export --config=configs/smollm2.py --checkpoint=runs/smollm2 --out=exported
"""

from pathlib import Path

from absl import flags

from kdjax.train.export import export_checkpoint
from launch import main

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "folder of a run, or its checkpoints folder")
OUT = flags.DEFINE_string("out", None, "folder to write")


def job(config, stop) -> None:
  print(f"written: {export_checkpoint(config, Path(CHECKPOINT.value), Path(OUT.value))}")


if __name__ == "__main__":
  main.run(job, required=["checkpoint", "out"])
