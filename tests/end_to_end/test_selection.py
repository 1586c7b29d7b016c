"""MiniPLM: a reference, scores on disk, the rows that are kept, resumption, bad input."""

import json
import math

import jax
import numpy as np
import pytest

from kdjax import models, teachers
from kdjax.data.text.difference_sampling import difference_scores, keep_largest
from kdjax.errors import KdjaxError
from kdjax.train.job import dry_run, run_job, variant_of
from kdjax.train.loop import Interrupted
from kdjax.train.mesh import make_mesh
from kdjax.train.scores import score_rows
from kdjax.train.selection import select
from kdjax.train.streams import load_data
from tests.end_to_end.text import config_of, text_folder

CROSS_ENTROPY = {"name": "cross_entropy", "chunk_size": 16}
MODEL = models.decoder(num_classes=259, width=8, depth=1, heads=1)
TEACHER = teachers.frozen(MODEL, MODEL.init(jax.random.key(1)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  yield from text_folder(tmp_path_factory)


def config_with(folder, **changes):
  own = {
    "data__validation_fraction": 0.3,
    "objective": CROSS_ENTROPY,
    "teacher__train": {"total_steps": 6, "objective": CROSS_ENTROPY},
    "total_steps": 6,
    "selection": {
      "name": "difference",
      "ratio": 0.4,
      "model": {"name": "decoder", "width": 8, "depth": 1, "heads": 1},
      "train": {"total_steps": 3},
    },
    "baseline": {"selection": {"name": "random", "ratio": 0.4}},
  }
  return config_of(folder, **(own | changes))


@pytest.fixture(scope="module")
def finished(folder):
  config = config_with(folder)
  with jax.numpy_dtype_promotion("standard"):  # the module's fixture comes before each test's
    return config, folder / "run", run_job(config, folder / "run")


@pytest.fixture(scope="module")
def rows(folder):
  return load_data(config_with(folder)["data"]).train


def test_a_job_keeps_the_rows_with_the_largest_differences(finished, rows):
  _, workdir, report = finished
  told = json.loads((workdir / "selection" / "selection.json").read_text())
  stored = np.load(workdir / "selection" / "kept.npz")
  scores = [
    np.load(workdir / "selection" / s / "scores-00000.npy") for s in ("teacher", "reference")
  ]
  np.testing.assert_array_equal(scores[0][:, 1], rows.read(np.arange(len(rows)))["mask"].sum(1))
  wanted = difference_scores(scores[0][:, 0], scores[1][:, 0], scores[0][:, 1].astype(int))
  np.testing.assert_array_equal(stored["scores"], wanted)
  np.testing.assert_array_equal(stored["kept"], keep_largest(wanted, ratio=0.4))
  assert told["kept"] == len(stored["kept"]) == int(0.4 * len(rows))
  assert told["teacher"]["model"] != told["reference"]["model"]
  assert math.isfinite(report["results"]["student_distilled"]["nll"])


def test_a_job_stopped_while_it_scores_keeps_the_same_rows(finished, folder):
  config, workdir, _ = finished
  own = config | {"teacher": config["teacher"] | {"checkpoint": str(workdir / "teacher")}}
  asked = iter([False] * 4 + [True] * 9)  # the reference's three steps; then before the scores
  with pytest.raises(Interrupted):
    run_job(own, folder / "cut", stop=lambda: next(asked))
  run_job(own, folder / "cut")
  found, wanted = (np.load(w / "selection" / "kept.npz") for w in (folder / "cut", workdir))
  np.testing.assert_array_equal(found["kept"], wanted["kept"])


def score(rows, folder, *, batch_size=8, mesh=None, **options):
  return score_rows(
    TEACHER, rows, folder, mesh or make_mesh(data=1), batch_size=batch_size, **options
  )


def test_scores_are_the_log_probabilities_of_the_labels(rows, tmp_path):
  few = rows.take(np.arange(5))
  found = score(few, tmp_path)
  batch = few.read(np.arange(5))
  outputs, _ = MODEL.apply(TEACHER.frozen, batch, taps=frozenset({"logits"}))
  log_probs = np.asarray(jax.nn.log_softmax(outputs.logits))
  own = np.take_along_axis(log_probs, np.maximum(batch["label"], 0)[..., None], axis=-1)[..., 0]
  np.testing.assert_allclose(found[:, 0], (own * batch["mask"]).sum(1), rtol=1e-5)
  np.testing.assert_array_equal(found[:, 1], batch["mask"].sum(1))


def test_scores_depend_on_no_batch_no_device_and_no_shard(rows, tmp_path):
  wanted = score(rows, tmp_path / "a", batch_size=8)
  other = score(rows, tmp_path / "b", batch_size=24, shard=7, mesh=make_mesh(data=4))
  np.testing.assert_allclose(other, wanted, rtol=1e-5)
  assert other.shape == (len(rows), 2)


def test_scoring_goes_on_and_refuses_what_is_not_its_own(rows, tmp_path):
  asked = iter([False, False, True])
  with pytest.raises(Interrupted, match="kept the finished files"):
    score(rows, tmp_path, shard=5, stop=lambda: next(asked))
  done = sorted(tmp_path.glob("*.npy"))
  assert len(done) == 2
  before = [path.stat().st_mtime_ns for path in done]
  score(rows, tmp_path, shard=5)
  assert [path.stat().st_mtime_ns for path in done] == before
  with pytest.raises(KdjaxError, match="scores of another model or of other rows"):
    score(rows.take(np.arange(9)), tmp_path, shard=5)
  done[0].write_bytes(done[0].read_bytes()[:-8])
  with pytest.raises(KdjaxError, match=r"scores-00000\.npy is damaged: 5 finite scores wanted"):
    score(rows, tmp_path, shard=5)


def test_a_random_share_is_drawn_once_and_the_whole_is_in_order(folder, rows):
  config = variant_of(config_with(folder), "baseline")
  first, again = (select(config, folder, None).train for _ in range(2))
  assert len(first) == int(0.4 * len(rows))
  np.testing.assert_array_equal(first.plan.examples.start, again.plan.examples.start)
  whole = select(config | {"selection": {"name": "random", "ratio": 1.0}}, folder, None).train
  np.testing.assert_array_equal(whole.plan.examples.start, rows.plan.examples.start)


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    ({"selection__ratio": 0.0}, r"config\.selection: ratio = 0.0 must lie in"),
    ({"selection__ratio": 1e-4}, r"ratio = 0.0001 of \d+ rows is none"),
    ({"selection__name": "difrence"}, "'difrence' does not exist.*'difference'"),
    ({"selection__train": {"total_step": 3}}, "total_step does not exist"),
    ({"data__validation_fraction": 0.0}, r"reference on documents of its own; set config\.data"),
  ],
)
def test_mistakes_are_told_before_compute(folder, changes, told):
  with pytest.raises(KdjaxError, match=told):
    dry_run(config_with(folder, **changes))
