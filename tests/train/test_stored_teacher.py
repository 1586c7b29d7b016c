"""A job that stores its teacher's signals first: the student sees the teacher's very images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.losses import TopK, soft_cross_entropy, sparse_cross_entropy
from kdjax.signals import Cache
from kdjax.train.cache import cache_teacher
from kdjax.train.cache_session import open_session
from kdjax.train.compare import run_compare
from kdjax.train.job import run_job
from kdjax.train.mesh import make_mesh
from kdjax.train.stored_teacher import SIGNALS, is_stored, live_config, store_options
from kdjax.train.streams import load_data, open_data
from tests.end_to_end.helpers import tiny

AUGMENT = [{"name": "shift", "pixels": 1}, {"name": "rand_augment"}]
STEPS = 70  # of batches of 40 of 1,200 images: into the third epoch


def config(**changes):
  own = tiny({"batch_size": 40, "total_steps": STEPS, "teacher.train.total_steps": 60} | changes)
  own["teacher"] = own["teacher"] | {
    "kind": "cached",
    "store": {"kind": "top_k", "k": 10, "versions": 3, "rows_per_shard": 500},
  }
  own["teacher"]["train"]["optimizer"] = {"learning_rate": 0.02}
  own["data"] = own["data"] | {"augment": AUGMENT}
  loss = {"loss": "sparse_cross_entropy", "tail": "spread"}
  own["objective"] = {"name": "logit_kd", "kd_weight": 1.0, "ce_weight": 0.0} | loss
  own["baseline"] = {"objective": {"name": "cross_entropy"}, "teacher": {"kind": "frozen"}}
  return own


@pytest.fixture(scope="module")
def job(tmp_path_factory):
  """(workdir, config, report) of a job that is done."""
  workdir = tmp_path_factory.mktemp("stored")
  with jax.numpy_dtype_promotion("standard"):
    return workdir, config(), run_job(config(), workdir)


def test_what_the_student_reads_is_what_the_teacher_saw_and_said(job):
  workdir, own, _ = job
  filled = own["teacher"] | {"checkpoint": str(workdir / "teacher")}
  live = live_config(own | {"teacher": filled})
  session = open_session(live, store_options(own))
  given = own | {"teacher": filled | {"cache": str(workdir / SIGNALS)}}
  stream = open_data(given, load_data(own["data"]), make_mesh(**own["mesh"]), ("train",)).stream
  teacher = jax.jit(
    lambda frozen, batch: session.teacher.apply(frozen, (), batch, taps={"logits"}).logits
  )
  student = jnp.asarray(np.random.default_rng(0).normal(size=(40, 10)), jnp.float32)
  images = {}
  for step in range(STEPS):
    batch = next(stream)
    if step not in (0, 29, 30, 61):
      continue
    epoch = step * 40 // 1200
    rows = [epoch * 1200 + int(index) for index in batch["index"]]
    seen = session.source.rows.read(np.array(rows))  # what the teacher was given
    np.testing.assert_array_equal(batch["image"], seen["image"])
    images |= {(epoch, int(i)): x for i, x in zip(batch["index"], batch["image"], strict=True)}
    logits = teacher(session.frozen, seen)
    signal = TopK(batch["signal/ids"], batch["signal/values"], vocab=10, temperature=1.0)
    stored = sparse_cross_entropy(student, signal, tail="spread")
    # All classes are stored; levels of log-probabilities are off by some hundredths.
    np.testing.assert_allclose(stored, soft_cross_entropy(student, logits), rtol=0.05)
    log_p = jax.nn.log_softmax(logits)
    own_values = jnp.take_along_axis(log_p, signal.ids, axis=-1)
    used = signal.log_probs > -jnp.inf
    assert np.abs(np.where(used, own_values - signal.log_probs, 0)).max() < 0.04
  # Another epoch has other seeds.
  twice = [i for e, i in images if e == 0 and (2, i) in images]
  assert twice and any(not np.array_equal(images[0, i], images[2, i]) for i in twice)


def test_the_report_has_teacher_and_student_and_a_second_start_asks_nobody(job, monkeypatch):
  workdir, own, report = job
  assert {"teacher", "student_distilled"} <= report["results"].keys()
  assert Cache(workdir / SIGNALS).manifest.examples == 3 * 1200
  monkeypatch.setattr("kdjax.train.cache.signals_of", lambda *_: pytest.fail("asked again"))
  again = run_job(own, workdir)
  assert again["params_sha256"] == report["params_sha256"]
  assert again["results"] == report["results"]


def test_both_variants_are_compared_with_one_teacher(job, tmp_path):
  workdir, own, _ = job
  own["teacher"]["checkpoint"] = str(workdir / "teacher")
  own["total_steps"] = 4
  found = run_compare(own, tmp_path, seeds=2)
  assert len(found["variants"]["method"]) == len(found["variants"]["baseline"]) == 2
  assert (tmp_path / SIGNALS / "manifest.json").is_file()


def test_what_is_wrong_is_told_before_the_teacher_is_trained(tmp_path):
  assert is_stored(config())
  wrong = config()
  wrong["teacher"]["store"] = {"kind": "top_k", "number": 3}
  with pytest.raises(KdjaxError, match=r"config\.teacher\.store\.number does not exist"):
    run_job(wrong, tmp_path)
  wrong["teacher"]["store"] = {"kind": "top_k", "k": "3"}
  with pytest.raises(KdjaxError, match=r"config\.teacher\.store\.k"):
    run_job(wrong, tmp_path)
  assert not (tmp_path / "teacher").exists()


def test_a_killed_store_goes_on(job, tmp_path):
  workdir, own, _ = job
  own = live_config(own | {"teacher": own["teacher"] | {"checkpoint": str(workdir / "teacher")}})
  session = open_session(own, store_options(own))
  asked = iter([False] * 8 + [True] * 9)
  with pytest.raises(Exception, match="kept the finished shards"):
    cache_teacher(session, tmp_path, stop=asked.__next__)
  assert not (tmp_path / "manifest.json").exists()
  cache_teacher(session, tmp_path)
  one, two = Cache(tmp_path).manifest, Cache(workdir / SIGNALS).manifest
  assert [s["sha256"] for s in one.shards] == [s["sha256"] for s in two.shards]
