"""Every config's method, killed after a checkpoint, ends with the bits of an undisturbed run.

The long form, a minute a key: KDJAX_KEYS=all python -m pytest tests/faults/test_every_key.py
"""

import os
from pathlib import Path

import pytest

from tests.faults import runs, short

# No jobs of launch.train by themselves; digits_cached and llama405b_synthetic want folders that
# other commands make, Fashion-MNIST one that may not be there; teacher_hacking is another command.
LEFT_OUT = {"base", "small_text", "small_vision", "digits_cached", "fashion_mnist_kd"}
LEFT_OUT |= {"llama405b_synthetic", "leaderboard_fashion_mnist", "teacher_hacking"}
LEFT_OUT |= {"open_vocabulary"}  # what two configs share
OTHERS = ["minilm:digits", "taid:tokens"]  # variants that are methods of their own
CONFIGS = sorted(path.stem for path in (runs.ROOT / "configs").glob("*.py"))
ALL = sorted({*CONFIGS, *OTHERS} - LEFT_OUT)
KEYS = os.environ.get("KDJAX_KEYS", "taid:tokens").split(",")


@pytest.mark.parametrize("key", ALL if KEYS == ["all"] else KEYS)
def test_a_killed_run_ends_with_the_same_bits(key, tmp_path):
  config = f"{Path(short.__file__).relative_to(runs.ROOT)}:{key}"
  whole = runs.finish(tmp_path / "whole", config=config)
  folder, log = tmp_path / "killed", tmp_path / "log"
  process = runs.start(folder, config=config, log=log)
  # Of four steps, at least one is lost unless the save of the next is through already.
  saved = (folder / "checkpoints" / "2").is_dir
  assert runs.kill_when(process, saved, timeout=600), log.read_text()
  assert not (folder / "report.json").exists()
  again = runs.finish(folder, config=config)
  assert again["step"] == short.STEPS
  assert again["params_sha256"] == whole["params_sha256"]
  assert again["results"] == whole["results"]
  assert runs.rows(folder) == runs.rows(tmp_path / "whole")
