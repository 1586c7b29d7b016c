"""Importance against NumPy: sums written out, on a model whose inner arrays are computed again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.models.importance import importance
from kdjax.models.transformer import Spec
from tests.models.convert.folders import random_variables

SPEC = Spec(
  vocab=32, width=12, depth=2, heads=4, kv_heads=2, head_dim=4, mlp_width=10, max_positions=16
)


@pytest.fixture(scope="module")
def measured():
  """(parameters, batch with padding and two segments in a row, importance)."""
  params = random_variables(SPEC).params
  tokens = np.random.default_rng(1).integers(0, 32, (3, 8)).astype(np.int32)
  segments = np.array([[1] * 8, [1] * 3 + [2] * 5, [1] * 5 + [0] * 3], np.int32)
  positions = np.array([[*range(8)], [*range(3), *range(5)], [*range(5), 0, 0, 0]], np.int32)
  batch = {"tokens": tokens, "segment_ids": segments, "positions": positions}
  return params, batch, importance(SPEC, params, [{k: v[i] for k, v in batch.items()} for i in (
    slice(0, 2), slice(2, 3))])  # fmt: skip


def twin(params, batch):
  """The scores in float64, from the definition."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  blocks = p["stack"]["blocks"]
  segments, positions = batch["segment_ids"], batch["positions"]
  norm = lambda x, s: x / np.sqrt((x**2).mean(-1, keepdims=True) + SPEC.norm_eps) * s  # noqa: E731
  angles = positions[..., None] * 10000.0 ** (-np.arange(0, 4, 2) / 4)
  cos, sin = np.cos(angles)[:, :, None], np.sin(angles)[:, :, None]

  def rotated(x):
    a, b = x[..., :2], x[..., 2:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

  sees = (segments[:, :, None] == segments[:, None, :]) & np.tri(8, dtype=bool)
  counted = segments > 0

  def squared(x):  # the mean over a row's tokens, squared, all rows together
    means = [np.abs(row[own]).mean(0) for row, own in zip(x, counted, strict=True)]
    return np.sum(np.square(means), axis=0)

  hidden = p["embed"]["tokens"][batch["tokens"]]
  out = {"layers": [], "heads": [], "neurons": [], "channels": 0.0}
  for i in range(2):
    layer = jax.tree.map(lambda x, i=i: x[i], blocks)
    before, own = hidden, layer["attention"]
    read = norm(hidden, layer["norm_attention"]["scale"])
    query, key, value = (
      np.einsum("btd,dhk->bthk", read, own[name]["kernel"]) for name in ("query", "key", "value")
    )
    query, key = rotated(query), np.repeat(rotated(key), 2, axis=2)
    scores = np.where(sees[:, None], np.einsum("bthk,bshk->bhts", query, key) / 2, -np.inf)
    probs = np.exp(scores - scores.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    heads = np.einsum("bhts,bshk->bthk", probs, np.repeat(value, 2, axis=2))
    hidden = hidden + np.einsum("bthk,hkd->btd", heads, own["out"]["kernel"])
    mlp = norm(hidden, layer["norm_mlp"]["scale"])
    gate, up = mlp @ layer["mlp"]["gate"]["kernel"], mlp @ layer["mlp"]["up"]["kernel"]
    neurons = gate / (1 + np.exp(-gate)) * up
    hidden = hidden + neurons @ layer["mlp"]["down"]["kernel"]
    lengths = np.linalg.norm(before, axis=-1) * np.linalg.norm(hidden, axis=-1)
    out["layers"].append(1 - ((before * hidden).sum(-1) / lengths)[counted].mean())
    out["heads"].append(np.sqrt(squared(heads).sum(-1)))
    out["neurons"].append(np.sqrt(squared(neurons)))
    out["channels"] = out["channels"] + np.sqrt(squared(read)) + np.sqrt(squared(mlp))
  return {name: np.asarray(values) for name, values in out.items()}


def test_it_is_what_numpy_finds(measured):
  params, batch, found = measured
  for name, wanted in twin(params, batch).items():
    np.testing.assert_allclose(getattr(found, name), wanted, rtol=2e-5, atol=1e-6, err_msg=name)


def test_padding_does_not_matter(measured):
  params, batch, found = measured
  other = batch | {"tokens": np.where(batch["segment_ids"] > 0, batch["tokens"], 31)}
  assert (other["tokens"] != batch["tokens"]).any()
  again = importance(SPEC, params, [other])
  for given, wanted in zip(again, found, strict=True):
    np.testing.assert_allclose(given, wanted, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_measured_is_told(measured):
  params, _, _ = measured
  with pytest.raises(KdjaxError, match="at least one batch; got none"):
    importance(SPEC, params, [])
  with pytest.raises(KdjaxError, match="longer than the model's max_positions"):
    importance(SPEC, params, [{"tokens": jnp.zeros((1, 17), jnp.int32)}])
