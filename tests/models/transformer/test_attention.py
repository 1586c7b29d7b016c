"""What computes attention, by name."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from kdjax import models
from kdjax.errors import KdjaxError
from kdjax.models.pretrained import decoder
from kdjax.models.transformer import Seq2SeqSpec, Spec, encoder_decoder, language_model

SPEC = Spec(
  vocab=32, width=16, depth=2, heads=2, kv_heads=1, head_dim=8, mlp_width=16, max_positions=32
)


class Gpu:
  compute_capability = "9.0"


@pytest.fixture
def on_gpu(monkeypatch):
  """As on a machine with a GPU, for tracing: nothing can run."""
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.setattr(jax, "devices", lambda *_: [Gpu])
  monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)


def program(model, *, length=16, packed=False, taps=frozenset({"logits"})):
  """The text of its gradient's program for CUDA."""
  tokens = jax.ShapeDtypeStruct((2, length), jnp.int32)
  batch = {"tokens": tokens} | ({"segment_ids": tokens} if packed else {})

  def loss(variables, batch):
    return model.apply(variables, batch, taps=taps)[0].logits.mean()

  shapes = jax.eval_shape(model.init, jax.random.key(0))
  with jax.numpy_dtype_promotion("standard"):  # the gradient of JAX's cuDNN call needs it
    traced = jax.jit(jax.grad(loss)).trace(shapes, batch)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


def test_cudnns_kernels_are_in_the_program(on_gpu):
  model = language_model(SPEC, dtype="bfloat16", attention="cudnn")
  for packed, kernel in ((False, "Softmax"), (True, "ScaleBiasSoftmax")):
    text = program(model, packed=packed)
    assert f"__cudnn$fmha{kernel}(" in text and f"__cudnn$fmha{kernel}Backward(" in text
  assert "fmha" not in program(language_model(SPEC, dtype="bfloat16", attention="xla"))
  # Probabilities are no part of what the kernels give.
  assert "fmha" not in program(model, taps=frozenset({"logits", "attention"}))
  with pytest.raises(KdjaxError, match=r"17 queries on 17 keys with a mask.*'auto'"):
    program(model, length=17, packed=True)


def test_auto_takes_cudnns_kernels_where_they_can(on_gpu, monkeypatch):
  half = functools.partial(language_model, dtype="bfloat16")
  assert "fmhaSoftmaxBackward(" in program(half(SPEC))
  assert "fmhaScaleBiasSoftmaxBackward(" in program(half(SPEC), packed=True)
  assert "fmha" not in program(half(SPEC), packed=True, length=17)
  assert "fmha" not in program(language_model(SPEC))  # float32
  assert "fmha" not in program(half(SPEC.replace(head_dim=4)))
  assert "fmha" not in program(half(SPEC.replace(attention_softcap=5.0)))
  monkeypatch.setattr(Gpu, "compute_capability", "7.5")
  assert "fmha" not in program(half(SPEC))


def test_images_have_cudnns_kernels_too(on_gpu):
  def text(**options):
    model = models.vit(
      num_classes=3, image_shape=(8, 8, 1), patch=4, width=16, depth=1, heads=2, **options
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)

    def loss(variables):
      batch = {"image": jnp.zeros(image.shape)}
      return model.apply(variables, batch, taps=frozenset({"logits"}))[0].logits.mean()

    with jax.numpy_dtype_promotion("standard"):
      traced = jax.jit(jax.grad(loss)).trace(shapes._replace(state={}))
      return traced.lower(lowering_platforms=("cuda",)).as_text()

  assert "fmhaSoftmaxBackward(" in text(dtype="bfloat16") and "fmha" not in text()


def test_cudnns_attention_is_not_computed_again(on_gpu):
  text = program(language_model(SPEC, dtype="bfloat16"))
  assert text.count("__cudnn$fmhaSoftmax(") == text.count("__cudnn$fmhaSoftmaxBackward(") == 1


def test_xla_by_name_is_what_auto_takes_here():
  auto, named = language_model(SPEC), language_model(SPEC, attention="xla")
  variables = auto.init(jax.random.key(0))
  batch = {"tokens": jnp.arange(16)[None]}
  given, wanted = (model.apply(variables, batch)[0].logits for model in (named, auto))
  np.testing.assert_array_equal(given, wanted)


cudnn_model = functools.partial(language_model, attention="cudnn")
RELATIVE = SPEC.replace(position="relative")


@pytest.mark.parametrize(
  ("make", "told"),
  [
    (lambda: language_model(SPEC, attention="flash"), "'attention' is 'flash'.*cudnn"),
    (lambda: cudnn_model(SPEC), "computes in bfloat16; dtype is 'float32'"),
    (lambda: cudnn_model(SPEC, dtype="bfloat16"), "wants an NVIDIA GPU; jax runs on 'cpu'"),
    (
      lambda: cudnn_model(SPEC.replace(attention_softcap=5.0), dtype="bfloat16"),
      "has no soft caps",
    ),
    (
      lambda: encoder_decoder(
        Seq2SeqSpec(RELATIVE.replace(causal=False), RELATIVE.replace(cross=True)),
        dtype="bfloat16",
        attention="cudnn",
      ),
      "has no relative positions",
    ),
    (
      lambda: decoder(
        num_classes=8, width=8, depth=1, heads=2, dtype="bfloat16", attention="cudnn"
      ),
      "head_dim that 8 divides.*is 4",
    ),
  ],
)
def test_what_cannot_be_computed_is_told(make, told):
  with pytest.raises(KdjaxError, match=told):
    make()
