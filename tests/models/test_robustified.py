"""A tuned copy of a part and three heads: what moves, what does not, which head is chosen."""

import doctest
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from kdjax import models
from kdjax.errors import KdjaxError
from kdjax.models import ModelVars, robustified
from kdjax.models.robustified import HEADS, chosen
from kdjax.objectives import robustify
from kdjax.programs import distill
from kdjax.teachers import frozen

SHAPE, V = (4, 4, 1), 3
NET = {"name": "mlp", "hidden": (16, 8)}
GIVEN = {"model": NET, "num_classes": V, "image_shape": SHAPE, "tuned": "layer_1"}
BOTH = frozenset({"logits", "head_logits"})


@pytest.fixture(scope="module")
def batch():
  images = jax.random.uniform(jax.random.key(0), (4, *SHAPE))
  label = jnp.array([0, 1, 2, -1])
  own = {"image": images, "second_image": 1 - images, "label": label}
  return own | {"mask": jnp.array([True, True, False, True]), "index": jnp.arange(4)}


def test_example():
  result = doctest.testmod(sys.modules[robustified.__module__])
  assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize(
  "net, tuned, last",
  [
    (NET, "layer_1", None),
    ({"name": "vit", "patch": 2, "width": 8, "depth": 3, "heads": 2}, "blocks", 1),
    ({"name": "resnet", "depth": 8, "width": 2}, "stage3", None),
  ],
)
def test_untrained_heads_all_say_what_the_model_says(batch, net, tuned, last):
  model = robustified(**GIVEN | {"model": net, "tuned": tuned, "last": last})
  plain = getattr(models, net["name"])(
    num_classes=V, image_shape=SHAPE, **{k: v for k, v in net.items() if k != "name"}
  )
  variables = model.init(jax.random.key(1))
  ranks = jax.tree.map(lambda spec: len(spec), model.axes(), is_leaf=_is_spec)
  assert ranks == jax.tree.map(jnp.ndim, variables)
  out, _ = jax.jit(lambda v: model.apply(v, batch, taps=BOTH, train=True))(variables)
  below = {k: v for k, v in variables.params.items() if k != "tuned"}
  wanted, _ = jax.jit(lambda v: plain.apply(v, batch))(ModelVars(below, variables.state))
  for head in HEADS:
    np.testing.assert_allclose(out.head_logits[head], wanted.logits, rtol=1e-5, atol=1e-5)
  # All agree: the combined head is chosen.
  np.testing.assert_allclose(out.logits, jax.nn.log_softmax(wanted.logits), rtol=1e-5, atol=1e-5)


def _is_spec(x):
  return isinstance(x, PartitionSpec)


def test_only_the_last_stacked_layers_are_copied():
  net = {"name": "vit", "patch": 2, "width": 8, "depth": 3, "heads": 2}
  model = robustified(**GIVEN | {"model": net, "tuned": "blocks/up", "last": 1})
  layers = model.init(jax.random.key(0)).params["tuned"]["layers"]
  assert {name: x.shape for name, x in layers.items()} == {
    "blocks/up/kernel": (1, 8, 32),
    "blocks/up/bias": (1, 32),
  }


def test_training_moves_the_copies_and_never_what_the_clean_head_says(batch):
  model = robustified(**GIVEN)
  small = models.mlp(num_classes=V, image_shape=SHAPE, hidden=(4,))
  teacher = frozen(small, small.init(jax.random.key(2)))
  program = distill(model, robustify(), optax.sgd(1e-1), teacher=teacher)

  @jax.jit
  def run(batch):
    state = program.init(jax.random.key(0), batch)
    for _ in range(3):
      after, metrics = program.step(state, program.frozen, batch)
      state, before = after, state
    heads = [
      model.apply(ModelVars(s.params, s.model_state), batch, taps=BOTH)[0].head_logits
      for s in (before, state)
    ]
    return before, state, heads, metrics

  before, after, (old, new), metrics = run(batch)
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), before.params, after.params)
  tuned = moved.pop("tuned")
  assert not any(jax.tree.leaves(moved)) and all(jax.tree.leaves(tuned))
  np.testing.assert_array_equal(old["clean"], new["clean"])
  assert (old["robust"] != new["robust"]).any()
  doubt = metrics["uncertainty"]
  assert 0 < doubt[0] / doubt[1] < 1 and doubt[1] == 3
  sizes = [sum(x.size for x in jax.tree.leaves(p)) for p in (after.params["tuned"], after.params)]
  assert sizes[0] / sizes[1] < 0.5


def test_the_original_is_trained_alone_where_asked(batch):
  model = robustified(**GIVEN, trained="original")
  variables = model.init(jax.random.key(1))

  def loss(params):
    out, _ = model.apply(ModelVars(params, variables.state), batch, train=True)
    return jnp.square(out.logits).sum()

  grad = jax.jit(jax.grad(loss))(variables.params)
  assert not any(x.any() for x in jax.tree.leaves(grad.pop("tuned")))
  assert all(x.any() for x in jax.tree.leaves(grad))


def test_the_least_uncertain_head_is_chosen_where_heads_disagree():
  heads = {
    "clean": jnp.array([[4.0, 0, 0], [4.0, 0, 0], [1.0, 0, 0]]),
    "robust": jnp.array([[0.0, 9, 0], [4.0, 0, 0], [0.0, 2, 0]]),
    "combined": jnp.array([[0.0, 0, 1], [0.0, 0, 1], [0.0, 0, 8]]),
  }
  found = jax.jit(lambda h: chosen(h, threshold=0.1))(heads)
  assert found.argmax(-1).tolist() == [1, 2, 2]  # robust; agree: combined; combined is surest
  np.testing.assert_allclose(jnp.exp(found).sum(-1), 1, rtol=1e-6)
  order = np.array([2, 0, 1])
  permuted = chosen({name: x[:, order] for name, x in heads.items()}, threshold=0.1)
  np.testing.assert_allclose(permuted, found[:, order], rtol=1e-6)
  never = chosen(heads, threshold=0.0)
  assert never.argmax(-1).tolist() == [1, 0, 2]


def test_what_does_not_fit_is_told():
  with pytest.raises(KdjaxError, match=r"tuned = 'layer_9' is found in none of \['head/bias'"):
    robustified(**GIVEN | {"tuned": "layer_9"})
  with pytest.raises(KdjaxError, match="'threshold' is -1; wanted a number >= 0"):
    robustified(**GIVEN, threshold=-1)
  with pytest.raises(KdjaxError, match="'trained' is 'heads'"):
    robustified(**GIVEN, trained="heads")
  with pytest.raises(KdjaxError, match=r"model.hiden is not an argument of 'mlp'"):
    robustified(**GIVEN | {"model": NET | {"hiden": 3}})
  with pytest.raises(KdjaxError, match=r"'model' is \{\}; wanted a mapping with a name"):
    robustified(**GIVEN | {"model": {}})
  with pytest.raises(KdjaxError, match="'last' is 0"):
    robustified(**GIVEN, last=0)
