"""Weights of domains that follow the training: what they are, exact resumption, bad input."""

import json

import jax
import pytest

from kdjax.data.text.domain_weights import ddk
from kdjax.errors import KdjaxError
from kdjax.train.job import dry_run, prepare_teacher, run_job
from kdjax.train.loop import Interrupted
from kdjax.train.stage import train
from kdjax.train.streams import load_data
from tests.end_to_end.helpers import steps
from tests.end_to_end.text import config_of, text_folder

EVERY = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  yield from text_folder(tmp_path_factory)


def config_with(folder, **changes):
  own = {
    "data__weights": {"counts": 0.95, "letters": 0.05},
    "data__validation_fraction": 0.2,
    "domain_weights": {"name": "ddk", "every": EVERY, "rows": 4},
    "teacher__train": {
      "total_steps": 40,
      "objective": {"name": "cross_entropy"},
      "data": {"weights": {"counts": 0.5, "letters": 0.5}},
    },
    "checkpoint__every": 5,
  }
  return config_of(folder, **(own | changes))


def with_teacher(config, workdir):
  """The same with the teacher that a run of it has trained."""
  return config | {"teacher": config["teacher"] | {"checkpoint": str(workdir / "teacher")}}


def position(workdir):
  """Where the newest checkpoint is in the data."""
  meta = workdir / "checkpoints" / str(steps(workdir)[-1]) / "meta" / "metadata"
  return json.loads(meta.read_text())["data"]


@pytest.fixture(scope="module")
def finished(folder):
  config = config_with(folder)
  with jax.numpy_dtype_promotion("standard"):  # the module's fixture comes before each test's
    return config, folder / "run", run_job(config, folder / "run")


def test_the_weights_are_the_rules_at_every_update(finished):
  config, workdir, _ = finished
  saved = position(workdir)
  (state,) = saved["domains"]
  assert set(state["teacher"]) == {"counts", "letters"}
  changes = saved["stream"]["weights"]
  # An update after 6, 12 and 18 steps of 8 rows; after 24 there is nothing to draw.
  assert [start for start, _ in changes] == [0, 48, 96, 144]
  assert changes[0][1] == config["data"]["weights"] and changes[-1][1] == state["weights"]
  for _, weights in changes[1:]:
    assert sum(weights.values()) == pytest.approx(1) and min(weights.values()) >= 0.25
  # The domain that was nearly left out is the one further behind its teacher.
  assert changes[1][1]["letters"] > changes[1][1]["counts"]


def test_a_run_cut_at_an_update_and_between_two_ends_at_the_same_weights(finished, folder):
  config, workdir, report = finished
  config = with_teacher(config, workdir)
  own = folder / "cut"
  for done, cut in ((0, EVERY), (EVERY, EVERY + 2)):
    asked = iter([False] * (cut - done) + [True] * 9)
    with pytest.raises(Interrupted):
      run_job(config, own, stop=lambda asked=asked: next(asked))
    assert steps(own)[-1] == cut
  assert run_job(config, own)["params_sha256"] == report["params_sha256"]
  assert position(own) == position(workdir)


def test_seeds_side_by_side_have_weights_of_their_own(finished, folder):
  config, workdir, _ = finished
  config = with_teacher(config, workdir)
  teacher, *_ = prepare_teacher(config, folder / "seeds", stop=lambda: False)
  train(config, folder / "seeds", teacher, name="seeds", seeds=[0, 1])
  first, second = position(folder / "seeds")["domains"]
  assert first["teacher"] == second["teacher"] and first["weights"] != second["weights"]
  # The first seed is the run alone, but for rounding.
  (alone,) = position(workdir)["domains"]
  assert first["weights"] == pytest.approx(alone["weights"], rel=1e-3)


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    ({"data__weights": None}, r"config\.domain_weights changes config\.data\.weights; give those"),
    ({"data__validation_fraction": 0.0}, r"set config\.data\.validation_fraction"),
    ({"domain_weights": {"name": "dkd"}}, r"domain_weights\.name = 'dkd' does not exist.*'ddk'"),
    ({"domain_weights": {"name": "ddk", "every": 0}}, r"domain_weights\.every = 0 must be at"),
    ({"domain_weights": {"name": "ddk", "smoothing": 2.0}}, r"smoothing = 2.0 must lie in"),
  ],
)
def test_mistakes_are_told_before_compute(folder, changes, told):
  with pytest.raises(KdjaxError, match=told):
    dry_run(config_with(folder, **changes))


@pytest.mark.parametrize(
  ("texts", "told"),
  [
    ([], r"sources\.none: there are no documents"),
    (["abc def"], r"no document of the domain\(s\) none is held out"),
  ],
)
def test_a_domain_without_documents_is_refused(folder, texts, told):
  path = folder / "none.jsonl"
  path.write_text("".join(json.dumps({"text": each}) + "\n" for each in texts))
  config = config_with(folder, data__weights={"counts": 1, "letters": 1, "none": 1})
  config["data"]["sources"] |= {"none": {"kind": "jsonl", "path": str(path), "field": "text"}}
  with pytest.raises(KdjaxError, match=told):
    dry_run(config)


def test_rows_of_a_mixture_may_be_taken_and_keep_their_domains(folder):
  rows = load_data(config_with(folder)["data"]).train
  counts, letters = rows.mixture.rows
  taken = rows.take([1, 3, counts, counts + 2])
  assert taken.mixture.rows == (2, 2) and taken.plan.domain.tolist() == [0, 0, 1, 1]
  for place, own in enumerate([1, 3, counts, counts + 2]):
    assert taken[place]["tokens"].tolist() == rows[own]["tokens"].tolist()
    assert taken.spans(place) == rows.spans(own)
  with pytest.raises(KdjaxError, match="no row of the domain letters is left"):
    rows.take([0])
  assert letters > 2 and ddk().init({"a": 2.0, "b": 2.0}, {"a": 1.0, "b": 1.0}).weights["a"] == 0.5
