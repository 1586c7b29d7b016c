"""Weights that are expressions write what the dense weights write that they stand for."""

import jax
import numpy as np
import pytest

from kdjax.generation import GREEDY, Generator
from kdjax.models.adapters import low_rank, merge_adapters, quantize_params
from kdjax.models.expressions import Quantized
from kdjax.models.pretrained import pretrained
from tests.models.convert.folders import FOLDER

BASE = pretrained(path=str(FOLDER / "llama"))
PLAIN = Generator(BASE)
PROMPTS = [[5, 9, 3, 77, 12], [42, 8]]
OPTIONS = {"max_new_tokens": 16, "sampling": GREEDY}


def same(given, wanted):
  np.testing.assert_array_equal(given.tokens, wanted.tokens)
  np.testing.assert_allclose(given.log_probs, wanted.log_probs, atol=1e-4)


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_writes_what_the_merged_model_writes(dora):
  model = low_rank(BASE, rank=2, dora=dora)
  start = model.start()
  moved = start._replace(params=jax.tree.map(lambda a: a + 0.05, start.params))
  given = Generator(model)(moved, PROMPTS, **OPTIONS)
  same(given, PLAIN(model.merged(moved), PROMPTS, **OPTIONS))
  without = PLAIN(model.merged(start), PROMPTS, **OPTIONS)
  assert (np.asarray(given.tokens) != without.tokens).any()


def test_int8_weights_write_what_the_rounded_numbers_write():
  whole = BASE.start()
  rounded = whole._replace(params=quantize_params(whole.params))
  assert isinstance(rounded.params["stack"]["blocks"]["mlp"]["up"]["kernel"], Quantized)
  same(PLAIN(rounded, PROMPTS, **OPTIONS), PLAIN(merge_adapters(rounded), PROMPTS, **OPTIONS))
