"""What a student learns from a cache beside what it learns from the teacher itself.

  make models && python -m benchmarks.cached_quality [--steps=60]

`configs/smollm2.py` on some 200 rows of its text: the same student, rows and steps, once with the
teacher in the step and once from each kind of cache. Printed is the final KL(teacher || student) on
the test rows, asked of the live teacher in all cases.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path

from benchmarks.cached_training import LOSSES
from configs import smollm2
from kdjax.train.cache import cache_teacher
from kdjax.train.cache_session import CacheOptions, open_session
from kdjax.train.job import run_job


def final_kl(config, folder: Path) -> float:
  """Trains and returns the student's divergence from the live teacher, in nats a token."""
  result = run_job(config, folder)
  return result["results"][config["compare"]["names"]["method"]]["forward_kl"]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--steps", type=int, default=60)
  config = smollm2.get_config().to_dict()
  config["total_steps"] = parser.parse_args().steps
  config["data"] |= {"max_documents": 12, "test_fraction": 0.1}
  config["eval"]["every"] = config["checkpoint"]["every"] = config["total_steps"]
  config["samples"]["prompts"] = ()
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    online = final_kl(config, folder / "online")
    print(f"{'the teacher itself':24s} {online:.4f} nats")
    for kind, loss in LOSSES.items():
      cache = folder / f"{kind}_cache"
      manifest = cache_teacher(open_session(config, CacheOptions(kind=kind)), cache)
      own = copy.deepcopy(config)
      own["teacher"] |= {"kind": "cached", "cache": str(cache)}
      own["objective"] = {"name": "logit_kd", "chunk_size": 32} | loss
      found = final_kl(own, folder / kind)
      size = f"{manifest.bytes_per_position:.0f} bytes a token"
      print(f"{kind:24s} {found:.4f} nats, {found / online:.3f} of it; {size}")


if __name__ == "__main__":
  main()
