"""The leaderboard: ranks, goes on where it stopped, keeps other sections; bad input."""

import json

import jax
import numpy as np
import pytest

from configs import base, leaderboard_fashion_mnist, leaderboard_smollm2
from kdjax.errors import KdjaxError
from kdjax.train.build import build_objective
from kdjax.train.config import check_config, merge
from kdjax.train.leaderboard import rank, run_leaderboard, write_section
from kdjax.train.loop import Interrupted
from launch.leaderboard import command, with_config

METHODS = {
  "alone": {"objective": {"name": "cross_entropy"}},
  "hinton_kd": {"objective": {"name": "hinton_kd"}},
  "reverse_kl": {"objective": {"name": "logit_kd", "loss": "reverse_kl"}},
}


def config_of(**leaderboard):
  config = base.get_config().to_dict()
  config["total_steps"], config["batch_size"], config["mesh"]["data"] = 3, 32, 1
  config["checkpoint"]["every"] = config["eval"]["every"] = 3
  config["student"] = {"name": "mlp", "hidden": [4]}
  config["teacher"]["model"] = {"name": "mlp", "hidden": [8]}
  config["teacher"]["train"] = {"total_steps": 3, "objective": {"name": "cross_entropy"}}
  config["leaderboard"] = {"methods": METHODS, "reference": "alone"} | leaderboard
  return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A board that was stopped in its second method and gone on with."""
  workdir = tmp_path_factory.mktemp("board")

  def stop():
    return (workdir / "hinton_kd" / "checkpoints").is_dir()

  with jax.numpy_dtype_promotion("standard"):  # the module's fixture comes before each test's
    with pytest.raises(Interrupted):
      run_leaderboard(config_of(), workdir, seeds=2, stop=stop)
    first = (workdir / "alone" / "evaluations.json").read_text()
    board = run_leaderboard(config_of(), workdir, seeds=2)
  assert (workdir / "alone" / "evaluations.json").read_text() == first
  return workdir, board


def test_every_method_is_evaluated_and_ranked(finished):
  workdir, board = finished
  assert json.loads((workdir / "leaderboard.json").read_text())["rows"] == board["rows"]
  assert {row["method"] for row in board["rows"]} == set(METHODS)
  means = [row["mean"] for row in board["rows"]]
  assert means == sorted(means, reverse=True)
  for row in board["rows"]:
    own = [each["accuracy"] for each in board["evaluations"][row["method"]]]
    assert len(own) == 2 and row["mean"] == pytest.approx(np.mean(own))
  alone = next(row for row in board["rows"] if row["method"] == "alone")
  assert alone["difference"] == 0 and alone["p_value"] is None
  assert 0 < board["teacher"]["accuracy"] < 1


def test_a_finished_method_is_not_trained_again(finished, monkeypatch):
  workdir, board = finished
  monkeypatch.setattr("kdjax.train.leaderboard.train_seeds", None)
  assert run_leaderboard(config_of(), workdir, seeds=2)["rows"] == board["rows"]


def test_a_board_of_another_config_is_refused(finished):
  workdir, _ = finished
  changed = config_of() | {"batch_size": 64}
  with pytest.raises(KdjaxError, match=r"another config: config\.batch_size"):
    run_leaderboard(changed, workdir, seeds=2)


def test_a_section_replaces_itself_and_leaves_the_others(finished, tmp_path):
  _, board = finished
  document = tmp_path / "docs" / "leaderboard.md"
  for task in ("one", "two", "one"):
    write_section(document, task, board, f"run {task}")
  text = document.read_text()
  assert text.count("run one") == text.count("run two") == 1 and text.startswith("# Leaderboards")
  assert text.count("| `hinton_kd` |") == 2
  for task in ("one", "two"):
    assert f"(leaderboard_{task}.png)" in text
    assert (document.parent / f"leaderboard_{task}.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("higher", [True, False])
def test_ranks_of_known_values(higher):
  # b is 1 above a in every seed but for a little; c is as a on average.
  values = {"a": [1.0, 2.0, 3.0], "b": [2.0, 3.01, 4.0], "c": [2.0, 2.0, 2.0]}
  board = {name: [{"score": v} for v in own] for name, own in values.items()}
  rows = {
    row["method"]: row for row in rank(board, "score", reference="a", higher_is_better=higher)
  }
  assert list(rows)[0 if higher else -1] == "b"
  assert rows["b"]["difference"] == pytest.approx(1.01 - 0.02 / 3)
  # The test's statistic is 301 with two degrees of freedom: p = 1 - t / sqrt(t^2 + 2).
  assert rows["b"]["p_value"] == pytest.approx(1 - 301 / np.sqrt(301**2 + 2), rel=1e-3)
  counts = ("better_than", "worse_than") if higher else ("worse_than", "better_than")
  assert (rows["b"][counts[0]], rows["b"][counts[1]]) == (1, 0)
  assert (rows["a"][counts[0]], rows["a"][counts[1]]) == (0, 1)
  assert (rows["c"]["better_than"], rows["c"]["worse_than"]) == (0, 0)


@pytest.mark.parametrize(
  ("board", "told"),
  [
    ({"methods": {}}, r"leaderboard\.methods = \{\} must map two or more"),
    ({"reference": "alon"}, r"reference = 'alon' is none of them.*alone"),
    ({"methods": METHODS | {"../x": {}}}, r"'\.\./x' names a folder"),
    ({"methods": METHODS | {"teacher": {}}}, r"'teacher' names a folder"),
    ({"methods": METHODS | {"odd": 3}}, r"methods\.odd = 3 must have fields"),
    ({"metods": {}}, r"leaderboard\.metods does not exist"),
    (
      {"methods": METHODS | {"odd": {"objective": {"name": "hinton"}}}},
      r"methods\.odd: config\.objective\.name = 'hinton'",
    ),
  ],
)
def test_mistakes_are_told_before_compute(tmp_path, board, told):
  with pytest.raises(KdjaxError, match=told):
    run_leaderboard(config_of(**board), tmp_path, seeds=1)
  assert not any(tmp_path.iterdir())


def test_a_task_is_a_config():
  given = ["--task=smollm2", "--workdir=x"]
  assert with_config(given)[-1] == "--config=configs/leaderboard_smollm2.py"
  assert command(with_config(given)) == "python -m launch.leaderboard --task=smollm2 --workdir=x"


@pytest.mark.parametrize("module", [leaderboard_fashion_mnist, leaderboard_smollm2])
def test_every_method_of_a_task_is_a_config_of_its_own(module):
  config = module.get_config().to_dict()
  methods = config["leaderboard"]["methods"]
  assert config["leaderboard"]["reference"] in methods and len(methods) >= 18
  seen = []
  for overrides in methods.values():
    own = merge(config, overrides)
    check_config(own)
    # The data say how many examples there are.
    counted = own["objective"]["name"] == "contrastive_representation"
    build_objective(own["objective"] | ({"examples": 100} if counted else {}))
    seen.append(json.dumps([own["objective"], own["program"], own["data"]], sort_keys=True))
  assert len(set(seen)) == len(seen)
