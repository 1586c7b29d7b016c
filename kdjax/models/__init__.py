"""Models as pure functions. `__all__` holds the constructors that a config may name."""

from kdjax.models.base import Model as Model
from kdjax.models.base import ModelVars as ModelVars
from kdjax.models.base import functional as functional
from kdjax.models.convnext import convnext
from kdjax.models.multilayer_perceptron import mlp
from kdjax.models.pretrained import decoder, pretrained
from kdjax.models.residual_network import resnet
from kdjax.models.swin import swin
from kdjax.models.text_classifier import text_classifier
from kdjax.models.vision_transformer import vit

__all__ = ["convnext", "decoder", "mlp", "pretrained", "resnet", "swin", "text_classifier", "vit"]
