"""Small encoder-decoders described field by field."""

from __future__ import annotations

from kdjax.errors import KdjaxError
from kdjax.models.base import Model
from kdjax.models.transformer import Rope, Seq2SeqSpec, Spec, encoder_decoder


def seq2seq(
  *,
  num_classes: int,
  width: int,
  encoder_depth: int,
  decoder_depth: int,
  heads: int,
  kv_heads: int | None = None,
  head_dim: int | None = None,
  mlp_width: int | None = None,
  max_positions: int = 2048,
  rope_theta: float = 10000.0,
  dropout: float = 0.0,
  start: int = 0,
  remat: str = "none",
  dtype: str = "float32",
  attention: str = "auto",
) -> Model:
  """An encoder-decoder of the form of microsoft/encoder-decoder-slm, with random weights.

  Rotary positions in self-attention and none across, RMS norms before each part, biases, an MLP
  with tanh-GELU and no gate, one embedding for both sides and the head.

  Args:
    num_classes: size of the vocabulary.
    width: of the residual stream.
    encoder_depth: layers of the encoder; in the paper twice those of the decoder.
    decoder_depth: layers of the decoder.
    heads: of attention.
    kv_heads: key and value heads; `heads` where None.
    head_dim: size of each head; width / heads where None.
    mlp_width: four times the width where None.
    max_positions: longest source, and longest target.
    rope_theta: base of the rotations.
    dropout: in [0, 1).
    start: the token before a target's first one; a config's comes from its data.
    remat: see `language_model`.
    dtype: compute dtype.
    attention: what computes it, see `language_model`.

  Raises:
    KdjaxError: a field out of its range.

  Reference:
    Elfeki et al., "Return of the Encoder: Maximizing Parameter Efficiency for SLMs", 2025,
    https://arxiv.org/abs/2501.16273.
  """
  if head_dim is None and (heads < 1 or width % heads):
    raise KdjaxError(f"model field 'heads' is {heads}; wanted a divisor of width, {width}")
  encoder = Spec(
    family="mu",
    vocab=num_classes,
    width=width,
    depth=encoder_depth,
    heads=heads,
    kv_heads=heads if kv_heads is None else kv_heads,
    head_dim=width // heads if head_dim is None else head_dim,
    mlp_width=4 * width if mlp_width is None else mlp_width,
    max_positions=max_positions,
    causal=False,
    activation="gelu_tanh",
    gated=False,
    rope=Rope(rope_theta),
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    dropout=dropout,
  )
  decoder = encoder.replace(depth=decoder_depth, causal=True, cross=True)
  spec = Seq2SeqSpec(encoder, decoder, start)
  return encoder_decoder(spec, remat=remat, dtype=dtype, attention=attention)
