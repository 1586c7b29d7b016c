"""A checkpoint of CLIP as a teacher, and the image tower of one as its student."""

from pathlib import Path

import jax
import numpy as np

from configs import prompt_kd
from kdjax.data import arrays
from kdjax.models import ModelVars
from kdjax.programs.base import Start
from kdjax.train.build import build_program
from kdjax.train.checkpoint import fingerprint
from kdjax.train.pretrained import build_teacher

CLIP = Path(__file__).parents[2] / "third_party" / "reference" / "image_models" / "clip"


def taught():
  """(config, data) of a teacher from a checkpoint of CLIP, for three classes with texts."""
  rng = np.random.default_rng(0)
  image, label = rng.random((8, 16, 16, 3), np.float32), np.arange(8) % 3
  prompts = ((48, 7, 49), (48, 9, 49), (48, 30, 49))
  data = arrays(image, label, image, label)._replace(class_texts=prompts, vocab=50, novel=(2,))
  config = prompt_kd.get_config().to_dict() | {"stages": None}
  config["teacher"] |= {"model": {"name": "pretrained_clip", "path": str(CLIP)}}
  return config, data


def test_what_a_teacher_computes_of_its_classes_is_the_same_on_every_mesh():
  """Otherwise a run that goes on over other devices would find another teacher."""
  found = set()
  for sizes in ({"data": 1}, {"data": 2, "fsdp": 2}, {"data": 1, "fsdp": 2, "tensor": 4}):
    config, data = taught()
    config["mesh"] |= {"data": 1, "fsdp": 1, "tensor": 1} | sizes
    found.add(fingerprint(build_teacher(config, data).frozen))
  assert len(found) == 1


def test_a_checkpoint_of_clip_teaches_and_another_is_taught():
  config, data = taught()
  image, label = data.train.images, np.arange(8) % 3
  tower = {"name": "clip_image_tower", "path": str(CLIP), "prompts": 2, "prompt_depth": 2}
  student = {"name": "open_vocabulary", "image_model": tower, "embedding": 8, "features": None}
  config["student"] = student | {"trained": "prompts"}
  config["optimizer"]["groups"] = (
    {"pattern": "prompts", "scale": 1.0},
    {"pattern": "", "scale": 0.0},
  )
  teacher = build_teacher(config, data)
  assert set(teacher.frozen.params) == {"image", "classes", "logit_scale"}  # no text tower
  program, model = build_program(config, data, teacher)
  begun = model.start()
  np.testing.assert_allclose(begun.params["classes"], teacher.frozen.params["classes"], rtol=1e-6)
  batch = {"image": image, "label": label.astype(np.int32), "mask": np.ones(8, bool)}

  @jax.jit
  def step(batch):
    state = program.init(jax.random.key(0), batch, Start(begun.params, begun.state))
    return state, program.step(state, program.frozen, batch)[0]

  with jax.numpy_dtype_promotion("standard"):  # as jobs run
    before, after = step(batch)
  without = dict(after.params["image"]), dict(before.params["image"])
  assert (without[0].pop("prompts") != without[1].pop("prompts")).any()
  jax.tree.map(np.testing.assert_array_equal, *without)
  told = teacher.apply(teacher.frozen, (), batch, taps=frozenset({"logits"})).logits
  own, _ = model.apply(
    ModelVars(before.params, before.model_state), batch, taps=frozenset({"logits"})
  )
  assert told.shape == own.logits.shape == (8, 3)
