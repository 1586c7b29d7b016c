"""Signals: a teacher's output distribution as data, in four forms."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from kdjax.errors import KdjaxError

__all__ = [
  "Dense",
  "HiddenHead",
  "Sampled",
  "Signal",
  "TopK",
  "sampled_signal",
  "top_k_signal",
]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dense:
  """Logits over the whole vocabulary.

  Raw logits carry no temperature of their own, so a loss may use any.

  Attributes:
    logits: [..., V], unnormalised, before temperature.
  """

  support: ClassVar[str] = "every class"
  temperature: ClassVar[None] = None
  logits: Float[Array, "*batch vocab"]

  @property
  def dtype(self) -> jnp.dtype:
    return self.logits.dtype


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HiddenHead:
  """The teacher's last hidden states and its head; logits are rebuilt where they are needed.

  Attributes:
    hidden: [..., D], what the head reads.
    kernel: [D, V].
    bias: [V], or None.
  """

  support: ClassVar[str] = "every class, rebuilt from hidden states"
  temperature: ClassVar[None] = None
  hidden: Float[Array, "*batch width"]
  kernel: Float[Array, "width vocab"]
  bias: Float[Array, "vocab"] | None = None

  @property
  def dtype(self) -> jnp.dtype:
    return self.hidden.dtype

  @property
  def logits(self) -> Float[Array, "*batch vocab"]:
    """float32[..., V], accumulated in float32 whatever the stored dtype."""
    hidden, kernel = self.hidden, self.kernel
    if hidden.dtype != kernel.dtype:
      hidden, kernel = hidden.astype(jnp.float32), kernel.astype(jnp.float32)
    out = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
    if self.bias is None:
      return out
    return out + jnp.broadcast_to(self.bias.astype(jnp.float32), out.shape)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TopK:
  """The K likeliest classes. The mass of the rest is known only as one minus their sum.

  Attributes:
    ids: [..., K], distinct classes.
    log_probs: [..., K], natural logs of probabilities normalised over the *whole* vocabulary at
      `temperature`; -inf marks a slot that is not used. Keep them in float32: the tail mass is
      one minus a sum close to one.
    vocab: V, the number of classes that the teacher chose from.
    temperature: the one at which `log_probs` was computed.
  """

  support: ClassVar[str] = "the K likeliest classes"
  ids: Int[Array, "*batch k"]
  log_probs: Float[Array, "*batch k"]
  vocab: int = dataclasses.field(metadata={"static": True})
  temperature: float = dataclasses.field(metadata={"static": True})

  @property
  def dtype(self) -> jnp.dtype:
    return self.log_probs.dtype


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampled:
  """Classes drawn with replacement, with importance weights.

  `sum_i weights[i] * f(ids[i])` estimates the teacher's expectation of f.

  Attributes:
    ids: [..., N], repeats allowed.
    weights: [..., N], they sum to 1; 0 marks a slot that is not used.
    vocab: V, the number of classes that the teacher chose from.
    temperature: of the teacher distribution that is estimated.
  """

  support: ClassVar[str] = "classes drawn at random"
  ids: Int[Array, "*batch n"]
  weights: Float[Array, "*batch n"]
  vocab: int = dataclasses.field(metadata={"static": True})
  temperature: float = dataclasses.field(metadata={"static": True})

  @property
  def dtype(self) -> jnp.dtype:
    return self.weights.dtype


Signal = Dense | HiddenHead | TopK | Sampled


def top_k_signal(logits: Float[Array, "*batch vocab"], *, k: int, temperature: float = 1.0) -> TopK:
  """Keeps the k likeliest classes of each row of dense logits.

  Args:
    logits: [..., V], any float dtype, classes last.
    k: static, 1 <= k <= V.
    temperature: > 0, a Python number: it is recorded in the signal.

  Returns:
    A `TopK` with float32 log-probabilities, likeliest first.

  Raises:
    KdjaxError: if k or temperature is out of range.

  Example:
    >>> signal = top_k_signal(jnp.log(jnp.array([0.2, 0.7, 0.1])), k=2)
    >>> signal.ids.tolist(), signal.vocab
    ([1, 0], 3)
  """
  vocab = logits.shape[-1]
  if not 1 <= k <= vocab:
    raise KdjaxError(f"top_k_signal: k is {k}; it must lie in 1..{vocab}, the number of classes")
  log_probs = _log_probs("top_k_signal", logits, temperature)
  values, ids = jax.lax.top_k(log_probs, k)
  return TopK(ids, values, vocab=vocab, temperature=float(temperature))


def sampled_signal(
  rng: Key[Array, ""],
  logits: Float[Array, "*batch vocab"],
  *,
  num_samples: int,
  temperature: float = 1.0,
  proposal_power: float = 1.0,
) -> Sampled:
  """Draws classes from (a power of) the teacher's distribution, with weights that undo the power.

  With `proposal_power=1` the weights are all 1 / num_samples and every expectation is unbiased. A
  smaller power looks into the tail more often; the weights are then normalised by their own sum,
  which costs a bias of order 1 / num_samples.

  Args:
    rng: a PRNG key.
    logits: [..., V], any float dtype, classes last.
    num_samples: static number of draws for each row, N >= 1.
    temperature: > 0, a Python number: it is recorded in the signal.
    proposal_power: > 0; the proposal is proportional to p ** proposal_power.

  Returns:
    A `Sampled` with float32 weights.

  Raises:
    KdjaxError: if num_samples, temperature or proposal_power is out of range.

  Example:
    >>> signal = sampled_signal(jax.random.key(0), jnp.array([0.0, -jnp.inf]), num_samples=4)
    >>> signal.ids.tolist(), signal.weights.tolist()
    ([0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25])

  Reference:
    Anshumann et al., "Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs",
    ACL 2025, https://arxiv.org/abs/2503.16870
  """
  if num_samples < 1:
    raise KdjaxError(f"sampled_signal: num_samples is {num_samples}; draw at least one")
  if not proposal_power > 0:
    raise KdjaxError(f"sampled_signal: proposal_power is {proposal_power}; it must be > 0")
  log_probs = _log_probs("sampled_signal", logits, temperature)
  proposal = proposal_power * log_probs
  # One draw at a time: the noise of all draws at once would be N times the size of the logits.
  draws = jax.lax.map(
    lambda key: jax.random.categorical(key, proposal), jax.random.split(rng, num_samples)
  )
  ids = jnp.moveaxis(draws, 0, -1)
  chosen = jnp.take_along_axis(log_probs, ids, axis=-1)
  weights = jax.nn.softmax((1.0 - proposal_power) * chosen, axis=-1)
  return Sampled(ids, weights, vocab=logits.shape[-1], temperature=float(temperature))


def _log_probs(who: str, logits: Array, temperature: float) -> Array:
  if not temperature > 0:
    raise KdjaxError(f"{who}: temperature is {temperature}; it must be a number > 0")
  return jax.nn.log_softmax(logits.astype(jnp.float32) / temperature, axis=-1)
