"""Models as pure functions. `__all__` holds the constructors that a config may name."""

from kdjax.models.base import Model as Model
from kdjax.models.base import ModelVars as ModelVars
from kdjax.models.base import functional as functional
from kdjax.models.clip import clip
from kdjax.models.convnext import convnext
from kdjax.models.driving import drive_adapter, driving_policy
from kdjax.models.imagenet_resnet import imagenet_resnet
from kdjax.models.masked_autoencoder import masked_autoencoder
from kdjax.models.mlp_mixer import mlp_mixer
from kdjax.models.mobilenet import mobilenet
from kdjax.models.multilayer_perceptron import mlp
from kdjax.models.open_vocabulary import open_vocabulary
from kdjax.models.pretrained import decoder, pretrained
from kdjax.models.pretrained_clip import clip_image_tower, pretrained_clip
from kdjax.models.pretrained_image import pretrained_image
from kdjax.models.residual_network import resnet
from kdjax.models.robustified import robustified
from kdjax.models.segformer import segformer
from kdjax.models.seq2seq import seq2seq
from kdjax.models.swin import swin
from kdjax.models.text_classifier import text_classifier
from kdjax.models.tinyvit import tinyvit
from kdjax.models.vision_transformer import vit
from kdjax.models.wide_resnet import wide_resnet

__all__ = [
  "clip",
  "clip_image_tower",
  "convnext",
  "decoder",
  "drive_adapter",
  "driving_policy",
  "imagenet_resnet",
  "masked_autoencoder",
  "mlp",
  "mlp_mixer",
  "mobilenet",
  "open_vocabulary",
  "pretrained",
  "pretrained_clip",
  "pretrained_image",
  "resnet",
  "robustified",
  "segformer",
  "seq2seq",
  "swin",
  "text_classifier",
  "tinyvit",
  "vit",
  "wide_resnet",
]
