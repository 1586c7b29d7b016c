"""Emulated fine-tuning: against public code, its identities, as text and as a teacher."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import teachers
from kdjax.errors import KdjaxError
from kdjax.generation import GREEDY, Generator, emulated, emulated_logits, emulated_variables
from kdjax.models.transformer import language_model
from kdjax.objectives import logit_kd, total
from kdjax.train.mesh import TEACHER_RULES, batch_sharding, make_mesh, shardings
from tests.models.convert.folders import opened

NUMBERS = Path(__file__).parents[2] / "third_party" / "reference" / "eft.npz"
LOGITS, HEADED = frozenset({"logits"}), frozenset({"hidden", "head"})


@functools.cache
def numbers():
  return dict(np.load(NUMBERS, allow_pickle=False))


@functools.cache
def parts():
  """(model, variables) of base, reference and two tuned ones; nobody was tuned, nobody cares."""
  return [opened(name)[1:] for name in ("llama", "mistral", "qwen2", "qwen3")]


def made(base=0, reference=1, tuned=(2,), **options):
  """The emulation of some of `parts` and its variables; reference None for the base."""
  places = [base, *([] if reference is None else [reference]), *tuned]
  model = emulated(
    parts()[base][0],
    None if reference is None else parts()[reference][0],
    [parts()[i][0] for i in tuned],
    **{"weights": [1.0] * len(tuned)} | options,
  )
  return model, emulated_variables([parts()[i][1] for i in places])


@functools.cache
def told(place):
  model, variables = parts()[place]
  out, _ = jax.jit(lambda v, t: model.apply(v, {"tokens": t}))(variables, numbers()["input_ids"])
  return np.asarray(out.logits)


def of(model, variables):
  run = jax.jit(lambda v, t: model.apply(v, {"tokens": t}, taps=LOGITS)[0].logits)
  return np.asarray(run(variables, numbers()["input_ids"]))


@pytest.mark.parametrize(
  ("name", "options"),
  [
    ("w_half", {"weights": [0.5]}),
    ("w_one", {}),
    ("w_minus", {"weights": [-0.7]}),
    ("two", {"tuned": (2, 3), "weights": [0.3, 0.7]}),
    ("own_base", {"reference": None}),
  ],
)
def test_logits_are_those_of_the_public_wrapper(name, options):
  np.testing.assert_allclose(of(*made(**options))[:, -1], numbers()[name], atol=2e-4)


def test_greedy_text_and_its_logits_are_proxy_tunings():
  """There the expert has five padding tokens that are very likely; here they are cut, too."""
  model, variables = made(weights=[1.5])
  prompts = numbers()["input_ids"]
  out = Generator(model)(variables, prompts.tolist(), max_new_tokens=6, sampling=GREEDY)
  np.testing.assert_array_equal(out.tokens, numbers()["proxy_tokens"])
  wanted = jax.nn.log_softmax(numbers()["proxy_logits"]).max(-1)
  np.testing.assert_allclose(out.log_probs, wanted, atol=1e-4)
  base, reference, tuned = (told(i)[:, -1] for i in range(3))
  padded = jnp.pad(tuned, ((0, 0), (0, 5)), constant_values=50.0)
  cut = emulated_logits(base, [padded], reference, weights=[1.5])
  np.testing.assert_allclose(cut, numbers()["proxy_logits"][:, 0], atol=3e-4)


def test_identities():
  rng = np.random.default_rng(0)
  base, tuned, other, reference = rng.normal(0, 3, (4, 5, 11)).astype(np.float32)
  probs = lambda *args, **options: jax.nn.softmax(emulated_logits(*args, **options))  # noqa: E731
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  close(probs(base, [tuned], reference, weights=[0.0]), jax.nn.softmax(base))
  close(probs(reference, [tuned], reference, weights=[1.0]), jax.nn.softmax(tuned))
  close(probs(base, [reference], reference, weights=[2.7]), jax.nn.softmax(base))
  shifted = probs(base + 3, [tuned - 5], reference + 7, weights=[0.6])
  close(shifted, probs(base, [tuned], reference, weights=[0.6]))
  normalised = [jax.nn.log_softmax(x) for x in (base, tuned, reference)]
  close(
    probs(normalised[0], [normalised[1]], normalised[2], weights=[0.6]),
    probs(base, [tuned], reference, weights=[0.6]),
  )
  for lam, alone in ((1.0, tuned), (0.0, other)):
    both = probs(base, [tuned, other], reference, weights=[lam, 1 - lam])
    close(both, probs(base, [alone], reference, weights=[1.0]))


def test_outside_the_nucleus_nothing_changes():
  base = jnp.array([0.5, -1.0, 2.0, 0.0])
  tuned = jnp.log(jnp.array([0.6, 0.3, 0.06, 0.04]))  # 0.85 needs the first two
  reference = jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4]))
  got = emulated_logits(base, [tuned], reference, weights=[2.0], nucleus=0.85)
  wanted = [0.5 + 2 * np.log(6), -1 + 2 * np.log(1.5), 2, 0]
  np.testing.assert_allclose(got, wanted, rtol=1e-5)
  whole = emulated_logits(base, [tuned], reference, weights=[2.0], nucleus=1.0)
  wanted = base + 2 * (tuned - reference)
  np.testing.assert_allclose(whole, wanted, rtol=1e-5)


def test_the_head_reads_hidden_states_and_casts_to_float32():
  model, variables = made(tuned=(2, 3), weights=[0.3, 0.7], nucleus=0.9)
  batch = {"tokens": numbers()["input_ids"]}
  out, _ = model.apply(variables, batch, taps=HEADED | LOGITS)
  assert out.hidden.shape[-1] == sum(m.spec.width for m, _ in parts())
  np.testing.assert_allclose(out.head.logits(out.hidden), out.logits, atol=1e-5)
  assert out.head.logits(out.hidden.astype(jnp.bfloat16)).dtype == jnp.float32
  alone, _ = model.apply(variables, batch, taps=LOGITS)
  assert alone.hidden is None and alone.head is None


def student():
  spec = parts()[0][0].spec.replace(width=16, depth=1, mlp_width=16)
  model = language_model(spec)
  return model, model.init(jax.random.key(4))


@pytest.mark.parametrize("dtype", [None, "bfloat16", "int8"])
def test_a_student_learns_from_it_in_chunks(dtype):
  """Value and gradient are those of whole logits; none goes to the teacher."""
  model, variables = made()
  if dtype == "int8":  # each model rounds its own layers
    variables = emulated_variables(
      [teachers.frozen(m, v, dtype="int8").frozen for m, v in parts()[:3]]
    )
  teacher = teachers.frozen(model, variables, dtype=None if dtype == "int8" else dtype)
  learner, weights = student()
  batch = {"tokens": numbers()["input_ids"], "label": numbers()["input_ids"]}

  def loss(weights, frozen, chunk_size):
    objective = logit_kd(loss="forward_kl", chunk_size=chunk_size)
    said = teacher.apply(frozen, (), batch, taps=objective.taps.teacher)
    own, _ = learner.apply(weights, batch, taps=objective.taps.student)
    return total(objective.apply(objective.init(None, own, said, batch), own, said, batch,
                                 step=0, rng=None))  # fmt: skip

  grad = jax.jit(jax.value_and_grad(loss), static_argnums=2)
  with jax.numpy_dtype_promotion("standard"):  # as in every run
    whole, chunked = (grad(weights, teacher.frozen, size) for size in (None, 4))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), whole, chunked)
  said = teacher.apply(teacher.frozen, (), batch, taps=LOGITS).logits
  exact = told(0) + told(2) - told(1)
  np.testing.assert_allclose(said, exact, atol={None: 2e-4, "bfloat16": 0.6, "int8": 0.6}[dtype])
  assert isinstance(teacher.decode(teacher.frozen), tuple)


def test_its_weights_lie_where_each_models_do():
  """Eight devices: each part is split by its own axis names, the logits stay the same."""
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  model, variables = made()
  placed = jax.device_put(variables, shardings(variables, model.axes(), TEACHER_RULES, mesh))
  tokens = jnp.tile(numbers()["input_ids"], (4, 1))
  run = jax.jit(lambda v, t: model.apply(v, {"tokens": t}, taps=LOGITS)[0].logits)
  got = run(placed, jax.device_put(tokens, batch_sharding(mesh)))
  np.testing.assert_allclose(np.asarray(got)[:3], of(model, variables), atol=2e-4)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: made(tuned=()), "no tuned model"),
    (lambda: made(weights=[1.0, 2.0]), r"weights = \[1.0, 2.0\]; wanted 1"),
    (lambda: made(nucleus=0.0), r"nucleus = 0.0; wanted a number in \(0, 1\]"),
    (
      lambda: emulated(opened("t5")[1], None, [opened("t5")[1]], weights=[1.0]),
      "wants causal language models",
    ),
    (
      lambda: made()[0].apply(made()[1], {"tokens": numbers()["input_ids"]},
                              taps=frozenset({"attention"})),
      r"cannot give the tap\(s\) \['attention'\]",
    ),
  ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(make, message):
  with pytest.raises(KdjaxError, match=message):
    make()
