"""Transformers of tokens: one layer library, families as specs."""

from kdjax.models.transformer.language_model import language_model as language_model
from kdjax.models.transformer.seq2seq import encoder_decoder as encoder_decoder
from kdjax.models.transformer.spec import Rope as Rope
from kdjax.models.transformer.spec import Seq2SeqSpec as Seq2SeqSpec
from kdjax.models.transformer.spec import Spec as Spec
from kdjax.models.transformer.stack import Cache as Cache
