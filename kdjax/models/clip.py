"""CLIP: an image tower and a text tower with one space for what both say."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from kdjax.losses._common import unit
from kdjax.models import checks
from kdjax.models.base import Batch, Model, ModelVars
from kdjax.models.class_embeddings import OWN, outputs_of, settled_on
from kdjax.models.layers import Depth
from kdjax.models.transformer.language_model import language_model
from kdjax.models.transformer.spec import Spec
from kdjax.models.vision_transformer import ViTSpec, vit_model

SCALE = math.log(1 / 0.07)  # what the log of the factor of cosines begins with


@dataclasses.dataclass(frozen=True)
class ClipSpec:
  """The two towers.

  Attributes:
    vision: of the images; its head, without bias, projects into the common space.
    text: of the texts, causal and without a head.
    end: the token that ends a text, at which it is read; None: the highest id of each text.
  """

  vision: ViTSpec
  text: Spec
  end: int | None = None
  family: str = "clip"

  @property
  def width(self) -> int:
    """D of the common space."""
    return self.vision.num_classes

  @property
  def tied(self) -> bool:
    return False

  @property
  def stacks(self) -> dict[str, Depth]:
    return {"vision": Depth(self.vision.depth), "text": Depth(self.text.depth)}


def text_spec(
  *, vocab: int, width: int, depth: int, heads: int, mlp_width: int, **own: Any
) -> Spec:
  """CLIP's text tower: a causal pre-norm transformer with learned positions."""
  checks.positive(heads=heads)
  checks.require(width % heads == 0, "text_heads", heads, f"a divisor of text_width, {width}")
  fixed = {
    "norm": "layer",
    "gated": False,
    "position": "learned",
    "qkv_bias": True,
    "out_bias": True,
    "mlp_bias": True,
    "head": False,
    "family": "clip",
  }
  return Spec(
    vocab=vocab,
    width=width,
    depth=depth,
    heads=heads,
    kv_heads=heads,
    head_dim=width // heads,
    mlp_width=mlp_width,
    **({"norm_eps": 1e-5, "activation": "quick_gelu"} | fixed | own),
  )


def clip(
  *,
  num_classes: int,
  image_shape: tuple[int, int, int],
  class_texts: Sequence[Sequence[int]],
  vocab: int,
  embedding: int = 64,
  patch: int = 4,
  width: int = 64,
  depth: int = 4,
  heads: int = 4,
  text_width: int = 64,
  text_depth: int = 2,
  text_heads: int = 4,
  dtype: str = "float32",
) -> Model:
  """A CLIP of random weights that classifies images by the texts of its classes.

  Args:
    num_classes: V, the number of classes.
    image_shape: (height, width, channels) of `batch["image"]`.
    class_texts: that of each class as tokens [V, T], each ended by one token that also fills the
      row; a data set with named classes gives them.
    vocab: number of tokens.
    embedding: width of the common space.
    patch, width, depth, heads: of the image tower.
    text_width, text_depth, text_heads: of the text tower.
    dtype: compute dtype of both towers, "float32" or "bfloat16".

  Returns:
    See `clip_model`.

  Raises:
    KdjaxError: a hyper-parameter out of its range, or class_texts that do not fit the classes.

  Example:
    >>> model = clip(
    ...   num_classes=2, image_shape=(8, 8, 1), class_texts=[[4, 1, 0], [2, 0, 0]], vocab=5, depth=1
    ... )
    >>> variables = model.init(jax.random.key(0))
    >>> model.apply(variables, {"image": jnp.zeros((3, 8, 8, 1))})[0].logits.shape
    (3, 2)
  """
  channels = checks.channels(image_shape)
  checks.positive(
    embedding=embedding, patch=patch, width=width, depth=depth, heads=heads, vocab=vocab
  )
  rows, columns, _ = image_shape
  fits = rows % patch == 0 and columns % patch == 0
  checks.require(fits, "patch", patch, f"a divisor of the image's sides, {rows} and {columns}")
  checks.require(width % heads == 0, "heads", heads, f"a divisor of width, {width}")
  tokens = checked_prompts(class_texts, num_classes, vocab)
  spec = ClipSpec(
    vision=vision_spec(
      image=(rows, columns),
      channels=channels,
      num_classes=embedding,
      patch=patch,
      width=width,
      depth=depth,
      heads=heads,
      mlp_width=4 * width,
    ),
    text=text_spec(
      vocab=vocab,
      width=text_width,
      depth=text_depth,
      heads=text_heads,
      mlp_width=4 * text_width,
      max_positions=tokens.shape[1],
    ),
    end=int(tokens[0, -1]),
  )
  return clip_model(spec, tokens, dtype=dtype)


def vision_spec(**own: Any) -> ViTSpec:
  """CLIP's image tower: a ViT with a norm before its blocks, read at its class token."""
  fixed = {"pool": "cls", "patch_bias": False, "embed_norm": True, "head_bias": False}
  return ViTSpec(**({"activation": "quick_gelu", "eps": 1e-5} | fixed | {"family": "clip"} | own))


def checked_prompts(
  class_texts: Sequence[Sequence[int]], num_classes: int, vocab: int
) -> Int[np.ndarray, "class time"]:
  """The texts as an array; raises KdjaxError where they do not fit."""
  equal = len(class_texts) == num_classes and len({len(row) for row in class_texts}) == 1
  wanted = f"{num_classes} rows of equal length, one for each class"
  checks.require(equal, "class_texts", f"{len(class_texts)} rows", wanted)
  tokens = np.asarray(class_texts, np.int32)
  fits = tokens.size > 0 and tokens.min() >= 0 and tokens.max() < vocab
  checks.require(fits, "class_texts", class_texts, f"tokens from 0 to {vocab - 1}")
  return tokens


def clip_model(
  spec: ClipSpec, class_texts: Int[np.ndarray, "class time"], *, dtype: str = "float32"
) -> Model:
  """The model of a spec, for classes that are described by texts.

  Args:
    spec: of the towers.
    class_texts: int32 [V, T], the classes' texts.
    dtype: compute dtype of both towers.

  Returns:
    A model with the taps of the image tower's blocks and, for the common space of width D,
    `embedding` [B, D] (of images, not normalised), `hidden` (those of length 1, times the learned
    scale), `head` (the texts' embeddings of length 1, [V, D]) and `logits` [B, V], scaled cosines.
    `settled` is the image tower with the classes' embeddings computed once.

  Reference:
    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML
    2021, https://arxiv.org/abs/2103.00020; parity with transformers' `CLIPModel` is tested.
  """
  vision = vit_model(spec.vision, dtype=dtype)
  text = language_model(spec.text, dtype=dtype)

  def init(rng: jax.Array) -> ModelVars:
    image_key, text_key, key = jax.random.split(rng, 3)
    shape = spec.text.width, spec.width
    params = {
      "vision": vision.init(image_key).params,
      "text": text.init(text_key).params,
      "text_projection": {"kernel": jax.random.normal(key, shape) * spec.text.width**-0.5},
      "logit_scale": jnp.float32(SCALE),
    }
    return ModelVars(params, {})

  def classes(params: Any) -> Float[Array, "class width"]:
    return unit(embed_texts(spec, text, params, jnp.asarray(class_texts)))

  def apply(
    variables: ModelVars,
    batch: Batch,
    *,
    taps: frozenset[str] = frozenset({"logits"}),
    train: bool = False,
    rng: jax.Array | None = None,
  ):
    params = variables.params
    inside = taps - OWN | ({"logits"} if taps & (OWN - {"head"}) else set())
    tower = ModelVars(params["vision"], {})
    out, _ = vision.apply(tower, batch, taps=frozenset(inside), train=train, rng=rng)
    table = classes(params) if taps & {"logits", "head"} else None
    return outputs_of(out, out.logits, table, jnp.exp(params["logit_scale"]), taps), variables.state

  def axes() -> ModelVars:
    params = {
      "vision": vision.axes().params,
      "text": text.axes().params,
      "text_projection": {"kernel": PartitionSpec("embed", "vocab")},
      "logit_scale": PartitionSpec(),
    }
    return ModelVars(params, {})

  def settle(variables: ModelVars) -> ModelVars:
    params = variables.params
    return ModelVars(
      {
        "image": params["vision"],
        "classes": jax.jit(classes)(params),
        "logit_scale": params["logit_scale"],
      },
      {},
    )

  model = Model(
    init=init,
    apply=apply,
    axes=axes,
    taps=vision.taps - OWN | OWN,
    num_classes=len(class_texts),
    spec=spec,
  )
  return model._replace(settled=(settled_on(vision, len(class_texts)), settle))


def embed_texts(
  spec: ClipSpec, text: Model, params: Any, tokens: Int[Array, "text time"]
) -> Float[Array, "text width"]:
  """The texts in the common space, float32 and not normalised: each is read where it ends."""
  variables = ModelVars(params["text"], {})
  hidden = text.apply(variables, {"tokens": tokens}, taps=frozenset({"hidden"}))[0].hidden
  ends = tokens.argmax(-1) if spec.end is None else (tokens == spec.end).argmax(-1)
  last = jnp.take_along_axis(hidden, ends[:, None, None], axis=1)[:, 0]
  return last.astype(jnp.float32) @ params["text_projection"]["kernel"]
