"""EchoAtt as a job: the student begins as its teacher, and two stages repair it."""

import jax
import numpy as np
import pytest

from configs import echoatt
from kdjax import models
from kdjax.errors import KdjaxError
from kdjax.models.transformer.sharing import block_ends, share
from kdjax.teachers import frozen
from kdjax.train.build import build_program
from kdjax.train.config import check_config
from kdjax.train.job import dry_run, variant_of
from kdjax.train.stage import train
from kdjax.train.stages import stages_of
from kdjax.train.streams import load_data
from tests.end_to_end.text import config_of, text_folder
from tests.models.convert.folders import FOLDER

MAP = (0, 1, 1, 3)
MODEL = {"name": "decoder", "width": 16, "depth": 4, "heads": 2}


@pytest.mark.parametrize("variant", ["small", "paper"])
def test_stages_are_signals_then_labels_and_the_baseline_labels_alone(variant):
  config = echoatt.get_config(variant).to_dict()
  signals, labels = stages_of(config)
  student = signals.config["student"]
  assert signals.config["objective"]["attention_from"] == student["attention_from"]
  assert block_ends(student["attention_from"])
  assert labels.config["objective"]["name"] == "cross_entropy"
  assert labels.config["student"] == student
  baseline = variant_of(config, "baseline")
  check_config(baseline)
  steps = sum(stage.config["total_steps"] for stage in (signals, labels))
  assert (baseline["total_steps"], baseline["stages"]) == (steps, None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  yield from text_folder(tmp_path_factory)


def tiny(folder, **changes):
  config = config_of(folder, total_steps=2, teacher__train__total_steps=6, **changes)
  config["teacher"]["model"] = MODEL
  config["student"] = MODEL | {"attention_from": MAP, "inherit": True}
  config["objective"] = {"name": "cross_entropy", "chunk_size": 16}
  signals = {"name": "echoatt", "attention_from": MAP, "chunk_size": 16}
  config["stages"] = ({"name": "signals", "objective": signals}, {"name": "labels"})
  config["samples"] = {"prompts": ["abc"], "max_new_tokens": 4}
  return config


def test_a_student_begins_with_its_teachers_weights(folder):
  config = tiny(folder) | {"stages": None, "total_steps": 1}
  config["optimizer"]["learning_rate"] = 1e-9
  model = models.decoder(num_classes=259, width=16, depth=4, heads=2)
  weights = model.init(jax.random.key(3))
  result, _ = train(config, folder / "still", frozen(model, weights), name="still")
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    jax.device_get(result.state.params),
    jax.device_get(share(weights.params, MAP)),
  )


def test_a_pretrained_student_shares_its_own_weights(folder):
  path = str(FOLDER / "llama")
  whole = models.pretrained(path=path)
  depth = whole.spec.depth
  sources = (0, *[1] * (depth - 1)) if depth > 2 else (0, 0)
  model = models.pretrained(path=path, attention_from=sources)
  jax.tree.map(
    np.testing.assert_array_equal,
    model.start().params,
    jax.jit(lambda p: share(p, sources))(whole.start().params),
  )


def test_a_teacher_that_cannot_be_inherited_from_is_told(folder):
  config = tiny(folder)
  with pytest.raises(KdjaxError, match="of the same sizes"):
    dry_run(config | {"teacher": config["teacher"] | {"model": MODEL | {"mlp_width": 8}}})
  data = load_data(config["data"]).whole
  with pytest.raises(KdjaxError, match="a single teacher"):
    build_program(config, data, None)
  model = models.decoder(num_classes=259, width=16, depth=4, heads=2)
  teacher = frozen(model, jax.eval_shape(model.init, jax.random.key(0)))
  assert build_program(config, data, teacher)[1].start is not None
  with pytest.raises(KdjaxError, match="not both"):
    models.decoder(num_classes=9, width=4, depth=1, heads=1, inherit=True, embeddings="x")
