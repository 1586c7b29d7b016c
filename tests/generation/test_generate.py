"""Generation against the plain pass, token by token: every family, mixed lengths, devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.generation import GREEDY, Generator, Sampling, generate
from kdjax.generation.sampling import filtered, log_prob_of
from kdjax.models.transformer import Spec, language_model
from kdjax.train.mesh import STUDENT_RULES, batch_sharding, make_mesh, shardings
from tests.models.convert.folders import DECODERS, opened, reference

SPEC = Spec(
  vocab=50, width=32, depth=2, heads=4, kv_heads=2, head_dim=8, mlp_width=48, max_positions=48
)
LENGTHS = np.array([5, 9, 1, 12], np.int32)


@functools.cache
def tiny():
  model = language_model(SPEC)
  variables = model.init(jax.random.key(0))
  # Layers strong enough that a text is not its last token again and again: the head is tied.
  return model, jax.tree.map(lambda a: a * 3.0 if a.ndim > 2 else a, variables)


def ragged(vocab, lengths=LENGTHS, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, vocab, (len(lengths), max(lengths)), dtype=np.int32)


@functools.lru_cache(maxsize=1)
def forward_of(model):
  return jax.jit(lambda v, t: model.apply(v, {"tokens": t})[0].logits)


def plainly(model, variables, prompt, count, choose=lambda logits, step: logits.argmax(-1)):
  """(tokens, logits of each) by a pass over the whole text for each token."""
  text = np.zeros((1, min(24, model.spec.max_positions)), np.int32)
  text[0, : len(prompt)] = prompt
  forward = forward_of(model)
  said = []
  for step in range(count):
    said.append(np.asarray(forward(variables, text))[0, len(prompt) + step - 1])
    text[0, len(prompt) + step] = choose(said[-1], step)
  return text[0, len(prompt) : len(prompt) + count], np.stack(said)


@pytest.mark.parametrize("name", DECODERS)
def test_with_a_cache_it_writes_what_the_plain_pass_writes(name):
  """The text goes far beyond the windows of 8, and each row is as it would be alone."""
  _, model, variables = opened(name)
  prompts = np.array(reference(name)[0]["tokens"])[:, :12]
  lengths = np.array([7, 12], np.int32)[: len(prompts)]
  for row, length in zip(prompts, lengths, strict=True):
    row[length:] = 3  # padding is seen by nobody
  count = 11

  @jax.jit
  def run(variables, prompts, lengths):
    return generate(
      model, variables, prompts, lengths, rng=jax.random.key(0), max_new_tokens=count,
      sampling=GREEDY,
    )  # fmt: skip

  out = run(variables, prompts, lengths)
  for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
    tokens, logits = plainly(model, variables, prompt[:length], count)
    np.testing.assert_array_equal(out.tokens[row], tokens)
    np.testing.assert_allclose(
      out.log_probs[row], log_prob_of(jnp.asarray(logits), jnp.asarray(tokens)), atol=1e-4
    )
  assert out.lengths.tolist() == [count] * len(lengths) and not out.finished.any()
  assert not out.sample_log_probs.any()


def test_log_probs_are_the_models_and_those_of_the_draw():
  model, variables = tiny()
  sampling = Sampling(0.7, top_k=8, top_p=0.9)
  prompts = ragged(SPEC.vocab)

  @jax.jit
  def run(variables):
    return generate(
      model, variables, prompts, LENGTHS, rng=jax.random.key(3), max_new_tokens=6,
      sampling=sampling,
    )  # fmt: skip

  @jax.jit
  def wanted(logits, tokens):
    return log_prob_of(logits, tokens), log_prob_of(filtered(logits, sampling), tokens)

  out = run(variables)
  for row, length in enumerate(LENGTHS):
    written = np.asarray(out.tokens[row])
    _, logits = plainly(
      model, variables, prompts[row, :length], 6, lambda _, step, w=written: w[step]
    )
    model_says, drawn_from = wanted(logits, written)
    np.testing.assert_allclose(out.log_probs[row], model_says, atol=2e-5)
    np.testing.assert_allclose(out.sample_log_probs[row], drawn_from, atol=5e-5)
  assert (np.asarray(out.sample_log_probs) > np.asarray(out.log_probs)).mean() > 0.9


def test_a_row_depends_on_its_number_and_on_no_other_row():
  model, variables = tiny()
  prompts = ragged(SPEC.vocab)
  numbers = np.array([40, 41, 42, 43], np.int32)

  @jax.jit
  def run(prompts, lengths, rows):
    return generate(
      model, variables, prompts, lengths, rng=jax.random.key(1), max_new_tokens=8, rows=rows
    )

  out = run(prompts, LENGTHS, numbers)
  order = np.array([2, 0, 3, 1])
  np.testing.assert_array_equal(
    run(prompts[order], LENGTHS[order], numbers[order]).tokens, out.tokens[order]
  )
  alone = run(prompts[1:2], LENGTHS[1:2], numbers[1:2])
  np.testing.assert_array_equal(alone.tokens[0], out.tokens[1])
  # The same prompt under other numbers is continued in other ways.
  same = run(prompts[[0] * 4], LENGTHS[[0] * 4], numbers)
  assert len({tuple(row) for row in np.asarray(same.tokens).tolist()}) == 4


def test_sequences_end_at_end_tokens_and_at_stop_sequences():
  model, variables = tiny()
  prompts, count = ragged(SPEC.vocab), 10

  def run(**options):
    return jax.jit(
      lambda v: generate(
        model, v, prompts, LENGTHS, rng=jax.random.key(5), max_new_tokens=count, pad_id=49,
        **options,
      )
    )(variables)  # fmt: skip

  free = np.asarray(run().tokens)
  eos, stop = int(free[0, 3]), tuple(free[1, 4:6].tolist())
  # What is not written yet is padding, and no part of a stop sequence.
  stops = (stop, (int(free[2, 0]), 49), (1, 2, 3) * 9)
  out = run(eos_ids=(eos,), stops=stops)
  ended = 0
  for row in range(len(LENGTHS)):
    text = free[row].tolist()
    ends = [i + 1 for i, token in enumerate(text) if token == eos]
    ends += [i + 2 for i in range(count - 1) if tuple(text[i : i + 2]) in stops]
    length = min(ends, default=count)
    assert out.lengths[row] == length and out.finished[row] == bool(ends)
    assert out.tokens[row].tolist() == text[:length] + [49] * (count - length)
    assert not out.log_probs[row, length:].any() and (out.log_probs[row, :length] < 0).all()
    ended += bool(ends)
  assert ended >= 2 and out.lengths[0] == 4 and out.lengths[1] <= 6


def test_it_stops_when_all_have_ended():
  model, variables = tiny()
  steps = []

  def counted(variables):
    decoding = model.decode(variables)

    def extend(*args):
      jax.debug.callback(lambda: steps.append(1))
      return decoding.extend(*args)

    return decoding._replace(extend=extend)

  prompts = ragged(SPEC.vocab)

  @jax.jit
  def run(variables):
    return generate(
      model._replace(decode=counted), variables, prompts, LENGTHS, rng=jax.random.key(5),
      max_new_tokens=20, eos_ids=tuple(range(0, 50, 3)),
    )  # fmt: skip

  out = run(variables)
  jax.effects_barrier()
  assert out.finished.all() and len(steps) == int(out.lengths.max()) - 1 < 19


def test_inside_a_step_with_a_gradient():
  model, variables = tiny()
  prompts = ragged(SPEC.vocab)

  def size(variables, tokens):
    return jnp.square(model.apply(variables, {"tokens": tokens})[0].logits).mean()

  def loss(variables, key):
    out = generate(model, variables, prompts, LENGTHS, rng=key, max_new_tokens=4)
    # The log-probabilities are numbers like the tokens: no gradient passes through them.
    return size(variables, out.tokens) + out.log_probs.sum(), out.tokens

  (_, tokens), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
    variables, jax.random.key(1)
  )
  wanted = jax.jit(jax.grad(size))(variables, tokens)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, wanted)


def test_under_vmap_it_is_the_same():
  model, variables = tiny()
  prompts = ragged(SPEC.vocab)
  keys = jax.random.split(jax.random.key(1))

  def run(key):
    return generate(model, variables, prompts, LENGTHS, rng=key, max_new_tokens=4).tokens

  given = jax.jit(jax.vmap(run))(keys)
  np.testing.assert_array_equal(given, jnp.stack([jax.jit(run)(key) for key in keys]))


def test_on_eight_devices_it_is_the_same():
  model, variables = tiny()
  lengths = np.array([5, 9, 1, 12, 3, 8, 7, 10], np.int32)
  rows = [row[:n].tolist() for row, n in zip(ragged(50, lengths), lengths, strict=True)]
  options = {"max_new_tokens": 8, "seed": 2, "eos_ids": [4], "sampling": Sampling(0.8, top_k=20)}
  generator = Generator(model)
  wanted = generator(variables, rows, **options)
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  placed = jax.device_put(variables, shardings(variables, model.axes(), STUDENT_RULES, mesh))
  given = generator(placed, rows, **options, sharding=batch_sharding(mesh))
  np.testing.assert_array_equal(given.tokens, wanted.tokens)
  np.testing.assert_allclose(given.log_probs, wanted.log_probs, atol=2e-5)
  assert not given.tokens.sharding.is_fully_replicated


def test_few_programs_for_prompts_of_all_lengths_and_all_values_of_the_options():
  model = language_model(SPEC.replace(max_positions=96))
  variables = model.init(jax.random.key(0))
  generator = Generator(model)
  for length in (1, 5, 31, 32):
    generator(variables, [[1] * length, [2]], max_new_tokens=3, seed=length)
  assert generator.programs == 1
  for temperature in (0, 0.5, 1.3):
    generator(variables, [[1], [2]], max_new_tokens=3, sampling=Sampling(temperature))
  assert generator.programs == 1
  for length in (33, 64):
    generator(variables, [[1] * length, [2]], max_new_tokens=3)
  assert generator.programs == 2
  # The longest prompt that the positions leave room for has a smaller bucket.
  assert generator(variables, [[1] * 93, [2]], max_new_tokens=3).lengths.tolist() == [3, 3]
  for k in (3, 7):
    generator(variables, [[1], [2]], max_new_tokens=3, sampling=Sampling(1.0, top_k=k))
  assert generator.programs == 4


def test_padding_to_a_bucket_changes_nothing():
  model, variables = tiny()
  prompts = ragged(SPEC.vocab)
  rows = [row[:n].tolist() for row, n in zip(prompts, LENGTHS, strict=True)]
  given = Generator(model)(variables, rows, max_new_tokens=6, seed=4)

  @jax.jit
  def run(variables):
    return generate(model, variables, prompts, LENGTHS, rng=jax.random.key(4), max_new_tokens=6)

  wanted = run(variables)
  np.testing.assert_array_equal(given.tokens, wanted.tokens)


def test_the_last_position_can_be_written():
  model = language_model(SPEC.replace(position="learned", max_positions=16))
  variables = model.init(jax.random.key(0))
  prompt = list(range(12))
  out = Generator(model)(variables, [prompt], max_new_tokens=4, sampling=GREEDY)
  np.testing.assert_array_equal(out.tokens[0], plainly(model, variables, prompt, 4)[0])


@pytest.mark.parametrize(
  ("prompts", "options", "told"),
  [
    ([], {}, "prompts is empty"),
    ([[1], []], {}, r"prompts\[1\] is empty; give at least one token"),
    ([[1] * 40], {}, "40 tokens and max_new_tokens = 9 .* max_positions = 48; .* at most 8"),
    ([[1, 50]], {}, "the id 50; the model has 0 to 49. Is the tokenizer another model's"),
    ([[1]], {"max_new_tokens": 0}, "max_new_tokens = 0; wanted an integer >= 1"),
    ([[1]], {"sampling": Sampling(-1.0)}, "temperature = -1.0"),
    ([[1]], {"sampling": Sampling(top_p=1.5)}, "top_p = 1.5"),
    ([[1]], {"eos_ids": [3, 60]}, "eos_ids has 60; wanted ids below 50"),
    ([[1]], {"stops": [[3], []]}, r"stops\[1\] is empty"),
  ],
)
def test_mistakes_are_told(prompts, options, told):
  model, variables = tiny()
  with pytest.raises(KdjaxError, match=told):
    Generator(model)(variables, prompts, **{"max_new_tokens": 9, **options})


def test_a_model_without_a_cache_says_so():
  _, model, variables = opened("bert")
  with pytest.raises(KdjaxError, match=r"cannot generate.*encoders do not"):
    Generator(model)(variables, [[1]], max_new_tokens=2)
