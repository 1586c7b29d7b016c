"""Emulated fine-tuning: what fine-tuning did to small models, added to a large one's logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.errors import KdjaxError
from kdjax.generation.sampling import keep_top_p
from kdjax.models.base import Decoding, Model, ModelVars
from kdjax.outputs import Head, Outputs

HEADED = frozenset({"hidden", "head"})


def emulated_logits(
  base_logits: Float[Array, "*batch base_vocab"],
  tuned_logits: Sequence[Float[Array, "*batch _"]],
  reference_logits: Float[Array, "*batch reference_vocab"],
  *,
  weights: Sequence[float],
  nucleus: float | None = None,
) -> Float[Array, "*batch vocab"]:
  r"""Logits as of a fine-tuned model: base + :math:`\sum_i w_i` (tuned_i - reference).

  The softmax of the sum is :math:`\pi_{base} \prod_i (\pi_i / \pi_{ref})^{w_i}`, normalised: the
  logits' constants cancel, so that none of them is normalised before.

  Args:
    base_logits: [..., V], of the model whose knowledge is kept, at the scale that is emulated.
    tuned_logits: K times [..., V'], of fine-tuned models of another scale, one for each behaviour.
    reference_logits: [..., V''], of what those were fine-tuned from. Vocabularies that are padded
      to different sizes are cut to the smallest.
    weights: K numbers. 1 is the fine-tuning itself, more amplifies it, less than 0 reverses it.
    nucleus: p, in (0, 1]; logits are changed only at the tokens of the tuned model's nucleus, the
      likeliest ones of mass p together; None changes all.

  Returns:
    float32 [..., V]; temperature and filters are for the sum.

  Raises:
    KdjaxError: as many weights as tuned models are wanted; `nucleus` out of its range.

  Example:
    >>> base, tuned, reference = jnp.array([1.0, 0.0]), jnp.array([3.0, 0.0]), jnp.array([2.0, 0.0])
    >>> print(emulated_logits(base, [tuned], reference, weights=[1.0]))
    [2. 0.]

  Reference:
    Mitchell et al., "An Emulator for Fine-Tuning Large Language Models using Small Language
    Models", ICLR 2024, equations 3 and 4, https://arxiv.org/abs/2310.12962. Several behaviours on
    one reference as in ZHZisZZ/emulated-disalignment,
    `src/inference_time_alignment/decoder.py`; the padding of a vocabulary is cut as in
    alisawuffles/proxy-tuning, `modeling/dexperts.py`. The nucleus is our reading of the paper's
    conservative decoding, of which there is no public code.
  """
  check_emulation(len(tuned_logits), weights, nucleus)
  vocab = min(logits.shape[-1] for logits in (base_logits, reference_logits, *tuned_logits))

  def cut(logits: Array) -> Array:
    return logits[..., :vocab].astype(jnp.float32)

  total, reference = cut(base_logits), cut(reference_logits)
  for weight, logits in zip(weights, map(cut, tuned_logits), strict=True):
    delta = jnp.float32(weight) * (logits - reference)
    if nucleus is not None:
      delta = jnp.where(jnp.isfinite(keep_top_p(logits, nucleus)), delta, 0.0)
    total = total + delta
  return total


def check_emulation(tuned: int, weights: Sequence[float], nucleus: float | None) -> None:
  """Raises KdjaxError for what `emulated_logits` cannot add up."""
  if not tuned:
    raise KdjaxError("there is no tuned model; give at least one")
  if len(weights) != tuned:
    raise KdjaxError(f"weights = {list(weights)}; wanted {tuned}, one for each tuned model")
  if nucleus is not None and not 0 < nucleus <= 1:
    raise KdjaxError(f"nucleus = {nucleus!r}; wanted a number in (0, 1], or None")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EmulatedHead:
  """The heads of all models as one, which reads their hidden states side by side.

  Attributes:
    heads: of the base, the reference unless it is the base, and the tuned models.
    widths: of what each of them reads.
    shared: whether the base is the reference, too.
    weights: see `emulated_logits`.
    nucleus: see `emulated_logits`.
  """

  heads: tuple[Head, ...]
  widths: tuple[int, ...] = dataclasses.field(metadata={"static": True})
  shared: bool = dataclasses.field(metadata={"static": True})
  weights: tuple[float, ...] = dataclasses.field(metadata={"static": True})
  nucleus: float | None = dataclasses.field(default=None, metadata={"static": True})

  def logits(self, hidden: Float[Array, "*batch width"]) -> Float[Array, "*batch vocab"]:
    """float32 logits of the sum, of what all heads read."""
    ends = [sum(self.widths[: i + 1]) for i in range(len(self.widths) - 1)]
    parts = jnp.split(hidden, ends, axis=-1)
    told = [head.logits(part) for head, part in zip(self.heads, parts, strict=True)]
    base, tuned = told[0], told[1 if self.shared else 2 :]
    reference = base if self.shared else told[1]
    return emulated_logits(base, tuned, reference, weights=self.weights, nucleus=self.nucleus)


def emulated(
  base: Model,
  reference: Model | None,
  tuned: Sequence[Model],
  *,
  weights: Sequence[float],
  nucleus: float | None = None,
) -> Model:
  """Several language models as the one that they emulate; it is frozen, decodes and teaches.

  Each of them keeps a cache of its own when it decodes. All read the same tokens.

  Args:
    base: a causal language model.
    reference: what the tuned ones were fine-tuned from; None where that is the base.
    tuned: one or more.
    weights: see `emulated_logits`.
    nucleus: see `emulated_logits`.

  Returns:
    A model whose variables `emulated_variables` makes of theirs. Its taps are "logits", "hidden"
    (all of theirs side by side) and "head" (an `EmulatedHead`); as many classes as the smallest.

  Raises:
    KdjaxError: see `emulated_logits`; a model that is no causal language model.
  """
  check_emulation(len(tuned), weights, nucleus)
  models = [base, *([] if reference is None else [reference]), *tuned]
  for model in models:
    if model.decode is None or hasattr(model.spec, "encoder"):
      raise KdjaxError("emulation wants causal language models, and one of these is none")
  if any(model.merged is not None for model in models):
    raise KdjaxError("a model under an adapter cannot be emulated with; merge the adapter first")

  def joined(outputs: Sequence[Outputs]) -> Outputs:
    hidden = [out.hidden for out in outputs]
    head = EmulatedHead(
      heads=tuple(out.head for out in outputs),
      widths=tuple(part.shape[-1] for part in hidden),
      shared=reference is None,
      weights=tuple(map(float, weights)),
      nucleus=nucleus,
    )
    return Outputs(hidden=jnp.concatenate(hidden, axis=-1), head=head)

  def split(variables: ModelVars) -> list[ModelVars]:
    return [ModelVars(*(part[_name(i)] for part in variables[:2])) for i in range(len(models))]

  def init(rng):
    keys = jax.random.split(rng, len(models))
    return emulated_variables([m.init(key) for m, key in zip(models, keys, strict=True)])

  def apply(variables, batch, *, taps=frozenset({"logits"}), train=False, rng=None):
    if unknown := taps - {"logits", *HEADED}:
      raise KdjaxError(f"emulated models cannot give the tap(s) {sorted(unknown)}")
    told = [
      model.apply(own, batch, taps=HEADED, train=False)[0]
      for model, own in zip(models, split(variables), strict=True)
    ]
    out = joined(told)
    if "logits" in taps:
      out = dataclasses.replace(out, logits=out.head.logits(out.hidden))
    unasked = dict.fromkeys(HEADED - taps)
    return dataclasses.replace(out, **unasked), variables.state

  def decode(variables: ModelVars) -> Decoding:
    parts = [m.decode(own) for m, own in zip(models, split(variables), strict=True)]

    def prefill(prompts, lengths, new):
      outputs, begins, caches = zip(*(p.prefill(prompts, lengths, new) for p in parts), strict=True)
      return joined(outputs), begins[0], caches

    def extend(tokens, positions, caches):
      both = (p.extend(tokens, positions, own) for p, own in zip(parts, caches, strict=True))
      outputs, caches = zip(*both, strict=True)
      return joined(outputs), caches

    return Decoding(prefill, extend)

  return Model(
    init=init,
    apply=apply,
    axes=lambda: emulated_variables([model.axes() for model in models]),
    taps=frozenset({"logits"}) | HEADED,
    num_classes=min(model.num_classes for model in models),
    spec=min((m.spec for m in models), key=lambda spec: spec.room(0)),
    decode=decode,
  )


def emulated_variables(parts: Sequence[ModelVars]) -> ModelVars:
  """Variables of `emulated`, of those of base, reference (where it is not the base) and tuned."""
  return ModelVars(*({_name(i): part[j] for i, part in enumerate(parts)} for j in range(2)))


def _name(place: int) -> str:
  return f"part{place}"
