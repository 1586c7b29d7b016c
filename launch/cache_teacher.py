"""Stores what a config's teacher says about its training data, for students to learn from.

python -m launch.cache_teacher --config=configs/digits_kd.py --out=runs/digits_signals \
  --config.teacher.checkpoint=runs/digits_kd/teacher
python -m launch.train --config=configs/digits_cached.py --workdir=runs/digits_cached

Goes on where it was killed; a finished cache is left as it is. --verify asks the teacher again for
a sample of the records.
"""

from pathlib import Path

import jax
from absl import flags

from kdjax.signals.codec import HIDDEN_DTYPES
from kdjax.signals.manifest import KINDS
from kdjax.train.cache import cache_teacher
from kdjax.train.cache_check import ROWS, verify_cache
from kdjax.train.cache_session import CacheOptions, open_session
from launch import main

DEFAULT = CacheOptions()
OUT = flags.DEFINE_string("out", None, "folder of the cache")
KIND = flags.DEFINE_enum(
  "kind",
  DEFAULT.kind,
  KINDS,
  "draws from the teacher's distribution, its likeliest classes, or its last hidden states",
)
NUM_SAMPLES = flags.DEFINE_integer("num_samples", DEFAULT.num_samples, "draws a position")
K = flags.DEFINE_integer("k", DEFAULT.k, "classes a position, of top_k")
TEMPERATURE = flags.DEFINE_float("temperature", DEFAULT.temperature, "of what is stored")
DTYPE = flags.DEFINE_enum("dtype", DEFAULT.dtype, list(HIDDEN_DTYPES), "of hidden states")
SEED = flags.DEFINE_integer("seed", DEFAULT.seed, "of draws and augmentations")
VERSIONS = flags.DEFINE_integer("versions", DEFAULT.versions, "of every augmented image")
ROWS_PER_SHARD = flags.DEFINE_integer(
  "rows_per_shard", DEFAULT.rows_per_shard, "rows of data in one file; 0: by size"
)
VERIFY = flags.DEFINE_bool("verify", False, "compare a sample of the records with the teacher")
VERIFY_ROWS = flags.DEFINE_integer("verify_rows", ROWS, "rows to compare")


def job(config, stop) -> None:
  names = ("kind", "num_samples", "k", "temperature", "dtype", "seed", "versions", "rows_per_shard")
  given = {name: flags.FLAGS[name].value for name in names}
  session = open_session(config, CacheOptions(**given))
  manifest = cache_teacher(session, Path(OUT.value), stop=stop)
  if jax.process_index() == 0:
    print(
      f"{manifest.examples} examples, {manifest.positions} positions,"
      f" {manifest.bytes_per_position:.1f} bytes a position, {manifest.bytes} bytes in files:"
      f" {OUT.value}"
    )
  if VERIFY.value:
    found = verify_cache(session, Path(OUT.value), rows=VERIFY_ROWS.value)
    if jax.process_index() == 0:
      print(", ".join(f"{name} {value:.6g}" for name, value in found.items()))


if __name__ == "__main__":
  main.run(job, required=["out"])
