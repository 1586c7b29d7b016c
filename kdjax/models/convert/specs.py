"""From Hugging Face configs to specs and back, a pair of small functions for each family."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from kdjax.errors import KdjaxError
from kdjax.models.convert.clip import read_clip, write_clip
from kdjax.models.convert.decoders import (
  read_gemma,
  read_gpt2,
  read_gpt_neox,
  read_llama,
  write_gemma,
  write_gpt2,
  write_gpt_neox,
  write_llama,
)
from kdjax.models.convert.encoders import read_bert, read_distilbert, write_bert, write_distilbert
from kdjax.models.convert.fields import Config, Names, refuse
from kdjax.models.convert.images import (
  read_convnext,
  read_resnet,
  read_swin,
  read_vit,
  write_convnext,
  write_resnet,
  write_swin,
  write_vit,
)
from kdjax.models.convert.segformer import read_segformer, write_segformer
from kdjax.models.convert.seq2seq import read_mu, read_t5, write_mu, write_t5
from kdjax.models.transformer.spec import Spec

_DEPTHS = ("num_hidden_layers", "num_layers", "num_decoder_layers", "n_layer", "n_layers")
_DEEPEST = 10_000
_SIZES = ("vocab", "width", "depth", "heads", "kv_heads", "head_dim", "mlp_width")


class Family(NamedTuple):
  """How a family's config.json and a spec translate.

  Attributes:
    read: `read(config, names of the tensors) -> spec`.
    write: `write(spec) -> config`, of what `read` reads.
    architecture: the class of transformers that such a config is for.
  """

  read: Callable[[Config, Names], Any]
  write: Callable[[Any], dict[str, Any]]
  architecture: str


def spec_of(config: Config, names: Names) -> Any:
  """The spec of a checkpoint: a `Spec`, a `Seq2SeqSpec` or that of an image model.

  Args:
    config: what its config.json holds.
    names: of its tensors, which tell whether it has a head of its own.

  Raises:
    KdjaxError: a family or a variant that is not supported.
  """
  kind = config.get("model_type")
  refuse(config, "quantization_config")
  if "text_config" in config and kind != "clip":
    raise KdjaxError(
      f"config.json: a {kind!r} model has a text_config, a language model among other parts; save"
      " that model alone (in PyTorch, model.language_model.save_pretrained) and give its folder"
    )
  if not isinstance(kind, str) or kind not in FAMILIES:
    raise KdjaxError(
      f"config.json: model_type = {kind!r} is not supported; what is: {', '.join(FAMILIES)}"
    )
  for field in _DEPTHS:  # some readers make a list as long
    depth = config.get(field, 1)
    if type(depth) is not int or not 1 <= depth <= _DEEPEST:
      raise KdjaxError(f"config.json: {field} = {depth!r} must be from 1 to {_DEEPEST}")
  try:
    return _sound(FAMILIES[kind].read(config, names))
  except KeyError as error:
    raise KdjaxError(f"config.json of a {kind!r} model lacks the field {error}") from None
  except KdjaxError:
    raise
  except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError) as error:
    raise KdjaxError(
      f"config.json of a {kind!r} model has a field of the wrong kind ({error}); copy it again"
    ) from None


def _sound(spec: Any) -> Any:
  """The spec; ValueError where a size is no positive integer, or a number below 0."""
  for part in (spec, *(v for v in vars(spec).values() if dataclasses.is_dataclass(v))):
    for field in dataclasses.fields(part):
      value = getattr(part, field.name)
      least = int(field.name in _SIZES)
      if field.type == "int" and (type(value) is not int or value < least):
        raise ValueError(f"{field.name} is {value!r}")
  return spec


def config_of(spec: Any) -> dict[str, Any]:
  """The config.json of a spec; `spec_of` reads it back."""
  if getattr(spec, "attention_from", ()):
    raise KdjaxError(
      "a model with attention_from, whose layers share attention maps, has no Hugging Face format"
    )
  family = FAMILIES[spec.family]
  return {
    "architectures": [family.architecture],
    "model_type": spec.family,
    "dtype": "float32",
    **family.write(spec),
  }


def check_expressible(spec: Spec, names: Names) -> None:
  """Raises KdjaxError where config.json of the family cannot say what the spec is.

  Args:
    spec: of other sizes than the family's own models have.
    names: see `spec_of`.
  """
  said = spec_of(config_of(spec), names)
  for field in dataclasses.fields(spec):
    wanted, given = getattr(spec, field.name), getattr(said, field.name)
    if wanted != given:
      raise KdjaxError(
        f"a {spec.family} checkpoint of width = {spec.width} and heads = {spec.heads} has"
        f" {field.name} = {given}, not {wanted}: its config.json cannot say otherwise. Take width ="
        " heads * head_dim"
      )
  if spec.family in WHOLE_HEADS and spec.width % spec.heads:
    raise KdjaxError(
      f"transformers loads a {spec.family} checkpoint only where heads divides width;"
      f" width = {spec.width}, heads = {spec.heads}"
    )


# Families of which transformers checks that heads divide the width, although the size of a head is
# a field of its own.
WHOLE_HEADS = ("llama", "gemma2", "gemma3_text")

FAMILIES: dict[str, Family] = {
  "llama": Family(read_llama, write_llama, "LlamaForCausalLM"),
  "mistral": Family(read_llama, write_llama, "MistralForCausalLM"),
  "qwen2": Family(read_llama, write_llama, "Qwen2ForCausalLM"),
  "qwen3": Family(read_llama, write_llama, "Qwen3ForCausalLM"),
  "gemma2": Family(read_gemma, write_gemma, "Gemma2ForCausalLM"),
  "gemma3_text": Family(read_gemma, write_gemma, "Gemma3ForCausalLM"),
  "gpt2": Family(read_gpt2, write_gpt2, "GPT2LMHeadModel"),
  "gpt_neox": Family(read_gpt_neox, write_gpt_neox, "GPTNeoXForCausalLM"),
  "bert": Family(read_bert, write_bert, "BertForMaskedLM"),
  "roberta": Family(read_bert, write_bert, "RobertaForMaskedLM"),
  "distilbert": Family(read_distilbert, write_distilbert, "DistilBertForMaskedLM"),
  "t5": Family(read_t5, write_t5, "T5ForConditionalGeneration"),
  "mu": Family(read_mu, write_mu, "Mu"),
  "vit": Family(read_vit, write_vit, "ViTForImageClassification"),
  "deit": Family(read_vit, write_vit, "DeiTForImageClassification"),
  "convnext": Family(read_convnext, write_convnext, "ConvNextForImageClassification"),
  "swin": Family(read_swin, write_swin, "SwinForImageClassification"),
  "resnet": Family(read_resnet, write_resnet, "ResNetForImageClassification"),
  "segformer": Family(read_segformer, write_segformer, "SegformerForSemanticSegmentation"),
  "clip": Family(read_clip, write_clip, "CLIPModel"),
}
