"""CLIP computes what PyTorch's transformers computes, and goes back to the same files."""

import doctest
import functools
import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.models import (
  ModelVars,
  clip,
  clip_image_tower,
  pretrained,
  pretrained_clip,
  pretrained_image,
)
from kdjax.models.base import overlay
from kdjax.models.convert import config_of, open_checkpoint, spec_of, tensors_of, write_checkpoint
from kdjax.train.mesh import batch_sharding, make_mesh, shardings

FOLDER = Path(__file__).parents[3] / "third_party" / "reference" / "image_models"
SHAPE = (16, 16, 3)
BOTH = pytest.mark.parametrize("name", ["clip", "clip_old"])  # they end their texts differently


@functools.cache
def reference(name):
  return dict(np.load(FOLDER / name / "outputs.npz", allow_pickle=False))


def opened(name="clip", **options):
  given = {
    "num_classes": 3,
    "image_shape": SHAPE,
    "class_texts": reference(name)["prompts"].tolist(),
  }
  given["normalize"] = False  # as transformers' model, which is given normalised images
  return pretrained_clip(path=str(FOLDER / name), **given | options)


@BOTH
def test_outputs_are_those_of_transformers(name):
  model, wanted = opened(name), reference(name)
  variables, batch = model.start(), {"image": jnp.asarray(wanted["image"])}
  taps = frozenset({"logits", "hidden", "head", "embedding", "hidden_states"})
  out = jax.jit(lambda v: model.apply(v, batch, taps=taps)[0])(variables)
  np.testing.assert_allclose(out.logits, wanted["logits"], atol=1e-4)
  assert np.abs(wanted["logits"]).max() > 1
  np.testing.assert_allclose(out.head.weight, wanted["text_embeds"], atol=1e-5)
  length = jnp.linalg.norm(out.embedding, axis=-1, keepdims=True)
  np.testing.assert_allclose(out.embedding / length, wanted["image_embeds"], atol=1e-5)
  np.testing.assert_allclose(out.head.logits(out.hidden), out.logits, atol=1e-5)
  assert out.hidden_states.shape == (2, 2, 17, 24)


def test_the_two_ends_of_a_text_are_told_apart():
  assert opened("clip").spec.end == 49
  assert opened("clip_old").spec.end is None


@BOTH
def test_written_back_it_is_the_same_checkpoint(name, tmp_path):
  model, checkpoint = opened(name), open_checkpoint(FOLDER / name)
  assert spec_of(config_of(model.spec), checkpoint.names) == model.spec
  write_checkpoint(tmp_path / "out", config_of(model.spec), tensors_of(model, model.start()))
  back = open_checkpoint(tmp_path / "out")
  assert back.names == checkpoint.names
  for each in back.names:
    np.testing.assert_array_equal(back.read(each), checkpoint.read(each), err_msg=each)


def applied(model, variables, batch, *taps):
  """The outputs, in one program."""
  taps = frozenset(taps or {"logits"})
  return jax.jit(lambda v, b: model.apply(v, b, taps=taps)[0])(variables, batch)


def test_settled_it_says_the_same_and_has_no_text_tower():
  model = opened()
  settled, settle = model.settled
  variables, batch = model.start(), {"image": jnp.asarray(reference("clip")["image"])}
  once = settle(variables)
  assert set(once.params) == {"image", "classes", "logit_scale"}
  shapes = jax.tree.map(jnp.shape, jax.eval_shape(settled.init, jax.random.key(0)))
  assert jax.tree.map(jnp.shape, once) == shapes
  asked = ("logits", "hidden", "embedding")
  given, wanted = (applied(m, v, batch, *asked) for m, v in ((settled, once), (model, variables)))
  for tap in asked:
    np.testing.assert_allclose(getattr(given, tap), getattr(wanted, tap), atol=1e-5)


def test_the_image_tower_alone_with_and_without_prompts():
  wanted, batch = opened(), {"image": jnp.asarray(reference("clip")["image"])}
  embedding = applied(wanted, wanted.start(), batch, "embedding").embedding
  given = {"path": str(FOLDER / "clip"), "num_classes": 8, "image_shape": SHAPE}
  given["normalize"] = False
  tower = clip_image_tower(**given)
  np.testing.assert_allclose(applied(tower, tower.start(), batch).logits, embedding, atol=1e-5)
  prompted = clip_image_tower(**given, prompts=2, prompt_depth=2)
  started = overlay(prompted.init(jax.random.key(0)), prompted.start())
  assert started.params["prompts"].shape == (2, 2, 24)
  np.testing.assert_array_equal(started.params["position"], tower.start().params["position"])
  assert not np.allclose(applied(prompted, started, batch).logits, embedding, atol=1e-3)


def test_example():
  result = doctest.testmod(sys.modules[clip.__module__])
  assert result.attempted > 0 and result.failed == 0


def test_eight_devices_change_neither_value_nor_gradient():
  model, image = opened(), jnp.asarray(reference("clip")["image"])
  batch, variables = {"image": jnp.tile(image, (4, 1, 1, 1))}, model.start()

  @jax.jit
  def gradient(params, batch):
    def loss(params):
      out, _ = model.apply(ModelVars(params, {}), batch)
      return jax.nn.logsumexp(out.logits, axis=-1).mean()

    return jax.value_and_grad(loss)(params)

  mesh = make_mesh(data=4, fsdp=2)
  rules = {"embed": "fsdp", "heads": None, "mlp": "fsdp"}
  placed = shardings(variables, model.axes(), rules, mesh)
  spread = jax.device_put(variables, placed).params, jax.device_put(batch, batch_sharding(mesh))
  assert len(spread[0]["text"]["embed"]["tokens"].sharding.device_set) == 8
  alone = gradient(variables.params, batch)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), alone, gradient(*spread)
  )


def test_images_in_the_unit_range_are_normalised():
  image = jnp.asarray(reference("clip")["image"])
  raw = image * jnp.array([0.26862954, 0.26130258, 0.27577711])[None, None, None]
  raw += jnp.array([0.48145466, 0.4578275, 0.40821073])[None, None, None]
  model = opened(normalize=True)
  settled, settle = model.settled
  for given, weights in ((model, model.start()), (settled, settle(model.start()))):
    logits = applied(given, weights, {"image": raw}).logits
    np.testing.assert_allclose(logits, reference("clip")["logits"], atol=1e-4)


def test_a_gradient_reaches_both_towers_and_the_scale_in_bfloat16_too():
  for dtype in ("float32", "bfloat16"):
    model = opened(dtype=dtype)
    batch = {"image": jnp.asarray(reference("clip")["image"])}
    variables = model.start()

    def loss(params, model=model, batch=batch, variables=variables):
      out, _ = model.apply(variables._replace(params=params), batch)
      return jax.nn.logsumexp(out.logits, axis=-1).sum()

    with jax.numpy_dtype_promotion("standard"):  # the gradient of JAX's attention needs it
      grads = jax.jit(jax.grad(loss))(variables.params)
    for leaf in jax.tree.leaves(grads):
      assert np.isfinite(leaf).all() and jnp.abs(leaf).max() > 0


def test_what_does_not_fit_is_told(tmp_path):
  with pytest.raises(KdjaxError, match=r"images of shape \(16, 16, 3\); the data have \(8, 8, 3\)"):
    opened(image_shape=(8, 8, 3))
  with pytest.raises(KdjaxError, match="'class_texts' is '3 rows'; wanted 2 rows"):
    opened(num_classes=2)
  with pytest.raises(KdjaxError, match="tokens from 0 to 49"):
    opened(class_texts=[[50], [1], [1]])
  with pytest.raises(KdjaxError, match="vit model; a CLIP is wanted"):
    clip_image_tower(path=str(FOLDER / "vit"), num_classes=8, image_shape=SHAPE)
  with pytest.raises(KdjaxError, match="'num_classes' is 5; wanted 8"):
    clip_image_tower(path=str(FOLDER / "clip"), num_classes=5, image_shape=SHAPE)
  with pytest.raises(KdjaxError, match="use pretrained_clip"):
    pretrained_image(path=str(FOLDER / "clip"), num_classes=5, image_shape=SHAPE)
  with pytest.raises(KdjaxError, match="use the model pretrained_clip"):
    pretrained(path=str(FOLDER / "clip"))
  folder = shutil.copytree(FOLDER / "clip", tmp_path / "clip")
  config = json.loads((folder / "config.json").read_text())
  config["text_config"]["hidden_act"] = "relu"
  (folder / "config.json").write_text(json.dumps(config))
  with pytest.raises(KdjaxError, match=r"hidden_act = 'relu' of a 'clip' model"):
    pretrained_clip(path=str(folder), num_classes=1, image_shape=SHAPE, class_texts=[[1]])
  with pytest.raises(KdjaxError, match="'text_heads' is 3; wanted a divisor"):
    clip(num_classes=1, image_shape=(8, 8, 1), class_texts=[[1]], vocab=2, text_heads=3)
