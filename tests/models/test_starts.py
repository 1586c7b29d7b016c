"""Students that start from a pruned checkpoint, or from its embeddings: files, meshes, mistakes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.models.base import overlay
from kdjax.models.convert import config_of, open_checkpoint, tensors_of, write_checkpoint
from kdjax.models.pretrained import decoder, pretrained
from kdjax.train.mesh import STUDENT_RULES, make_mesh, shardings
from tests.models.convert.folders import FOLDER, random_variables

LLAMA = str(FOLDER / "llama")  # width 32, 4 heads, 2 key and value heads, 48 neurons, 3 layers
TOKENS = np.random.default_rng(0).integers(0, 96, (10, 12)).astype(np.int32)
SIZES = {"layers": 2, "select": "importance", "width": 24, "heads": 2, "mlp_width": 40}


def text(rows):
  """Calibration text: the first rows of TOKENS."""
  return {"tokens": TOKENS[:rows]}


make = functools.partial(pretrained, path=LLAMA, calibration=text, calibration_rows=10)


@pytest.fixture(scope="module")
def student():
  model = make(**SIZES)
  return model, model.start()


def logits(model, variables):
  return jax.jit(lambda v: model.apply(v, {"tokens": jnp.asarray(TOKENS)})[0].logits)(variables)


def test_sizes_are_known_before_a_weight_is_read(student):
  def unread(rows):
    raise AssertionError("read")

  model = pretrained(path=LLAMA, calibration=unread, **SIZES)
  spec = model.spec
  assert (spec.depth, spec.width, spec.heads, spec.kv_heads) == (2, 24, 2, 2)
  assert (spec.head_dim, spec.mlp_width) == (8, 40)
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
  abstract = jax.eval_shape(model.init, jax.random.key(0))
  assert shapes(student[1].params) == shapes(abstract.params)


def test_on_a_mesh_it_starts_as_on_one_device(student):
  model, alone = student
  mesh = make_mesh(data=1, fsdp=4, tensor=2)
  placed = shardings(
    jax.eval_shape(model.init, jax.random.key(0)), model.axes(), STUDENT_RULES, mesh
  )
  on_mesh = model.start(placed)
  up = on_mesh.params["stack"]["blocks"]["mlp"]["up"]["kernel"]
  assert up.addressable_shards[0].data.size == up.size // 8
  jax.tree.map(np.testing.assert_array_equal, on_mesh, alone)


def test_exported_it_is_read_back_as_what_it_is(student, tmp_path):
  model, variables = student
  write_checkpoint(tmp_path / "out", config_of(model.spec), tensors_of(model, variables))
  config = open_checkpoint(tmp_path / "out").config
  assert (config["hidden_size"], config["head_dim"], config["num_hidden_layers"]) == (24, 8, 2)
  back = pretrained(path=str(tmp_path / "out"))
  assert back.spec == model.spec
  np.testing.assert_array_equal(logits(back, back.start()), logits(model, variables))


def test_an_adapter_lies_on_the_pruned_weights(student):
  start = make(**SIZES, adapter={"rank": 2}).start()
  jax.tree.map(np.testing.assert_array_equal, start.frozen, student[1].params)
  assert start.params["stack/blocks/mlp/up/kernel"]["up"].shape == (2, 2, 40)


def test_a_narrower_decoder_takes_the_channels_that_matter_of_table_and_head(student):
  shape = {"num_classes": 96, "width": 24, "depth": 1, "heads": 2, "tied": False}
  model = decoder(**shape, embeddings=LLAMA, calibration=text, calibration_rows=10)
  given = model.start()
  assert {part: list(own) for part, own in given.params.items()} == {
    "embed": ["tokens"], "vocabulary": ["kernel"],
  }  # fmt: skip
  wanted = student[1].params  # the same channels of the same checkpoint
  for part, name in (("embed", "tokens"), ("vocabulary", "kernel")):
    np.testing.assert_array_equal(given.params[part][name], wanted[part][name])
  own = random_variables(model.spec)
  whole = overlay(own, given)
  assert jax.tree.structure(whole.params) == jax.tree.structure(own.params)
  assert whole.params["embed"]["tokens"] is given.params["embed"]["tokens"]
  jax.tree.map(np.testing.assert_array_equal, whole.params["stack"], own.params["stack"])
  tied = decoder(**shape | {"tied": True, "width": 32}, embeddings=LLAMA)  # nothing to measure
  assert list(tied.start().params) == ["embed"]
  np.testing.assert_array_equal(
    tied.start().params["embed"]["tokens"],
    open_checkpoint(LLAMA).read("model.embed_tokens.weight"),
  )


def test_an_architecture_may_start_with_its_embeddings():
  model = pretrained(path=LLAMA, layers=1, mlp_width=40, weights="embeddings")
  assert model.spec.mlp_width == 40 and model.spec.depth == 1
  kernel = model.start().params["vocabulary"]["kernel"]
  np.testing.assert_array_equal(kernel, open_checkpoint(LLAMA).read("lm_head.weight").T)
  assert pretrained(path=LLAMA, width=16, weights=False).start is None


WINDOWS = str(FOLDER / "gemma2")


@pytest.mark.parametrize(
  ("build", "told"),
  [
    (lambda: pretrained(path=LLAMA, mlp_width=40), "on training text, and there is none"),
    (lambda: pretrained(path=LLAMA, layers=2, select="importance"), "there is none"),
    (lambda: make(mlp_width=40, calibration_rows=0), "calibration_rows = 0 must be at least 1"),
    (lambda: make(width=40), "width = 40: wanted 1 to 32"),
    (lambda: make(layers=9, select="importance"), "layers = 9: wanted 1 to 3"),
    (lambda: make(width=25, heads=2), "only where heads divides width; width = 25, heads = 2"),
    (lambda: make(path=WINDOWS, layers=2, select="importance"), "give their indices"),
    (lambda: make(path=str(FOLDER / "gpt2"), heads=2), "has head_dim = 16, not 8"),
    (lambda: make(path=str(FOLDER / "t5"), width=16), "an encoder-decoder cannot be selected"),
    (lambda: make(weights="head"), "weights = 'head' does not exist"),
    (lambda: make(weights="embeddings", adapter={}), "an adapter needs weights"),
    (
      lambda: decoder(num_classes=90, width=32, depth=1, heads=1, embeddings=LLAMA),
      "num_classes = 90, but .*llama has embeddings of 96 tokens.* set num_classes = 96",
    ),
    (
      lambda: decoder(num_classes=96, width=40, depth=1, heads=1, embeddings=LLAMA),
      "width = 40, but the embeddings of .*llama have 32",
    ),
    (
      lambda: decoder(num_classes=96, width=16, depth=1, heads=1, embeddings=LLAMA),
      "there is none",
    ),
  ],
)  # fmt: skip
def test_what_does_not_fit_is_told(build, told):
  with pytest.raises(KdjaxError, match=told):
    build()
