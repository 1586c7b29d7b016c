"""Every mistake ends with one message that names the field or path and what to do.

Nothing is trained where the mistake can be known before, and no finished checkpoint is lost.
"""

import contextlib
import logging
import os
import re
import shutil
import subprocess
import time

import jax
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.train.compare import run_compare
from kdjax.train.evaluate import evaluate_checkpoint
from kdjax.train.job import run_job
from tests.end_to_end.helpers import SELF, launch, steps, tiny

# Orbax's threads report to a loop that a failure has ended; `launch` keeps them quiet.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
VIT = {"name": "vit", "patch": 4, "width": 8, "depth": 2, "heads": 2}
VITS = {"student": VIT, "teacher.model": VIT}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A finished run; copied before it is damaged. (folder, report)"""
  folder = tmp_path_factory.mktemp("finished") / "run"
  with jax.numpy_dtype_promotion("standard"):  # as every test here has it (see conftest.py)
    return folder, run_job(tiny(), folder)


@pytest.fixture
def copy(finished, tmp_path):
  return shutil.copytree(finished[0], tmp_path / "run")


def message(call, *args, **kwargs):
  """The one line that a call fails with."""
  with pytest.raises(KdjaxError) as caught:
    call(*args, **kwargs)
  assert "\n" not in str(caught.value)
  return str(caught.value)


def expect(text, *parts):
  for part in parts:
    assert part in text, f"{part!r} is not in: {text}"


def listing(folder):
  return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# Mistakes that are known before anything is computed: changes of the config, parts of the message.
CONFIG_MISTAKES = {
  "student name": (
    {"student.name": "mpl"},
    [
      "config.student.name = 'mpl'",
      "did you mean 'mlp'?",
      "convnext, decoder",
    ],
  ),
  "teacher name": ({"teacher.model.name": "vti"}, ["config.teacher.model.name", "'vit'?"]),
  "teacher kind": ({"teacher.kind": "frosen"}, ["config.teacher.kind", "'frozen'?"]),
  "objective name": (
    {"objective": {"name": "hinton"}},
    ["config.objective.name", "'hinton_kd'?", "gold, hinton_kd, image_text_contrastive, imitation"],
  ),
  "term name": (
    {
      "objective": {
        "name": "combine",
        "terms": {"kd": {"weight": 1.0, "objective": {"name": "hinton"}}},
      }
    },
    ["config.objective.terms.kd.objective.name", "'hinton_kd'?"],
  ),
  "term weight": (
    {"objective": {"name": "combine", "terms": {"kd": {"weight": "1", "objective": {}}}}},
    ["config.objective.terms.kd.weight = '1'", "must be float"],
  ),
  "loss name": (
    {"objective": {"name": "logit_kd", "loss": "revers_kl"}},
    ["config.objective.loss", "'reverse_kl'?", "forward_kl"],
  ),
  "loss on something else": (
    {"objective": {"name": "logit_kd", "loss": "attention_relation"}},
    ["config.objective.loss = 'attention_relation' is no loss on student and teacher logits"],
  ),
  "optimizer name": (
    {"optimizer.name": "adamm"},
    ["config.optimizer.name", "'adam'?", "adam, adamw, sgd"],
  ),
  "program name": ({"program.name": "distil"}, ["config.program.name", "bilevel, distill"]),
  "data source": ({"data.name": "digit"}, ["config.data.name", "'digits'?", "idx_images"]),
  "augmentation": (
    {"data.augment": ({"name": "shfit"},)},
    ["config.data.augment[0].name", "'shift'?"],
  ),
  "schedule": ({"optimizer.schedule": "cosin"}, ["config.optimizer.schedule", "'cosine'?"]),
  "metric": (
    {"eval.best_metric": "acuracy"},
    ["config.eval.best_metric", "'accuracy'?", "nll"],
  ),
  "student argument": (
    {"student.hiden": (8,)},
    ["config.student.hiden", "'hidden'?", "activation, dropout"],
  ),
  "objective argument": (
    {"objective.temprature": 4.0},
    ["config.objective.temprature", "'temperature'?"],
  ),
  "optimizer argument": (
    {"optimizer.learning_rat": 1.0},
    ["config.optimizer.learning_rat ", "'learning_rate'?", "b1, b2, clip_norm"],
  ),
  "data argument": ({"data.label_frac": 0.1}, ["config.data.label_frac ", "'label_fraction'?"]),
  "program argument": (
    {"program.accumulate": 2},
    ["config.program.accumulate is not an argument"],
  ),
  "missing argument": (
    {"program": {"name": "bilevel"}},
    ["config.program.virtual_learning_rate is missing"],
  ),
  "top field": ({"optimzer": {}}, ["config.optimzer", "'optimizer'?"]),
  "mesh field": ({"mesh.dta": 1}, ["config.mesh.dta", "data, fsdp, sequence, tensor"]),
  "checkpoint field": ({"checkpoint.evry": 1}, ["config.checkpoint.evry", "'every'?"]),
  "teacher field": ({"teacher.checkpont": "x"}, ["config.teacher.checkpont", "'checkpoint'?"]),
  "teacher's run": (
    {"teacher.train": {"total_step": 6, "objective": {"name": "cross_entropy"}}},
    ["config.teacher.train: config.total_step", "'total_steps'?"],
  ),
  "type of batch_size": (
    {"batch_size": "many"},
    ["config.batch_size = 'many' is of type str; it must be int"],
  ),
  "type of temperature": (
    {"objective.temperature": "hot"},
    ["config.objective.temperature = 'hot' is of type str; it must be float"],
  ),
  "type of hidden": ({"student.hidden": 8}, ["config.student.hidden = 8", "must be a list"]),
  "type of a width": ({"student.hidden": ("a",)}, ["config.student.hidden[0] = 'a'"]),
  "type of learning_rate": (
    {"optimizer.learning_rate": "fast"},
    ["config.optimizer.learning_rate = 'fast'", "must be float"],
  ),
  "type of clip_norm": (
    {"optimizer.clip_norm": "x"},
    ["config.optimizer.clip_norm = 'x'", "must be float or None"],
  ),
  "type of teacher.checkpoint": ({"teacher.checkpoint": 5}, ["config.teacher.checkpoint = 5"]),
  "dtype": ({"teacher.dtype": "float33"}, ["config.teacher.dtype", "float32, bfloat16"]),
  "range of a step count": ({"eval.every": 0}, ["config.eval.every = 0", "at least 1"]),
  "range of temperature": ({"objective.temperature": 0.0}, ["config.objective", "temperature"]),
  "range of learning_rate": (
    {"optimizer.learning_rate": float("nan")},
    ["config.optimizer.learning_rate = nan must be positive"],
  ),
  "range of a share": (
    {"data.label_fraction": 0.0},
    ["config.data.label_fraction", "0.0", "(0, 1]"],
  ),
  "names of rows": ({"compare.names.baseline": "teacher"}, ["config.compare.names", "'teacher'"]),
  "program without teacher": (
    {
      "teacher": {},
      "objective": {"name": "cross_entropy"},
      "program": {"name": "bilevel", "virtual_learning_rate": 0.1},
    },
    ["config.teacher is empty", "'bilevel' needs a teacher"],
  ),
  "range of dropout": ({"student.dropout": 1.5}, ["config.student", "'dropout' is 1.5"]),
  "batch and mesh": (
    {"mesh.data": 8, "batch_size": 30},
    ["config.batch_size = 30", "8 devices", "config.mesh.data", "multiple of 8"],
  ),
  "evaluation batch and mesh": (
    {"mesh.data": 8, "eval.batch_size": 30},
    ["config.eval.batch_size = 30", "multiple of 8"],
  ),
  "batch and micro-batches": (
    {"optimizer.accumulate": 5},
    ["config.batch_size = 32", "config.optimizer.accumulate = 5"],
  ),
  "mesh and devices": (
    {"mesh.data": 16},
    ["config.mesh", "needs 16 devices, but 8 are there"],
  ),
  "class counts": (
    {"teacher.model.num_classes": 12},
    ["class counts", "config.student has 10", "config.teacher has 12"],
  ),
  "too few classes": (
    {"student.num_classes": 5},
    ["config.student.num_classes = 5", "'digits' has 10 classes"],
  ),
  "tap": (
    {"objective": {"name": "minilm"}},
    ["config.objective", "'keys', 'queries', 'values'", "config.student cannot give", "'logits'"],
  ),
  "layer": (
    {**VITS, "objective": {"name": "minilm", "student_layer": 9}},
    ["config.objective: student layer 9 does not exist", "2 layers, 0 to 1"],
  ),
  "relation heads": (
    {**VITS, "objective": {"name": "minilm", "relation_heads": 3}},
    ["config.objective: attention_relation", "has 8 features, which relation_heads=3 does not"],
  ),
  "no validation data": (
    {
      "program": {"name": "bilevel", "virtual_learning_rate": 0.1},
      "objective": {"name": "tgeo_kd"},
    },
    ["config.data.validation_fraction"],
  ),
}


@pytest.mark.parametrize("changes, parts", CONFIG_MISTAKES.values(), ids=CONFIG_MISTAKES)
def test_a_mistake_in_the_config_costs_no_compute(changes, parts, tmp_path):
  expect(message(run_job, tiny(changes), tmp_path / "run"), *parts)
  assert not any((tmp_path / "run").glob("*"))


def test_a_config_lacks_a_field(tmp_path):
  config = tiny()
  del config["eval"]["log_every"], config["optimizer"]["learning_rate"]
  expect(message(run_job, config, tmp_path), "config.eval.log_every is missing", "configs/base.py")
  config["eval"]["log_every"] = 2
  expect(message(run_job, config, tmp_path), "config.optimizer.learning_rate is missing")
  assert not any(tmp_path.iterdir())


def test_the_baseline_of_a_comparison_is_checked_first(tmp_path):
  config = tiny({"baseline": {"objectve": {"name": "cross_entropy"}}})
  told = message(run_compare, config, tmp_path, seeds=1)
  expect(told, "config.baseline: config.objectve does not exist", "'objective'?")
  expect(
    message(run_compare, tiny({"baseline": {}}), tmp_path, seeds=1), "config.baseline is empty"
  )
  expect(message(run_compare, tiny(), tmp_path, seeds=0), "--seeds = 0")
  assert not any(tmp_path.iterdir())


def write_idx(path, array):
  header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
  path.write_bytes(header + array.astype(np.uint8).tobytes())


def test_data_files(tmp_path):
  folder, run = tmp_path / "idx", tmp_path / "run"
  config = tiny({"data.name": "idx_images", "data.path": str(folder)})
  expect(message(run_job, config, run), f"no folder {folder}", "config.data.path", "IDX files")
  folder.mkdir()
  for split, count in (("train", 40), ("t10k", 20)):
    write_idx(folder / f"{split}-images-idx3-ubyte", np.zeros((count, 8, 8)))
    write_idx(folder / f"{split}-labels-idx1-ubyte", np.arange(count) % 10)
  images = folder / "train-images-idx3-ubyte"
  os.truncate(images, images.stat().st_size - 100)
  expect(message(run_job, config, run), str(images), "2560 bytes", "only 2460", "download")
  expect(message(run_job, tiny({"data.name": "idx_images"}), run), "config.data.path is missing")
  assert not any(run.glob("*"))


def test_a_workdir_that_cannot_be_written(tmp_path):
  (tmp_path / "file").write_text("")
  where = tmp_path / "file" / "run"
  expect(message(run_job, tiny(), where), f"cannot write to {where}", "another --workdir")


def test_a_run_of_another_config_is_left_alone(copy):
  before = listing(copy / "checkpoints")
  changes = {"student.hidden": (9,), "objective.temperature": 2.0}
  told = message(run_job, tiny(changes), copy)
  expect(
    told,
    str(copy / "checkpoints"),
    "config.student.hidden: saved [8], now [9]",
    "config.objective.temperature: saved 4.0, now 2.0",
    "another --workdir",
  )
  assert listing(copy / "checkpoints") == before


def test_another_teacher_is_refused(finished, copy, tmp_path):
  other = tmp_path / "other"
  alone = {"teacher": {}, "objective": {"name": "cross_entropy"}, "student.hidden": (16,)}
  run_job(tiny({**alone, "total_steps": 1}), other)
  before = listing(copy / "checkpoints")
  told = message(run_job, tiny({"teacher.checkpoint": str(other)}), copy)
  expect(told, str(copy / "checkpoints"), "the teacher's weights (config.teacher)")
  assert listing(copy / "checkpoints") == before
  same = run_job(tiny({"teacher.checkpoint": str(finished[0] / "teacher")}), copy)
  assert same["params_sha256"] == finished[1]["params_sha256"]


def test_evaluation_of_what_does_not_fit(finished, tmp_path):
  folder = finished[0]
  told = message(evaluate_checkpoint, tiny({"student.hidden": (9,)}), folder)
  expect(told, str(folder / "checkpoints" / "12"), "another architecture")
  expect(told, "params/layer_0/kernel: saved float32[64, 8], wanted float32[64, 9]")
  told = message(evaluate_checkpoint, tiny(), tmp_path)
  expect(told, f"no checkpoint in {tmp_path}", "folder of a finished run")
  told = message(evaluate_checkpoint, tiny({"teacher": {}}), folder, which="teacher")
  expect(told, "config.teacher is empty")


def test_a_teacher_to_load(finished, tmp_path):
  missing = tmp_path / "nothing"
  told = message(run_job, tiny({"teacher.checkpoint": str(missing)}), tmp_path / "run")
  expect(told, "config.teacher.checkpoint", f"no checkpoint in {missing}")
  told = message(run_job, tiny({"teacher.checkpoint": str(finished[0])}), tmp_path / "run")
  expect(
    told,
    "config.teacher.checkpoint",
    "another architecture",
    "saved float32[64, 8], wanted float32[64, 16]",
  )
  assert not any((tmp_path / "run").glob("*"))


def truncate(folder):
  for path in folder.rglob("*"):
    if path.is_file():
      os.truncate(path, path.stat().st_size // 2)


def delete_arrays(folder):
  for path in folder.rglob("d/*"):
    path.unlink()


DAMAGES = {
  "params truncated": lambda step: truncate(step / "params"),
  "optimiser truncated": lambda step: truncate(step / "training"),
  "arrays deleted": delete_arrays,
  "meta truncated": lambda step: truncate(step / "meta"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(damage, finished, copy, caplog):
  damage(copy / "checkpoints" / "12")
  with caplog.at_level(logging.WARNING, "kdjax"):
    report = run_job(tiny(), copy)
  told = [r.getMessage() for r in caplog.records if r.name == "kdjax" and r.levelname == "WARNING"]
  assert len(told) == 1
  expect(told[0], "checkpoint 12", str(copy / "checkpoints"), "damaged", "the one before")
  assert report["params_sha256"] == finished[1]["params_sha256"]
  assert steps(copy) == [8, 12]
  assert (copy / "checkpoints" / "damaged-12").is_dir()


def test_a_damaged_teacher_is_mended_by_training_its_last_steps(finished, copy):
  truncate(copy / "teacher" / "checkpoints" / "6")
  assert run_job(tiny(), copy)["params_sha256"] == finished[1]["params_sha256"]


def test_nothing_is_deleted_when_no_checkpoint_can_be_read(copy, tmp_path):
  for step in steps(copy):
    delete_arrays(copy / "checkpoints" / str(step))
  before = listing(copy / "checkpoints")
  told = message(run_job, tiny(), copy)
  expect(told, f"no checkpoint in {copy / 'checkpoints'} can be read", "delete the folder")
  assert listing(copy / "checkpoints") == before
  for step in steps(copy / "teacher"):
    truncate(copy / "teacher" / "checkpoints" / str(step))
  told = message(run_job, tiny({"teacher.checkpoint": str(copy / "teacher")}), tmp_path / "new")
  expect(told, "config.teacher.checkpoint: no checkpoint in", "can be read")


def test_a_loss_that_is_not_finite(finished, tmp_path):
  changes = {
    "optimizer": {"name": "sgd", "learning_rate": 3e38},
    "teacher.checkpoint": str(finished[0] / "teacher"),
    "checkpoint.every": 1,
    "student.hidden": (8, 8),
  }
  told = message(run_job, tiny(changes), tmp_path)
  found = re.search(r"at step (\d+) in (loss/\S+)", told)
  assert found and found[2].strip(",;") in ("loss/kd", "loss/ce"), told
  expect(told, "earlier checkpoints are kept", "config.optimizer.learning_rate", "clip_norm")
  assert steps(tmp_path) == list(range(1, int(found[1])))


@pytest.fixture
def small_disk(tmp_path):
  """A file system of its own, 4 MB in size."""
  folder = tmp_path / "disk"
  folder.mkdir()
  mounted = shutil.which("mount") and subprocess.run(
    ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True
  )
  if not mounted or mounted.returncode:
    pytest.skip("this user may not mount a file system")
  yield folder
  subprocess.run(["umount", "-l", str(folder)], check=True)


# The run asks whether to stop once at its start and once a step: the student starts at 8.
@pytest.mark.parametrize("full_at, kept", [(8, []), (16, [4])], ids=["at the start", "at step 8"])
def test_a_disk_that_fills_up(full_at, kept, small_disk, finished):
  filler, asked = small_disk / "filler", 0

  def fill():
    nonlocal asked
    asked += 1
    if asked == full_at:
      for _ in range(600):  # the save before is made in the background
        if steps(small_disk / "run") == kept:
          break
        time.sleep(0.05)
      with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
          file.write(b"x" * 4096)
    return False

  run = small_disk / "run"
  told = message(run_job, tiny(), run, stop=fill)
  expect(told, str(run), "No space left on device", "Free space", "run the same command again")
  assert steps(run) == kept
  assert steps(run / "teacher") == [4, 6]
  filler.unlink()
  assert run_job(tiny(), run)["params_sha256"] == finished[1]["params_sha256"]


def fails(module, *flags, prefix=()):
  """The one message of a process that ends with status 2, and no traceback."""
  done = launch(module, *flags, prefix=prefix)
  assert done.returncode == 2, done.stderr
  assert "Traceback" not in done.stderr
  *before, last = done.stderr.strip().splitlines()
  assert last.startswith("error: "), done.stderr
  assert not any(line.startswith("error: ") for line in before)
  return last


TINY = f"--config={SELF}"
COMMAND_LINE_MISTAKES = {
  "config file": (["--config=configs/quikstart.py"], ["configs/quikstart.py", "'quickstart'?"]),
  "variant": (["--config=configs/quickstart.py:hug"], ["variant 'hug'", "small, paper"]),
  "section": (
    [TINY, "--config.optimzer.learning_rate=1"],
    ["config.optimzer does not exist", "'optimizer'?", "baseline, batch_size"],
  ),
  "type": ([TINY, "--config.batch_size=many"], ["--config.batch_size=many", "int"]),
}


@pytest.mark.parametrize("flags, parts", COMMAND_LINE_MISTAKES.values(), ids=COMMAND_LINE_MISTAKES)
def test_a_mistake_on_the_command_line(flags, parts, tmp_path):
  expect(fails("train", *flags, f"--workdir={tmp_path / 'run'}"), *parts)
  assert not (tmp_path / "run").exists()


def test_a_missing_flag():
  expect(fails("train", TINY), "--workdir must have a value")


def test_processes_tell_what_a_job_finds(tmp_path):
  (tmp_path / "file").write_text("")
  where = tmp_path / "file" / "run"
  expect(fails("train", TINY, f"--workdir={where}"), f"cannot write to {where}")
  expect(fails("evaluate", TINY, f"--checkpoint={tmp_path}"), f"no checkpoint in {tmp_path}")
  told = fails("train", TINY, "--config.optimizer.learning_rate=1e30", f"--workdir={tmp_path}")
  expect(told, "non-finite values at step", "loss/", "config.optimizer.learning_rate")


def test_a_process_goes_on_from_damage_and_says_so(copy):
  delete_arrays(copy / "checkpoints" / "12")
  done = launch("train", TINY, f"--workdir={copy}")
  assert done.returncode == 0, done.stderr
  assert "Traceback" not in done.stderr
  assert len(re.findall("^checkpoint 12 in .* is damaged", done.stderr, re.MULTILINE)) == 1
  assert steps(copy) == [8, 12]


def test_a_process_that_may_not_write_large_files(tmp_path):
  flags = [TINY, "--config.student.hidden=512", f"--workdir={tmp_path}"]
  limited = ["sh", "-c", 'ulimit -f 200 && exec "$@"', "sh"]  # blocks of 512 bytes
  told = fails("train", *flags, prefix=limited)
  expect(told, "checkpoint of step 4", str(tmp_path / "checkpoints"), "Free space")
  assert (steps(tmp_path), steps(tmp_path / "teacher")) == ([], [4, 6])
  done = launch("train", *flags)
  assert done.returncode == 0, done.stderr
  assert "teacher: resumed at step 6 of 6" in done.stderr
  assert steps(tmp_path) == [8, 12]
