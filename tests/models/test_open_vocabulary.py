"""Visual prompts, the projector, and a student that classifies by its teacher's class texts."""

import doctest
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax.errors import KdjaxError
from kdjax.models import ModelVars, clip, open_vocabulary, vit
from kdjax.models.clip import vision_spec
from kdjax.models.open_vocabulary import _projector
from kdjax.models.starts import adopting
from kdjax.models.vision_transformer import vit_model
from kdjax.objectives import prompt_kd
from kdjax.outputs import Head
from kdjax.programs import distill
from kdjax.programs.base import Start
from kdjax.teachers import frozen

REFERENCE = Path(__file__).parents[2] / "third_party" / "reference" / "clip_distillers.npz"
SHAPE, V, D = (8, 8, 1), 4, 6
NET = {
  "name": "vit",
  "patch": 4,
  "width": 8,
  "depth": 3,
  "heads": 2,
  "pool": "cls",
  "prompts": 2,
  "prompt_depth": 2,
}
GIVEN = {"image_model": NET, "num_classes": V, "image_shape": SHAPE, "embedding": D, "features": 5}
LOGITS = frozenset({"logits"})


@pytest.fixture(scope="module")
def reference():
  return dict(np.load(REFERENCE, allow_pickle=False))


@pytest.fixture(scope="module")
def batch():
  return {"image": jax.random.uniform(jax.random.key(0), (3, *SHAPE))}


@pytest.fixture(scope="module")
def teacher():
  model = clip(
    num_classes=V,
    image_shape=SHAPE,
    class_texts=[[1, 2, 0], [3, 0, 0], [2, 2, 0], [4, 1, 0]],
    vocab=5,
    embedding=D,
    width=8,
    depth=1,
    heads=2,
    text_width=8,
    text_depth=1,
    text_heads=2,
  )
  settled, settle = model.settled
  return frozen(settled, settle(model.init(jax.random.key(3))))


def started(model, teacher):
  def head_of(weights):
    images = {"image": jnp.zeros((1, *SHAPE))}
    return teacher.apply(weights, (), images, taps=frozenset({"head"})).head

  return adopting(model, head_of, teacher.frozen)


def test_example():
  result = doctest.testmod(sys.modules[open_vocabulary.__module__])
  assert result.attempted > 0 and result.failed == 0


def official(reference, depth):
  """The weights of the official tower in our names."""
  own = {k.split("/")[1]: v for k, v in reference.items() if k.startswith(f"tower{depth}/")}
  blocks = [
    {k.split(".", 3)[3]: v for k, v in own.items() if k.startswith(f"transformer.resblocks.{i}.")}
    for i in range(3)
  ]

  def stacked(name):
    return np.stack([block[name] for block in blocks])

  width, heads = 12, 2
  kernel = stacked("attn.in_proj_weight").reshape(3, 3, heads, width // heads, width)
  bias = stacked("attn.in_proj_bias").reshape(3, 3, heads, width // heads)
  projections = {
    name: {"kernel": kernel[:, i].transpose(0, 3, 1, 2), "bias": bias[:, i]}
    for i, name in enumerate(("query", "key", "value"))
  }
  out = stacked("attn.out_proj.weight").transpose(0, 2, 1).reshape(3, heads, -1, width)
  params = {
    "embed": {"kernel": own["conv1.weight"].transpose(2, 3, 1, 0).reshape(-1, width)},
    "class_token": own["class_embedding"][None],
    "position": own["positional_embedding"],
    "prompts": np.stack([own["VPT"], *(b["VPT_shallow"] for b in blocks if "VPT_shallow" in b)]),
    "embed_norm": {"scale": own["ln_pre.weight"], "bias": own["ln_pre.bias"]},
    "norm": {"scale": own["ln_post.weight"], "bias": own["ln_post.bias"]},
    "head": {"kernel": own["proj"]},
    "blocks": projections
    | {
      "out": {"kernel": out, "bias": stacked("attn.out_proj.bias")},
      "up": {
        "kernel": stacked("mlp.c_fc.weight").transpose(0, 2, 1),
        "bias": stacked("mlp.c_fc.bias"),
      },
      "down": {
        "kernel": stacked("mlp.c_proj.weight").transpose(0, 2, 1),
        "bias": stacked("mlp.c_proj.bias"),
      },
      "norm_attention": {"scale": stacked("ln_1.weight"), "bias": stacked("ln_1.bias")},
      "norm_mlp": {"scale": stacked("ln_2.weight"), "bias": stacked("ln_2.bias")},
    },
  }
  return jax.tree.map(jnp.asarray, params)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_deep_prompts_are_those_of_the_official_tower(reference, depth):
  sizes = {"image": (8, 8), "channels": 3, "num_classes": 10, "patch": 4, "width": 12, "depth": 3}
  model = vit_model(vision_spec(**sizes, heads=2, mlp_width=48, prompts=2, prompt_depth=depth))
  params, image = official(reference, depth), {"image": jnp.asarray(reference["image"])}
  shapes = jax.tree.map(jnp.shape, jax.eval_shape(model.init, jax.random.key(0)).params)
  assert shapes == jax.tree.map(jnp.shape, params)

  def loss(params):
    out, _ = model.apply(ModelVars(params, {}), image)
    return jnp.square(out.logits).sum(), out.logits

  grad, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
  np.testing.assert_allclose(logits, reference[f"tower{depth}"], rtol=1e-4, atol=1e-4)
  wanted = reference[f"tower{depth}_prompt_grad"]
  # Its gradient went through half precision, which keeps 11 bits.
  np.testing.assert_allclose(
    grad["prompts"][0], wanted, rtol=2e-3, atol=1e-3 * np.abs(wanted).max()
  )
  assert jnp.abs(grad["prompts"]).max(axis=(1, 2)).min() > 0  # every depth has its own


def test_the_projector_is_the_official_one(reference):
  own = {k.split("/")[1]: v for k, v in reference.items() if k.startswith("projector/")}
  params = {
    "up": {"kernel": own["conv1.0.weight"][:, :, 0, 0].T, "bias": own["conv1.0.bias"]},
    "norm": {"scale": own["conv1.1.weight"], "bias": own["conv1.1.bias"]},
    "down": {"kernel": own["conv1.3.weight"][:, :, 0, 0].T, "bias": own["conv1.3.bias"]},
  }
  model = _projector(6, 10)
  variables = model.init(jax.random.key(0))._replace(params=jax.tree.map(jnp.asarray, params))

  def loss(x):
    taps = frozenset({"embedding"})
    out, state = model.apply(variables, {"features": x}, taps=taps, train=True)
    return jnp.square(out.embedding).sum(), (out.embedding, state)

  run = jax.jit(jax.grad(loss, has_aux=True))
  grad, (out, state) = run(jnp.asarray(reference["projector_in"]))
  np.testing.assert_allclose(out, reference["projector_out"], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(grad, reference["projector_grad"], rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(state["norm"]["mean"], own["conv1.1.running_mean"], atol=1e-5)


def test_prompts_are_behind_the_patches_and_no_mean_reads_them():
  given = {"num_classes": 2, "image_shape": SHAPE, "patch": 4, "width": 8, "depth": 2, "heads": 2}
  plain, prompted = vit(**given), vit(**given, prompts=3)
  variables = plain.init(jax.random.key(0))
  image, taps = {"image": jnp.ones((1, *SHAPE))}, frozenset({"hidden_states", "segment"})
  prompts = {"prompts": jnp.zeros((1, 3, 8))}
  both = variables._replace(params=variables.params | prompts)
  out = jax.jit(lambda v: prompted.apply(v, image, taps=taps)[0])(both)
  assert out.hidden_states.shape == (2, 1, 4 + 3, 8)
  np.testing.assert_allclose(
    out.segment(out.hidden_states[0], 1, 2), out.hidden_states[1], atol=1e-5
  )
  deep = vit(**given, prompts=3, prompt_depth=2)
  variables = deep.init(jax.random.key(1))
  out = jax.jit(lambda v: deep.apply(v, image, taps=taps)[0])(variables)
  np.testing.assert_allclose(
    out.segment(out.hidden_states[0], 1, 2), out.hidden_states[1], atol=1e-5
  )


def test_logits_are_cosines_with_the_teachers_classes(teacher, batch):
  model = started(open_vocabulary(**GIVEN, temperature=0.1), teacher)
  begun = model.start()
  variables = model.init(jax.random.key(1))
  variables = variables._replace(params=variables.params | begun.params)
  taps = frozenset({"logits", "hidden", "head", "embedding"})
  out = jax.jit(lambda v: model.apply(v, batch, taps=taps)[0])(variables)
  told = teacher.apply(teacher.frozen, (), batch, taps=frozenset({"head"})).head
  np.testing.assert_allclose(out.head.weight, told.weight, rtol=1e-6)
  f, w = np.asarray(out.embedding), np.asarray(told.weight)
  cosines = (f @ w.T) / np.linalg.norm(f, axis=1)[:, None] / np.linalg.norm(w, axis=1)
  np.testing.assert_allclose(out.logits, 10 * cosines, rtol=1e-4, atol=1e-4)
  assert np.abs(out.logits).max() <= 10 + 1e-4


def test_permuted_classes_permute_the_logits(teacher, batch):
  model = open_vocabulary(**GIVEN)
  variables = model.init(jax.random.key(1))
  classes = jax.random.normal(jax.random.key(2), (V, D))
  order = np.array([2, 0, 3, 1])
  logits, permuted = (
    model.apply(
      variables._replace(params=variables.params | model.adopt(Head(table, tied=True))), batch
    )[0].logits
    for table in (classes, classes[order])
  )
  np.testing.assert_allclose(logits[:, order], permuted, rtol=1e-6)


@pytest.mark.parametrize("trained", ["all", "prompts"])
def test_what_is_frozen_does_not_move(teacher, batch, trained):
  student = started(open_vocabulary(**GIVEN, trained=trained), teacher)
  program = distill(student, prompt_kd(), optax.sgd(1e-2), teacher=teacher)
  rows = batch | {"label": jnp.full(3, -1), "mask": jnp.ones(3, bool)}

  @jax.jit
  def two_steps(rows):
    begun = student.start()
    state = program.init(jax.random.key(0), rows, Start(begun.params, begun.state))
    after, _ = program.step(program.step(state, program.frozen, rows)[0], program.frozen, rows)
    return state, after

  before, after = two_steps(rows)
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), before.params, after.params)
  assert not moved["classes"]
  assert all(jax.tree.leaves(moved["projector"])) and moved["image"]["prompts"]
  others = {name: part for name, part in moved["image"].items() if name != "prompts"}
  assert any(jax.tree.leaves(others)) == (trained == "all")
  means = before.model_state["projector"]["norm"], after.model_state["projector"]["norm"]
  assert (means[0]["mean"] != means[1]["mean"]).any()


def test_what_does_not_fit_is_told(teacher):
  with pytest.raises(KdjaxError, match=r"set config.student.embedding = 6"):
    started(open_vocabulary(**GIVEN | {"embedding": 9}), teacher)
  with pytest.raises(KdjaxError, match="the image model has no prompts"):
    open_vocabulary(**GIVEN | {"image_model": {"name": "mlp"}}, trained="prompts")
  with pytest.raises(KdjaxError, match="'temperature' is 0; wanted a number > 0"):
    open_vocabulary(**GIVEN, temperature=0)
  with pytest.raises(KdjaxError, match=r"image_model.depht is not an argument of 'vit'"):
    open_vocabulary(**GIVEN | {"image_model": NET | {"depht": 2}})
  with pytest.raises(KdjaxError, match="must be a mapping with a name"):
    open_vocabulary(**GIVEN | {"image_model": {}})
  with pytest.raises(KdjaxError, match="'prompt_depth' is 4; wanted 1 to depth, 3"):
    open_vocabulary(**GIVEN | {"image_model": NET | {"prompt_depth": 4}})
