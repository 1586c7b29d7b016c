"""CLIP from a Hugging Face folder: both towers, or that of the images alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from kdjax.errors import KdjaxError
from kdjax.models import checks
from kdjax.models.base import Batch, Model, ModelVars
from kdjax.models.clip import ClipSpec, checked_prompts, clip_model
from kdjax.models.convert import check_weights, load_weights, open_checkpoint, spec_of
from kdjax.models.convert.checkpoint import Checkpoint
from kdjax.models.vision_transformer import check_prompts, vit_model

# Of the images that CLIP was trained on, by channel.
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def pretrained_clip(
  *,
  path: str,
  num_classes: int,
  image_shape: tuple[int, int, int],
  class_texts: Sequence[Sequence[int]],
  normalize: bool = True,
  dtype: str = "float32",
) -> Model:
  """A CLIP that classifies images by the texts of its classes, from a checkpoint.

  Args:
    path: a Hugging Face folder, or package:NAME[/PATH] (see `kdjax.paths.locate`).
    num_classes: V, the number of classes.
    image_shape: (height, width, channels) of `batch["image"]`.
    class_texts: of each class in the checkpoint's tokens [V, T], with those that begin and end
      a text.
    normalize: images in [0, 1] get CLIP's mean and deviation taken off; False: they have been.
    dtype: compute dtype.

  Returns:
    See `kdjax.models.clip.clip_model`; its `start` reads the weights.

  Raises:
    KdjaxError: no such checkpoint, one of another kind, tensors, images or texts that do not fit.
  """
  checkpoint, spec = _opened(path, image_shape)
  tokens = checked_prompts(class_texts, num_classes, spec.text.vocab)
  model = clip_model(spec, tokens, dtype=dtype)
  check_weights(checkpoint, model)
  read = model

  def start(shardings: ModelVars | None = None, dtype: Any = None) -> ModelVars:
    return load_weights(checkpoint, read, shardings=shardings, dtype=dtype)

  if normalize:
    settled, settle = model.settled
    model = _normalised(model)._replace(settled=(_normalised(settled), settle))
  return model._replace(start=start)


def clip_image_tower(
  *,
  path: str,
  num_classes: int,
  image_shape: tuple[int, int, int],
  prompts: int = 0,
  prompt_depth: int = 1,
  normalize: bool = True,
  dtype: str = "float32",
) -> Model:
  """The image tower of a CLIP checkpoint: its logits are the image's embedding.

  Args:
    path: see `pretrained_clip`.
    num_classes: D, the width of the checkpoint's common space.
    image_shape: see `pretrained_clip`.
    prompts: learned tokens, which begin at random; see `kdjax.models.vit`.
    prompt_depth: how many blocks have their own.
    normalize: see `pretrained_clip`.
    dtype: compute dtype.

  Raises:
    KdjaxError: see `pretrained_clip`.
  """
  checkpoint, spec = _opened(path, image_shape)
  fits = num_classes == spec.width
  checks.require(
    fits, "num_classes", num_classes, f"{spec.width}, the width of {path}'s embeddings"
  )
  check_prompts(prompts, prompt_depth, spec.vision.depth)
  whole = clip_model(spec, checked_prompts([[0]], 1, spec.text.vocab))
  check_weights(checkpoint, whole)
  own = dataclasses.replace(spec.vision, prompts=prompts, prompt_depth=prompt_depth)

  def start(shardings: ModelVars | None = None, dtype: Any = None) -> ModelVars:
    # The text tower is read along: its tensors tell whether the checkpoint is whole.
    return ModelVars(load_weights(checkpoint, whole, dtype=dtype).params["vision"], {})

  model = vit_model(own, dtype=dtype)
  return (_normalised(model) if normalize else model)._replace(start=start, spec=None)


def _normalised(model: Model) -> Model:
  """The model, given images in [0, 1]."""

  def apply(variables: ModelVars, batch: Batch, **options):
    image = batch["image"]
    mean, deviation = (jnp.asarray(x, image.dtype)[None, None, None] for x in (MEAN, DEVIATION))
    return model.apply(variables, {**batch, "image": (image - mean) / deviation}, **options)

  return model._replace(apply=apply)


def _opened(path: str, image_shape: tuple[int, int, int]) -> tuple[Checkpoint, ClipSpec]:
  checkpoint = open_checkpoint(path)
  spec = spec_of(checkpoint.config, checkpoint.names)
  if not isinstance(spec, ClipSpec):
    raise KdjaxError(f"{checkpoint.path} holds a {spec.family} model; a CLIP is wanted")
  channels = checks.channels(image_shape)
  wanted = (*spec.vision.image, spec.vision.channels)
  if wanted != (*image_shape[:2], channels):
    raise KdjaxError(
      f"{checkpoint.path} is for images of shape {wanted}; the data have {tuple(image_shape)}:"
      " resize them"
    )
  return checkpoint, spec
