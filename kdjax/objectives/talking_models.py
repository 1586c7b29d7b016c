"""Talking Models: student and teacher exchange messages through the teacher's middle layers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.errors import KdjaxError
from kdjax.objectives.base import (
  Objective,
  ObjectiveResult,
  ObjectiveVars,
  Taps,
  Term,
  valid,
)
from kdjax.objectives.combinators import combine
from kdjax.objectives.logits import cross_entropy
from kdjax.objectives.networks import apply_mlp, init_mlp, normalize

LOW, HIGH = 0, 1


def talking_models(
  *,
  student_layers: tuple[int, int] = (0, -1),
  teacher_layers: tuple[int, int] = (0, -1),
  message_width: int = 128,
  rounds: int = 1,
  interact_weight: float = 1.0,
  message_weight: float = 0.1,
  state_weight: float = 0.1,
  ce_weight: float = 1.0,
  target_grad: bool = True,
) -> Objective:
  """Labels + a dialogue: the student's low state, sent, thought over by the teacher, sent back.

  Per round: m = E_S(student low); u = D_T(m); v = teacher's layers low..high on u; r = D_S(E_T(v)),
  which is to equal the student's high state. Further rounds encode the reply r.

  Args:
    student_layers: (low, high) of the student's hidden states.
    teacher_layers: (low, high) of the teacher's; the layers between them carry gradients to the
      student but are frozen.
    message_width: width of the shared message space.
    rounds: number of exchanges, at least 1; their losses are averaged.
    interact_weight: weight of the reply's error.
    message_weight: weight of the two models' messages about one input differing.
    state_weight: weight of the coders not inverting each other.
    ce_weight: weight of the labels, without which the student's states may collapse.
    target_grad: whether the reply's error also moves the student's high state (the paper does not
      say; knowledge reaches the student either way through its low state).

  Returns:
    An objective whose params are the coders; they are dropped after training. The paper gives the
    structure; coder sizes, adapters and weights are ours, since no code is public.

  Raises:
    KdjaxError: no rounds; when shapes are known, layers or leading axes that do not fit.

  Reference:
    Zhao et al., "Talking Models: Distill Pre-trained Knowledge to Downstream Models via Interactive
    Communication", 2023, https://arxiv.org/abs/2310.03188.
  """
  if rounds < 1:
    raise KdjaxError(f"talking_models: rounds = {rounds} must be at least 1")

  def init(rng, student, teacher, batch):
    states = _pick(student, student_layers, "student") + _pick(teacher, teacher_layers, "teacher")
    if len({state.shape[:-1] for state in states}) > 1:
      raise KdjaxError(
        "talking_models: student and teacher states must agree in all axes but the last; they are"
        f" {[state.shape for state in states]}"
      )
    student_rng, teacher_rng = jax.random.split(rng)
    widths = [state.shape[-1] for state in states]
    return ObjectiveVars(
      {
        "student": _init_coder(student_rng, widths[:2], message_width),
        "teacher": _init_coder(teacher_rng, widths[2:], message_width),
      }
    )

  def apply(variables, student, teacher, batch, *, step, rng):
    own, other = variables.params["student"], variables.params["teacher"]
    student_low, student_high = _pick(student, student_layers, "student")
    teacher_low, teacher_high = _pick(teacher, teacher_layers, "teacher")
    depth = len(teacher.hidden_states)
    start, stop = (layer % depth + 1 for layer in teacher_layers)
    target = student_high if target_grad else jax.lax.stop_gradient(student_high)

    message, interact = encode(own, student_low, LOW), jnp.float32(0)
    for _ in range(rounds):
      heard = decode(other, message, LOW)
      thought = teacher.segment(heard.astype(teacher_low.dtype), start, stop)
      reply = decode(own, encode(other, thought, HIGH), HIGH)
      interact += _distance(reply, target) / rounds
      message = encode(own, reply, HIGH)

    messages = _distance(encode(own, student_low, LOW), encode(other, teacher_low, LOW))
    messages += _distance(encode(own, student_high, HIGH), encode(other, teacher_high, HIGH))
    states = sum(
      _distance(decode(coder, encode(coder, state, tap), tap), state)
      for coder, low, high in ((own, student_low, student_high), (other, teacher_low, teacher_high))
      for state, tap in ((low, LOW), (high, HIGH))
    )
    where = valid(batch, interact)
    return ObjectiveResult(
      {
        "interact": Term(interact, where, interact_weight),
        "message": Term(messages, where, message_weight),
        "state": Term(states, where, state_weight),
      }
    )

  dialogue = Objective(
    apply=apply,
    taps=Taps(frozenset({"hidden_states"}), frozenset({"hidden_states", "segment"})),
    init=init,
  )
  return combine({"ce": (ce_weight, cross_entropy()), "talk": (1.0, dialogue)})


def encode(coder, state: Float[Array, "*batch width"], tap: int) -> Float[Array, "*batch message"]:
  """A hidden state as a message: the tap's adapter, the model's encoder, normalised."""
  adapted = apply_mlp(coder[f"in{tap}"], state)
  return normalize(apply_mlp(coder["encoder"], adapted))


def decode(
  coder, message: Float[Array, "*batch message"], tap: int
) -> Float[Array, "*batch width"]:
  """A message as a hidden state of the given tap."""
  return apply_mlp(coder[f"out{tap}"], apply_mlp(coder["decoder"], message))


def _init_coder(rng, widths: list[int], message: int):
  """One encoder and one decoder per model, with a linear adapter per tap."""
  keys = jax.random.split(rng, 6)
  hidden = 2 * message
  return {
    "encoder": init_mlp(keys[0], (message, hidden, message)),
    "decoder": init_mlp(keys[1], (message, hidden, message)),
    "in0": init_mlp(keys[2], (widths[LOW], message)),
    "in1": init_mlp(keys[3], (widths[HIGH], message)),
    "out0": init_mlp(keys[4], (message, widths[LOW])),
    "out1": init_mlp(keys[5], (message, widths[HIGH])),
  }


def _pick(outputs, layers: tuple[int, int], side: str):
  states = outputs.hidden_states
  depth = len(states)
  low, high = layers
  if not (-depth <= low < depth and -depth <= high < depth and low % depth < high % depth):
    raise KdjaxError(
      f"talking_models: {side}_layers = {tuple(layers)} must be (low, high) with low before high"
      f" among the {side}'s {depth} layers"
    )
  return [states[low], states[high]]


def _distance(a: Array, b: Array) -> Float[Array, "batch"]:
  """Mean squared difference per example, over all other axes."""
  square = jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32))
  return square.mean(axis=tuple(range(1, square.ndim)))
