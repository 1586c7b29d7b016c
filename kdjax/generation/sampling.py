"""Which token comes next: filters on logits, and one draw from what they leave.

A filter maps float32 logits [..., V] to logits of which some are -inf: the tokens that are cut.
Thresholds are found by bisection over the float32 numbers, exactly and without a sort, so that the
options may be traced. Tokens as likely as the last one that is kept are kept, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kdjax.errors import KdjaxError

Number = float | int | Array


class Sampling(NamedTuple):
  """How tokens are drawn. The options work one after the other, in this order.

  Numbers are traced under jit: another value compiles nothing, while to leave an option out (None)
  or to put it in does.

  Attributes:
    temperature: divides the logits; 0 takes the likeliest token, whatever the other options are.
    top_k: keeps the k likeliest tokens.
    top_p: keeps the fewest likeliest tokens that have this mass together, of what top_k left.
    min_p: keeps the tokens at least this share as likely as the likeliest one.
  """

  temperature: Number = 1.0
  top_k: Number | None = None
  top_p: Number | None = None
  min_p: Number | None = None


GREEDY = Sampling(temperature=0.0)


def check_sampling(sampling: Sampling) -> None:
  """Raises KdjaxError for an option out of its range; arrays are not looked into."""
  wanted: dict[str, tuple[Callable[[Number], bool], str]] = {
    "temperature": (lambda x: 0 <= x < math.inf, "a number >= 0; 0 is greedy"),
    "top_k": (lambda x: isinstance(x, int) and x >= 1, "an integer >= 1, or None for all tokens"),
    "top_p": (lambda x: 0 < x <= 1, "a number in (0, 1], or None"),
    "min_p": (lambda x: 0 <= x <= 1, "a number in [0, 1], or None"),
  }
  for name, (fits, told) in wanted.items():
    value = getattr(sampling, name)
    if isinstance(value, jax.Array) or (value is None and name != "temperature"):
      continue
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not fits(value):
      raise KdjaxError(f"{name} = {value!r}; wanted {told}")


def scale(
  logits: Float[Array, "*batch vocab"], temperature: Number
) -> Float[Array, "*batch vocab"]:
  """Logits divided by a temperature > 0."""
  return logits / jnp.asarray(temperature, jnp.float32)


def keep_top_k(logits: Float[Array, "*batch vocab"], k: Number) -> Float[Array, "*batch vocab"]:
  """The k largest logits, and those equal to the smallest of them; -inf elsewhere.

  Example:
    >>> keep_top_k(jnp.array([3.0, 1.0, 2.0]), 2)
    Array([  3., -inf,   2.], dtype=float32)
  """

  def enough(kept: Bool[Array, "*batch vocab"]) -> Bool[Array, "*batch 1"]:
    return kept.sum(-1, keepdims=True) >= jnp.asarray(k, jnp.int32)

  return _keep_largest(logits, enough)


def keep_top_p(logits: Float[Array, "*batch vocab"], p: Number) -> Float[Array, "*batch vocab"]:
  """The fewest likeliest tokens whose probabilities sum to at least p; -inf elsewhere.

  Tokens as likely as the last of them stay, too.

  Args:
    logits: [..., V].
    p: in (0, 1]; 1 keeps all.

  Returns:
    float32 [..., V].

  Reference:
    Holtzman et al., "The Curious Case of Neural Text Degeneration", ICLR 2020,
    https://arxiv.org/abs/1904.09751

  Example:
    >>> keep_top_p(jnp.log(jnp.array([0.5, 0.2, 0.3])), 0.7)[1]
    Array(-inf, dtype=float32)
  """
  probs = jax.nn.softmax(logits)

  def enough(kept: Bool[Array, "*batch vocab"]) -> Bool[Array, "*batch 1"]:
    return jnp.where(kept, probs, 0.0).sum(-1, keepdims=True) >= bound

  bound = jnp.asarray(p, jnp.float32)
  # All is all, also where the likeliest tokens' float32 probabilities sum to 1.
  return jnp.where(bound >= 1, logits.astype(jnp.float32), _keep_largest(logits, enough))


def keep_min_p(logits: Float[Array, "*batch vocab"], p: Number) -> Float[Array, "*batch vocab"]:
  """The tokens whose probability is at least p times the largest one; -inf elsewhere.

  Reference:
    Nguyen et al., "Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs",
    ICLR 2025, https://arxiv.org/abs/2407.01082

  Example:
    >>> keep_min_p(jnp.log(jnp.array([0.6, 0.1, 0.3])), 0.4)[1]
    Array(-inf, dtype=float32)
  """
  bound = logits.max(-1, keepdims=True) + jnp.log(jnp.asarray(p, jnp.float32))
  return jnp.where(logits >= bound, logits, -jnp.inf)


def filtered(
  logits: Float[Array, "*batch vocab"], sampling: Sampling
) -> Float[Array, "*batch vocab"]:
  """Logits of the distribution that is drawn from: temperature, top-k, top-p, min-p, in this order.

  The temperature must be above 0.
  """
  logits = scale(logits.astype(jnp.float32), sampling.temperature)
  if sampling.top_k is not None:
    logits = keep_top_k(logits, sampling.top_k)
  if sampling.top_p is not None:
    logits = keep_top_p(logits, sampling.top_p)
  if sampling.min_p is not None:
    logits = keep_min_p(logits, sampling.min_p)
  return logits


def draw(
  keys: Array, logits: Float[Array, "batch vocab"], sampling: Sampling
) -> tuple[Int[Array, "batch"], Float[Array, "batch"]]:
  """One token for each row.

  Args:
    keys: [B], one for each row: a row's draw depends on no other row.
    logits: [B, V].
    sampling: a temperature of 0 may be traced.

  Returns:
    The tokens int32 [B], and their log-probabilities in the distribution that they were drawn from,
    float32 [B] in nats: 0 where greedy.
  """

  def likeliest(_):
    return jnp.argmax(logits, -1).astype(jnp.int32), jnp.zeros(len(logits), jnp.float32)

  def drawn(temperature):
    kept = filtered(logits, sampling._replace(temperature=temperature))
    tokens = jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32)
    return tokens, log_prob_of(kept, tokens)

  temperature = jnp.asarray(sampling.temperature, jnp.float32)
  return jax.lax.cond(temperature == 0, likeliest, drawn, temperature)


def log_prob_of(
  logits: Float[Array, "*batch vocab"], tokens: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
  """log softmax(logits) at the tokens, float32, in nats."""
  chosen = jnp.take_along_axis(logits, tokens[..., None], -1)[..., 0]
  return (chosen - jax.nn.logsumexp(logits, -1)).astype(jnp.float32)


def _keep_largest(
  logits: Float[Array, "*batch vocab"], enough: Callable[[Array], Array]
) -> Float[Array, "*batch vocab"]:
  """The logits from the highest bound up for which `enough(logits >= bound)`; -inf elsewhere."""
  logits = logits.astype(jnp.float32)
  order = _ordered(logits)
  low, high = order.min(-1, keepdims=True), order.max(-1, keepdims=True)

  def halve(_, bounds):
    low, high = bounds
    middle = (low | high) - ((low ^ high) >> 1)  # the mean, rounded up, without overflow
    fits = enough(order >= middle)
    return jnp.where(fits, middle, low), jnp.where(fits, high, middle - 1)

  # All tokens are always enough: that holds for `low` without being asked.
  low, _ = jax.lax.fori_loop(0, 32, halve, (low, high))
  return jnp.where(order >= low, logits, -jnp.inf)


def _ordered(x: Float[Array, "*shape"]) -> Int[Array, "*shape"]:
  """int32 in the order of the float32 numbers."""
  bits = jax.lax.bitcast_convert_type(x, jnp.int32)
  return bits ^ ((bits >> 31) & jnp.int32(0x7FFFFFFF))
