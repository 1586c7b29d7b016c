"""Encoder-decoders by their fields: the paper's size, and what sees what."""

import math

import jax
import numpy as np
import pytest

from kdjax import models
from kdjax.errors import KdjaxError
from kdjax.models.convert import config_of, spec_of

SIZES = {"width": 8, "encoder_depth": 2, "decoder_depth": 1, "heads": 2}


def test_the_papers_student_has_its_size():
  model = models.seq2seq(
    num_classes=32128, width=1024, encoder_depth=20, decoder_depth=10, heads=6, kv_heads=3,
    head_dim=64, mlp_width=4096,
  )  # fmt: skip
  shapes = jax.eval_shape(model.init, jax.random.key(0)).params
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
  assert 325e6 < count < 335e6
  spec = models.seq2seq(num_classes=9, start=3, **SIZES).spec
  assert spec_of(config_of(spec), frozenset()) == spec


def test_padding_and_what_comes_later_are_not_seen():
  model = models.seq2seq(num_classes=9, **SIZES)
  variables = jax.tree.map(lambda x: 4 * x, model.init(jax.random.key(0)))
  rng = np.random.default_rng(0)
  source, target = rng.integers(1, 9, (2, 1, 6)).astype(np.int32)
  heard = np.array([[1, 1, 1, 1, 0, 0]])
  run = jax.jit(lambda rows: model.apply(variables, rows)[0].logits)
  rows = {"tokens": source, "segment_ids": heard, "decoder_tokens": target}
  whole = run(rows)
  short = rows | {"tokens": source[:, :4], "segment_ids": heard[:, :4]}
  np.testing.assert_allclose(run(short), whole, atol=1e-5)
  later = target.copy()
  later[0, 3:] = 1 + target[0, 3:] % 8
  changed = run(rows | {"decoder_tokens": later})
  np.testing.assert_allclose(changed[:, :3], whole[:, :3], atol=1e-6)
  assert np.abs(changed[:, 3:] - whole[:, 3:]).max() > 1e-3


def test_heads_that_do_not_divide_are_told():
  with pytest.raises(KdjaxError, match="'heads' is 3"):
    models.seq2seq(num_classes=9, **(SIZES | {"heads": 3}))
