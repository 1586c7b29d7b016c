"""Image models from Hugging Face folders."""

from __future__ import annotations

import dataclasses
from typing import Any

from kdjax.errors import KdjaxError
from kdjax.models import checks
from kdjax.models.base import Model, ModelVars
from kdjax.models.clip import ClipSpec
from kdjax.models.convert import check_weights, load_weights, open_checkpoint, spec_of
from kdjax.models.convnext import ConvNeXtSpec, convnext_model
from kdjax.models.imagenet_resnet import ResNetSpec, imagenet_resnet_model
from kdjax.models.segformer import SegformerSpec, segformer_model
from kdjax.models.swin import SwinSpec, swin_model
from kdjax.models.vision_transformer import ViTSpec, vit_model

_HEADS = ("head", "distillation_head")


def pretrained_image(
  *,
  path: str,
  num_classes: int,
  image_shape: tuple[int, int, int],
  weights: bool = True,
  dtype: str = "float32",
) -> Model:
  """A ViT, DeiT, ResNet, ConvNeXt, Swin or SegFormer from a checkpoint.

  Args:
    path: a Hugging Face folder, or package:NAME[/PATH] (see `kdjax.paths.locate`).
    num_classes: size of the logits. Where the checkpoint has another number of labels, the head
      starts from random weights.
    image_shape: (height, width, channels) of `batch["image"]`, normalised as the checkpoint wants
      them. The transformers' positions and windows are made for one size of images.
    weights: start from the checkpoint's weights; False takes its architecture alone.
    dtype: compute dtype.

  Returns:
    The model; its `start` reads the weights.

  Raises:
    KdjaxError: no such checkpoint, one of another kind, tensors that do not fit, or images of
      another size.
  """
  checkpoint = open_checkpoint(path)
  whole = spec_of(checkpoint.config, checkpoint.names)
  channels = checks.channels(image_shape)
  if isinstance(whole, ClipSpec):
    raise KdjaxError(
      f"{checkpoint.path} holds a clip model; use pretrained_clip, or clip_image_tower for its"
      " images alone"
    )
  if not isinstance(whole, ViTSpec | SwinSpec | ConvNeXtSpec | ResNetSpec | SegformerSpec):
    raise KdjaxError(f"{checkpoint.path} holds a {whole.family} model of text; use pretrained")
  sides = [whole.channels != channels]
  if isinstance(whole, ViTSpec):
    sides.append(whole.image != tuple(image_shape[:2]))
  if any(sides):
    size = whole.image if isinstance(whole, ViTSpec) else ("any", "any")
    raise KdjaxError(
      f"{checkpoint.path} is for images of shape {(*size, whole.channels)}; the data have"
      f" {tuple(image_shape)}: resize them, or take weights = False in a model of your own sizes"
    )
  model = _model(whole, image_shape, dtype)
  if weights:
    check_weights(checkpoint, model)
  same = whole.num_classes == num_classes
  own = model if same else _model(_with_classes(whole, num_classes), image_shape, dtype)
  if not weights:
    return own

  def start(shardings: ModelVars | None = None, dtype: Any = None) -> ModelVars:
    # Another head is random, and so is what its shardings say of no use here.
    placed = shardings if same else None
    read = load_weights(checkpoint, model, shardings=placed, dtype=dtype)
    if same:
      return read
    return read._replace(params={k: v for k, v in read.params.items() if k not in _HEADS})

  return own._replace(start=start)


def _with_classes(spec: Any, num_classes: int) -> Any:
  return dataclasses.replace(spec, num_classes=num_classes)


def _model(spec: Any, image_shape: tuple[int, int, int], dtype: str) -> Model:
  if isinstance(spec, ViTSpec):
    return vit_model(spec, dtype=dtype)
  if isinstance(spec, ConvNeXtSpec):
    return convnext_model(spec, checks.image_input(image_shape), dtype=dtype)
  if isinstance(spec, SegformerSpec):
    return segformer_model(spec, image_shape, dtype=dtype)
  make = swin_model if isinstance(spec, SwinSpec) else imagenet_resnet_model
  return make(spec, image_shape, dtype=dtype)
