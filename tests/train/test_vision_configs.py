"""The configs of the vision distillers name what exists; their baseline is the student alone."""

import importlib

import pytest

from kdjax.data import digits
from kdjax.train.build import build_model, build_objective
from kdjax.train.config import check_config, merge
from kdjax.train.streams import augmentation

KEYS = (
  "attention_transfer",
  "contrastive_representation",
  "curriculum_temperature",
  "fitnet",
  "function_matching",
  "multi_level",
  "neuron_selectivity",
  "overhaul",
  "probabilistic_transfer",
  "relational_kd",
  "review",
  "scale_kd",
  "similarity_preserving",
  "variational_information",
)


@pytest.mark.parametrize("variant", ["small", "paper"])
@pytest.mark.parametrize("key", KEYS)
def test_names_exist_and_taps_are_given(key, variant):
  config = importlib.import_module(f"configs.{key}").get_config(variant).to_dict()
  check_config(config)
  data = digits()
  objective = build_objective(config["objective"], data=data)
  for side, spec in ((0, config["student"]), (1, config["teacher"]["model"])):
    assert objective.taps[side] <= build_model(spec, data, "config.student").taps
  augmentation(config["data"]["augment"])
  alone = merge(config, config["baseline"])
  check_config(alone)
  assert alone["objective"] == {"name": "cross_entropy"}
  assert alone["data"]["labelled_only"] == (variant == "small")
  names = str(alone["data"]["augment"])
  assert "mixup" not in names and "two_views" not in names


def test_a_variant_that_does_not_exist_is_told():
  module = importlib.import_module("configs.fitnet")
  with pytest.raises(ValueError, match="what exists: small, paper"):
    module.get_config("large")


def test_the_number_of_examples_comes_from_the_data():
  spec = {"name": "contrastive_representation", "negatives": 5}
  objective = build_objective(spec, data=digits())
  assert objective.prepare is not None
