"""G2SD: the official models, loss and gradients; masks that both sides share."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.data import augment
from kdjax.data.base import unstack
from kdjax.errors import KdjaxError
from kdjax.losses import smooth_hint
from kdjax.models import masked_autoencoder
from kdjax.models.base import ModelVars
from kdjax.objectives import g2sd, masked_reconstruction
from kdjax.objectives.base import ObjectiveVars, total
from kdjax.outputs import Outputs
from tests.objectives.helpers import applied

REFERENCE = Path(__file__).parents[2] / "third_party" / "reference" / "g2sd.npz"
SHARED = {"num_classes": 3, "image_shape": (16, 16, 3), "patch": 4, "mlp_ratio": 2}
LARGE = {"width": 24, "depth": 3, "heads": 3, "decoder_width": 16}
LARGE |= {"decoder_depth": 3, "decoder_heads": 4}
SMALL = {"width": 12, "depth": 2, "heads": 2, "decoder_width": 8}
SMALL |= {"decoder_depth": 2, "decoder_heads": 2}


@pytest.fixture(scope="module")
def stored():
  return dict(np.load(REFERENCE, allow_pickle=False))


def _affine(weights, name, kernel="kernel"):
  weight = weights[f"{name}.weight"]
  return {kernel: weight.T if weight.ndim == 2 else weight, "bias": weights[f"{name}.bias"]}


def _block(weights, at, heads):
  width = weights[f"{at}.norm1.weight"].shape[0]
  joint = weights[f"{at}.attn.qkv.weight"].reshape(3, heads, width // heads, width)
  bias = weights[f"{at}.attn.qkv.bias"].reshape(3, heads, width // heads)
  out = _affine(weights, f"{at}.attn.proj")
  out["kernel"] = out["kernel"].reshape(heads, width // heads, width)
  return {
    name: {"kernel": joint[i].transpose(2, 0, 1), "bias": bias[i]}
    for i, name in enumerate(("query", "key", "value"))
  } | {
    "out": out,
    "norm_attention": _affine(weights, f"{at}.norm1", "scale"),
    "norm_mlp": _affine(weights, f"{at}.norm2", "scale"),
    "up": _affine(weights, f"{at}.mlp.fc1"),
    "down": _affine(weights, f"{at}.mlp.fc2"),
  }


def converted(stored, who, sizes):
  """(the model, official weights in the form of ours)."""
  weights = {k.split(":")[1]: v for k, v in stored.items() if k.startswith(f"{who}:")}
  model = masked_autoencoder(**SHARED, **sizes)
  variables = model.init(jax.random.key(0))

  def blocks(prefix, depth, heads):
    every = [_block(weights, f"{prefix}.{i}", heads) for i in range(depth)]
    return jax.tree.map(lambda *parts: np.stack(parts), *every)

  kernel = weights["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
  params = variables.params | {
    "embed": {
      "kernel": kernel.reshape(-1, kernel.shape[-1]),
      "bias": weights["patch_embed.proj.bias"],
    },
    "class_token": weights["cls_token"][0],
    "mask_token": weights["mask_token"][0],
    "encoder": blocks("blocks", sizes["depth"], sizes["heads"]),
    "decoder": blocks("decoder_blocks", sizes["decoder_depth"], sizes["decoder_heads"]),
    "norm": _affine(weights, "norm", "scale"),
    "decoder_norm": _affine(weights, "decoder_norm", "scale"),
    "decoder_embed": _affine(weights, "decoder_embed"),
    "pixels": _affine(weights, "decoder_pred"),
  }
  predictor = (
    {f"layer{i}": _affine(weights, f"decoderfeature_pred.fc{i + 1}") for i in range(2)}
    if who == "student"
    else {}
  )
  wanted = jax.tree.map(jnp.shape, variables.params)
  assert jax.tree.map(jnp.shape, params) == wanted
  return model, jax.tree.map(jnp.asarray, ModelVars(params, variables.state)), predictor


@pytest.fixture
def official_masks(stored, monkeypatch):
  """The mask of the stored noise in place of that of seeds."""
  order = jnp.argsort(jnp.asarray(stored["noise"]), axis=1)
  masks = lambda seeds, patches: (order, jnp.argsort(order, axis=1))  # noqa: E731
  module = sys.modules["kdjax.models.masked_autoencoder"]  # the package has a function of its name
  monkeypatch.setattr(module, "visible_first", masks)


def test_models_loss_and_gradients_are_the_official_ones(stored, official_masks):
  batch = {"image": jnp.asarray(stored["image"]), "mask_seed": jnp.zeros(3, jnp.int32)}
  teacher, told, _ = converted(stored, "teacher", LARGE)
  student, own, predictor = converted(stored, "student", SMALL)
  variables = ObjectiveVars({"predictor": jax.tree.map(jnp.asarray, predictor)})
  taps = frozenset({"decoder_states", "masked", "reconstruction"})
  teacher_out = jax.jit(lambda v: teacher.apply(v, batch, taps=taps)[0])(told)
  np.testing.assert_allclose(teacher_out.decoder_states[1], stored["teacher_states"], atol=1e-4)
  np.testing.assert_array_equal(teacher_out.masked, stored["mask"].astype(bool))
  np.testing.assert_allclose(teacher_out.reconstruction, stored["reconstruction"], atol=1e-4)
  pixels = masked_reconstruction().apply(None, teacher_out, None, batch, step=0, rng=None)
  np.testing.assert_allclose(total(pixels), stored["pixel_loss"], rtol=1e-5)

  def loss(params, masked_only):
    out, _ = student.apply(own._replace(params=params), batch, taps=taps)
    objective = g2sd(teacher_block=2, masked_only=masked_only)
    return total(objective.apply(variables, out, teacher_out, batch, step=0, rng=None))

  value, slope = jax.jit(jax.value_and_grad(lambda p: loss(p, False)))(own.params)
  np.testing.assert_allclose(value, stored["all"], rtol=1e-5)
  np.testing.assert_allclose(
    jax.jit(lambda p: loss(p, True))(own.params), stored["masked"], rtol=1e-5
  )
  for name, ours in {
    "mask_token": slope["mask_token"][None],
    "decoder_embed.weight": slope["decoder_embed"]["kernel"].T,
    "blocks.0.mlp.fc1.weight": slope["encoder"]["up"]["kernel"][0].T,
  }.items():
    np.testing.assert_allclose(ours, stored[f"grad:{name}"], atol=1e-5, err_msg=name)


def test_the_loss_by_hand_and_what_it_does_not_see():
  # 0.25 at a difference of 1, 1 at 2, 3 at 4 for beta 2.
  teacher = jnp.array([[1.0, -1.0]] * 3)
  off = jnp.array([[1.0], [2.0], [4.0]])
  got = smooth_hint(teacher + off, teacher, beta=2.0, eps=0.0)
  np.testing.assert_allclose(got, [0.25, 1.0, 3.0], rtol=1e-5)
  keys = jax.random.split(jax.random.key(0), 2)
  student, teacher = (jax.random.normal(key, (4, 5, 8)) for key in keys)
  scaled = 3.0 * teacher + 7.0
  np.testing.assert_allclose(
    smooth_hint(student, teacher), smooth_hint(student, scaled), rtol=1e-4, atol=1e-5
  )
  slope = jax.grad(lambda t: smooth_hint(student, t).sum())(teacher)
  assert not slope.any()
  where = jnp.arange(5)[None] < jnp.array([[5], [0], [2], [1]])
  bad = student.at[1].set(jnp.nan)
  value, slope = jax.value_and_grad(lambda s: smooth_hint(s, teacher, where=where).sum())(bad)
  assert np.isfinite(value) and np.isfinite(slope).all()
  low = smooth_hint(student.astype(jnp.bfloat16), teacher.astype(jnp.bfloat16))
  assert low.dtype == jnp.float32
  np.testing.assert_allclose(low, smooth_hint(student, teacher), atol=0.05)
  with pytest.raises(KdjaxError, match=r"\(4, 5, 8\) and teacher_hidden \(4, 5, 7\)"):
    smooth_hint(student, teacher[..., :7])
  with pytest.raises(KdjaxError, match="beta is 0"):
    smooth_hint(student, teacher, beta=0)


def _pair(**changes):
  shared = {"num_classes": 3, "image_shape": (8, 8, 1), "depth": 1, "heads": 2}
  shared |= {"decoder_heads": 2, "decoder_depth": 2}
  large = masked_autoencoder(**(shared | {"width": 16, "decoder_width": 12} | changes))
  small = masked_autoencoder(**(shared | {"width": 8, "decoder_width": 8, "distilled": True}))
  return small, large


def test_both_models_hide_the_same_patches_by_the_seed_alone():
  small, large = _pair()
  image = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
  batch = {"image": image, "mask_seed": jnp.array([3, 3, 4, 5])}
  taps = frozenset({"masked", "decoder_states"})
  one, two = (
    model.apply(model.init(jax.random.key(2)), batch, taps=taps)[0] for model in (small, large)
  )
  np.testing.assert_array_equal(one.masked, two.masked)
  assert one.masked.sum(1).tolist() == [12] * 4
  np.testing.assert_array_equal(one.masked[0], one.masked[1])
  assert not np.array_equal(one.masked[0], one.masked[2])
  # What is hidden changes nothing.
  hidden = jnp.repeat(jnp.repeat(one.masked.reshape(4, 4, 4), 2, 1), 2, 2)[..., None]
  other = batch | {"image": jnp.where(hidden, 9.0, image)}
  again = small.apply(small.init(jax.random.key(2)), other, taps=taps)[0]
  np.testing.assert_array_equal(again.decoder_states, one.decoder_states)
  # Without a seed nothing is hidden, and the second head speaks.
  taps = frozenset({"masked", "logits", "distillation_logits"})
  whole = small.apply(small.init(jax.random.key(2)), {"image": image}, taps=taps)[0]
  assert not whole.masked.any()
  assert whole.logits.shape == whole.distillation_logits.shape == (4, 3)


def test_the_masked_places_alone_are_asked_for():
  small, large = _pair()
  image = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
  batch = {"image": image, "mask_seed": jnp.arange(4), "mask": jnp.array([1, 1, 1, 0], bool)}
  taps = frozenset({"masked", "decoder_states"})
  one, two = (
    model.apply(model.init(jax.random.key(2)), batch, taps=taps)[0] for model in (small, large)
  )
  for masked_only, count in ((True, 3 * 12), (False, 3 * 17)):
    out, variables = applied(g2sd(teacher_block=1, masked_only=masked_only), one, two, batch)
    assert out.loss[""].where.sum() == count
    assert variables.params["predictor"]["layer1"]["kernel"].shape == (12, 12)


def test_a_seed_of_its_own_for_each_image_and_epoch():
  batch = {"image": np.zeros((3, 2, 2, 1), np.float32), "index": np.arange(3)}
  rows, mask = unstack(batch), augment.mask_seed()
  made = [augment.augment_rows(rows, mask, seed=1, epochs=np.full(3, e)) for e in (0, 1, 0)]
  seeds = [each["mask_seed"] for each in made]
  np.testing.assert_array_equal(seeds[0], seeds[2])
  assert len({*seeds[0].tolist(), *seeds[1].tolist()}) == 6
  assert seeds[0].dtype == np.int32


def test_what_does_not_fit_is_told():
  states = jnp.zeros((2, 3, 17, 8))
  one, two = Outputs(decoder_states=states), Outputs(decoder_states=states[:, :, :5])
  with pytest.raises(KdjaxError, match="teacher_block = 4, but the teacher's decoder has 2"):
    applied(g2sd(), one, one, {})
  with pytest.raises(KdjaxError, match="decodes 17 tokens and the teacher 5"):
    applied(g2sd(teacher_block=1), one, two, {})
  with pytest.raises(KdjaxError, match="beta = 0"):
    g2sd(beta=0)
  for change, message in (
    ({"width": 18}, "width"),
    ({"mask_ratio": 0.99}, "leaves a patch"),
    ({"patch": 3}, "patch"),
    ({"decoder_heads": 5}, "decoder_heads"),
  ):
    with pytest.raises(KdjaxError, match=message):
      _pair(**change)
