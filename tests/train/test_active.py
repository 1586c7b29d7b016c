"""Rounds of asking a teacher: what is chosen, what it costs, early refusals."""

import json

import jax
import numpy as np
import pytest

from configs import robust_active_distillation
from kdjax.data.text.choices import STRATEGIES, Queries
from kdjax.errors import KdjaxError
from kdjax.models import mlp
from kdjax.teachers import frozen
from kdjax.train.active import chosen, true_labels
from kdjax.train.config import check_config, merge
from kdjax.train.job import dry_run
from kdjax.train.selection import by_seed, select
from kdjax.train.streams import load_data


def tiny() -> dict:
  config = robust_active_distillation.get_config()
  config.mesh.data = 1
  config.total_steps = config.eval.every = config.checkpoint.every = 2
  config.student.hidden = (4,)
  config.selection.update({"rounds": 2, "budget": 5})
  return config.to_dict()


@pytest.fixture(scope="module")
def teacher():
  model = mlp(num_classes=10, image_shape=(8, 8, 1), hidden=(4,))
  return frozen(model, model.init(jax.random.key(0)))


def test_rounds_add_different_images_and_come_out_the_same_again(tmp_path, teacher):
  config = tiny()
  splits = load_data(config["data"])
  own = select(config, tmp_path, teacher)
  known = np.flatnonzero(splits.train.labels >= 0)
  assert len(own.train) == len(known) + 10 and len(known) == 27
  assert (own.train.labels >= 0).sum() == 27 and (own.train.labels[27:] == -1).all()
  told = json.loads((tmp_path / "selection" / "queries.json").read_text())
  assert len(set(told["asked"])) == 10 and not set(told["asked"]) & set(known.tolist())
  # An untrained teacher is right about as often as chance has it, by the labels that were hidden.
  assert 0 <= told["teacher_accuracy"] < 0.4 and 0 <= told["right"] < 0.8
  assert sorted(p.name for p in (tmp_path / "selection").iterdir() if p.is_dir()) == [
    "round0",
    "round1",
  ]
  again = select(config, tmp_path, teacher)  # rounds are restored
  np.testing.assert_array_equal(again.train.read(np.arange(37))["index"], own_index(own))
  assert by_seed(config)


def own_index(splits):
  return splits.train.read(np.arange(len(splits.train)))["index"]


def test_hidden_labels_are_found_again():
  splits = load_data(tiny()["data"])
  positions = np.array([0, 5, 700])
  index = splits.train.read(positions)["index"]
  whole = splits.whole.train.read(np.arange(len(splits.whole.train)))
  wanted = [whole["label"][whole["index"] == i][0] for i in index]
  np.testing.assert_array_equal(true_labels(splits, positions), wanted)


def test_strategies_take_what_they_say():
  probs = np.array([[0.5, 0.5, 0.0], [0.34, 0.33, 0.33], [0.9, 0.05, 0.05], [0.4, 0.39, 0.21]])
  rng = np.random.default_rng(0)
  taken = {
    name: chosen(Queries(name, 1, 2), probs, 1, np.random.default_rng(0)) for name in STRATEGIES
  }
  assert taken["margin"].tolist() in ([0, 1], [0, 3])  # margins 0, 0.01, 0.85, 0.01
  assert taken["entropy"].tolist() == [1, 3]
  for own in taken.values():
    assert len(set(own.tolist())) == 2
  drawn = [chosen(Queries("robust", 1, 1), probs, 1, rng)[0] for _ in range(200)]
  assert set(drawn) >= {0, 1, 3}  # the hardest is not the only one asked about
  greedy = [chosen(Queries("robust", 1, 1), probs, 0, rng)[0] for _ in range(5)]
  assert set(greedy) == {0}


@pytest.mark.parametrize(
  "changed, message",
  [
    ({"selection": {"strategy": "hard"}}, "strategy = 'hard' must be one of"),
    ({"selection": {"rounds": 0}}, "rounds = 0 and budget = 5 must be at least 1"),
    ({"selection": {"budget": 900}}, "asks about 2 x 900 images"),
    ({"data": {"label_fraction": 1.0}}, "0 have no label"),
    ({"data": {"validation_fraction": 0.0}}, r"set config\.data\.validation_fraction"),
    ({"stages": ({"name": "one"},)}, r"set config\.stages = None"),
  ],
)
def test_what_does_not_fit_is_told_before_compute(tmp_path, teacher, changed, message):
  with pytest.raises(KdjaxError, match=message):
    select(merge(tiny(), changed), tmp_path, teacher)


def test_a_job_without_mistakes_traces():
  dry_run(tiny(), ("baseline", "method"))


@pytest.mark.parametrize("variant", ["small", "paper"])
def test_configs_are_whole(variant):
  config = robust_active_distillation.get_config(variant).to_dict()
  for own in (config, merge(config, config["baseline"])):
    check_config(own)
  assert merge(config, config["baseline"])["selection"]["strategy"] == "margin"
