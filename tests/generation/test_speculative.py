"""Speculative decoding: the text of the checking model, whatever drafts it."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from kdjax.errors import KdjaxError
from kdjax.generation import GREEDY, Sampling, emulated, emulated_variables, generate, speculate
from kdjax.generation.sampling import filtered
from kdjax.models.transformer import Spec, language_model

SPEC = Spec(
  vocab=4, width=16, depth=1, heads=2, kv_heads=2, head_dim=8, mlp_width=16, max_positions=32
)


@functools.cache
def of(seed, vocab=4):
  model = language_model(SPEC.replace(vocab=vocab))
  variables = model.init(jax.random.key(seed))
  return model, jax.tree.map(lambda a: a * 6.0 if a.ndim > 1 else a, variables)


@functools.cache
def emulation():
  """A large base, and a small model before and after what it learnt: seeds 0, 1 and 2."""
  model = emulated(of(0)[0], of(1)[0], [of(2)[0]], weights=[1.0])
  return model, emulated_variables([of(i)[1] for i in range(3)])


PROMPTS = np.array([[3, 1, 2, 0, 0], [1, 2, 3, 0, 2], [2, 0, 0, 0, 0]], np.int32)
LENGTHS = np.array([3, 5, 1], np.int32)


def run(target, draft, prompts=PROMPTS, lengths=LENGTHS, **options):
  (model, variables), (small, small_variables) = target, draft
  options = {"rng": jax.random.key(0), "draft_tokens": 3, "max_new_tokens": 9} | options
  call = jax.jit(lambda v, s: speculate(model, v, small, s, prompts, lengths, **options))
  return call(variables, small_variables)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, top_k=3, top_p=0.9)])
def test_texts_are_distributed_as_without_drafts(sampling):
  """All texts of three tokens: their frequencies against the model's own probabilities."""
  model, variables = emulation()
  count, prompt = 6000, np.array([[3, 1, 2]], np.int32)
  prompts = np.repeat(prompt, count, 0)
  written, counted = run(
    emulation(), of(2), prompts, np.full(count, 3, np.int32), draft_tokens=2, max_new_tokens=3,
    sampling=sampling, rng=jax.random.key(5),
  )  # fmt: skip
  texts = np.array(list(itertools.product(range(4), repeat=3)))
  rows = np.concatenate([np.repeat(prompt, len(texts), 0), texts], axis=1)
  logits = jax.jit(lambda v: model.apply(v, {"tokens": rows})[0].logits)(variables)
  probs = np.asarray(jax.nn.softmax(filtered(logits, sampling)))[:, 2:5]
  wanted = np.take_along_axis(probs, texts[..., None], -1)[..., 0].prod(1)
  codes = np.asarray(written.tokens) @ np.array([16, 4, 1])
  seen = np.bincount(codes, minlength=64)
  assert wanted.sum() == pytest.approx(1, abs=1e-4) and not seen[wanted < 1e-9].any()
  often = wanted * count >= 5
  assert often.sum() > 8
  grouped = lambda x: np.append(x[often], x[~often].sum())  # noqa: E731
  expected = grouped(wanted.astype(np.float64)) + 1e-12
  test = scipy.stats.chisquare(grouped(seen), expected * count / expected.sum())
  assert test.pvalue > 0.01, test
  # Drafts that are all alike in value would pass too, were they never refused or never kept.
  kept = int(counted.accepted.sum()) / (2 * int(counted.passes.sum()))
  assert 0.2 < kept < 0.95
  # What is said of each token is what the model says.
  drawn = np.take_along_axis(probs[codes], texts[codes][..., None], -1)[..., 0]
  np.testing.assert_allclose(np.exp(written.sample_log_probs), drawn, atol=1e-4)
  whole = np.asarray(jax.nn.softmax(logits))[:, 2:5][codes]
  own = np.take_along_axis(whole, texts[codes][..., None], -1)[..., 0]
  np.testing.assert_allclose(np.exp(written.log_probs), own, atol=1e-4)


@pytest.mark.parametrize("draft_tokens", [1, 3, 5])
def test_greedy_text_is_the_models_own(draft_tokens):
  model, variables = emulation()
  alone = jax.jit(lambda v: generate(
    model, v, PROMPTS, LENGTHS, rng=jax.random.key(0), max_new_tokens=9, sampling=GREEDY,
    eos_ids=(1,), stops=((2, 2),),
  ))(variables)  # fmt: skip
  written, counted = run(
    emulation(), of(2), draft_tokens=draft_tokens, sampling=GREEDY, eos_ids=(1,), stops=((2, 2),)
  )
  np.testing.assert_array_equal(written.tokens, alone.tokens)
  np.testing.assert_array_equal(written.lengths, alone.lengths)
  np.testing.assert_array_equal(written.finished, alone.finished)
  np.testing.assert_allclose(written.log_probs, alone.log_probs, atol=1e-5)
  assert (counted.accepted <= draft_tokens * counted.passes).all()


def test_a_model_that_drafts_for_itself_is_always_right():
  written, counted = run(of(0), of(0), draft_tokens=4, max_new_tokens=11)
  # 1 token from the prompt's pass, then 4 drafts and one more in each of two passes.
  assert written.lengths.tolist() == [11] * 3
  assert counted.passes.tolist() == [2] * 3 and counted.accepted.tolist() == [8] * 3


def test_ends_and_padding():
  """Sequences end at the first end token or stop sequence, wherever in a draft it lies."""
  written, _ = run(of(0), of(1), max_new_tokens=16, eos_ids=(1,), stops=((2, 3),), pad_id=0)
  free, _ = run(of(0), of(1), max_new_tokens=16)
  for tokens, length, finished, whole in zip(
    *map(np.asarray, (written.tokens, written.lengths, written.finished, free.tokens)), strict=True
  ):
    ends = [i for i, t in enumerate(whole) if t == 1 or (i and (whole[i - 1], t) == (2, 3))]
    assert length == (ends[0] + 1 if ends else 16) and finished == bool(ends)
    np.testing.assert_array_equal(tokens[:length], whole[:length])
    assert not tokens[length:].any()
  assert written.finished.any()
  np.testing.assert_array_equal(written.log_probs == 0, np.arange(16)[None] >= np.asarray(
    written.lengths)[:, None])  # fmt: skip


def test_a_row_depends_on_no_other_row():
  one, _ = run(of(0), of(1), PROMPTS[1:2], LENGTHS[1:2], rows=jnp.array([1]))
  all_, _ = run(of(0), of(1))
  np.testing.assert_array_equal(one.tokens[0], all_.tokens[1])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"draft_tokens": 0}, "draft_tokens = 0; wanted an integer >= 1"),
    ({"draft_tokens": 20}, "more than the model's max_positions = 32"),
    ({"sampling": Sampling(-1.0)}, "temperature = -1.0"),
  ],
)
def test_mistakes_are_told(options, message):
  with pytest.raises(KdjaxError, match=message):
    run(of(0), of(1), **options)


def test_a_draft_model_has_the_models_tokens():
  with pytest.raises(KdjaxError, match="draft model has 4 tokens and the model 5"):
    run(of(0, 5), of(1))
