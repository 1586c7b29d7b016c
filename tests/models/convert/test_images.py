"""Image models compute what PyTorch's transformers computes, and go back to the same files."""

import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.models import pretrained, pretrained_image, vit
from kdjax.models.base import overlay
from kdjax.models.convert import config_of, open_checkpoint, spec_of, tensors_of, write_checkpoint
from kdjax.train.mesh import TEACHER_RULES, make_mesh, shardings

FOLDER = Path(__file__).parents[3] / "third_party" / "reference" / "image_models"
NAMES = ["convnext", "deit", "deit_distilled", "resnet_basic", "resnet_bottleneck"]
NAMES += ["segformer", "swin", "vit"]
LABELS = 5
EVERY = pytest.mark.parametrize("name", NAMES)


@functools.cache
def reference(name):
  return dict(np.load(FOLDER / name / "outputs.npz", allow_pickle=False))


def opened(name, **options):
  shape = reference(name)["image"].shape[1:]
  return pretrained_image(
    path=str(FOLDER / name), image_shape=shape, **{"num_classes": LABELS} | options
  )


@functools.cache
def outputs(name):
  model = opened(name)
  taps = model.taps & {"logits", "features", "hidden_states", "distillation_logits"}
  batch = {"image": jnp.asarray(reference(name)["image"])}
  return model, jax.jit(lambda v: model.apply(v, batch, taps=taps)[0])(model.start())


@EVERY
def test_outputs_are_those_of_transformers(name):
  _, out = outputs(name)
  wanted = reference(name)
  logits = wanted["logits"].reshape(out.logits.shape)  # of maps, place by place
  np.testing.assert_allclose(out.logits, logits, atol=1e-4)
  assert np.abs(wanted["logits"]).max() > 0.3
  if name == "deit_distilled":
    np.testing.assert_allclose(out.distillation_logits, wanted["distillation_logits"], atol=1e-4)
    own = 2 * out.logits - out.distillation_logits
    np.testing.assert_allclose(own, wanted["cls_logits"], atol=1e-4)
  if out.hidden_states is not None:  # theirs begin with what the first layer reads
    for layer, states in enumerate(out.hidden_states[:-1]):
      np.testing.assert_allclose(states, wanted[f"state{layer + 1}"], atol=1e-4)
  elif name != "swin":  # whose own states come after patches are merged
    first = 0 if name == "segformer" else 1  # others begin with what the first stage reads
    stages = [features for stage, features in out.features.items() if stage.startswith("stage")]
    for place, features in enumerate(stages, first):
      np.testing.assert_allclose(features, wanted[f"state{place}"], atol=1e-4)


def test_swin_agrees_after_the_last_stage():
  _, out = outputs("swin")
  np.testing.assert_allclose(out.features["stage2"], reference("swin")["state2"], atol=1e-4)


@EVERY
def test_written_back_it_is_the_same_checkpoint(name, tmp_path):
  model, _ = outputs(name)
  checkpoint = open_checkpoint(FOLDER / name)
  assert spec_of(config_of(model.spec), checkpoint.names) == model.spec
  architecture = json.loads((FOLDER / name / "config.json").read_text())["architectures"]
  assert config_of(model.spec)["architectures"] == architecture
  tensors = tensors_of(model, model.start())
  write_checkpoint(tmp_path / "out", config_of(model.spec), tensors)
  back = open_checkpoint(tmp_path / "out")
  counters = {each for each in checkpoint.names if each.endswith("num_batches_tracked")}
  assert back.names == checkpoint.names - counters
  for each in back.names:
    np.testing.assert_array_equal(back.read(each), checkpoint.read(each), err_msg=each)


@pytest.mark.parametrize("name", ["resnet_basic", "vit"])
def test_another_number_of_classes_starts_with_a_random_head(name):
  model = opened(name, num_classes=3)
  variables = model.init(jax.random.key(0))
  started = overlay(variables, model.start())
  np.testing.assert_array_equal(
    started.params["head"]["kernel"], variables.params["head"]["kernel"]
  )
  assert started.params["head"]["kernel"].shape[-1] == 3
  whole = opened(name).start()
  assert set(whole.params) - set(model.start().params) == {"head"}
  batch = {"image": jnp.asarray(reference(name)["image"])}
  taps = frozenset({"hidden"})
  given = model.apply(started, batch, taps=taps)[0].hidden
  wanted = opened(name).apply(whole, batch, taps=taps)[0].hidden
  np.testing.assert_allclose(given, wanted, atol=1e-5)


def test_weights_are_read_onto_a_mesh():
  model = opened("resnet_bottleneck")
  mesh = make_mesh(data=2, fsdp=4)
  abstract = jax.eval_shape(model.init, jax.random.key(0))
  placed = model.start(shardings(abstract, model.axes(), TEACHER_RULES, mesh))
  jax.tree.map(np.testing.assert_array_equal, placed, model.start())


def test_what_does_not_fit_is_told(tmp_path):
  with pytest.raises(KdjaxError, match=r"images of shape \(16, 16, 3\); the data have \(8, 8, 3\)"):
    pretrained_image(path=str(FOLDER / "vit"), num_classes=5, image_shape=(8, 8, 3))
  with pytest.raises(KdjaxError, match=r"images of shape \('any', 'any', 3\)"):
    pretrained_image(path=str(FOLDER / "resnet_basic"), num_classes=5, image_shape=(32, 32, 1))
  with pytest.raises(KdjaxError, match="vit model of images; use the model pretrained_image"):
    pretrained(path=str(FOLDER / "vit"))
  texts = FOLDER.parent / "language_models" / "bert"
  with pytest.raises(KdjaxError, match="bert model of text; use pretrained"):
    pretrained_image(path=str(texts), num_classes=5, image_shape=(8, 8, 3))
  with pytest.raises(KdjaxError, match="has no Hugging Face format"):
    config_of(vit(num_classes=2, image_shape=(8, 8, 1), width=8, heads=2).spec)
  folder = shutil.copytree(FOLDER / "convnext", tmp_path / "convnext")
  config = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
  with pytest.raises(KdjaxError, match=r"hidden_act = 'relu'.* must be 'gelu'"):
    pretrained_image(path=str(folder), num_classes=5, image_shape=(32, 32, 3))
