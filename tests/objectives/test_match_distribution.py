"""Distribution matching across tokenizers: the official targets, one-hot steps, bad batches."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.data.text.warping import one_to_one, spelled
from kdjax.errors import KdjaxError
from kdjax.losses import TopK
from kdjax.objectives import match_distribution
from kdjax.objectives.base import total
from kdjax.objectives.match_distribution import aligned_targets
from kdjax.outputs import Head, Outputs
from tests.objectives.helpers import applied

STORED = np.load(Path(__file__).parents[2] / "third_party/reference/specializing_small_lms.npz")
OURS, THEIRS = (0, 3, 5, 6), (1, 2, 4, 7)
VOCAB, OTHER, WIDTH = 8, 9, 4


def dense(targets: TopK) -> np.ndarray:
  ids, probs = np.asarray(targets.ids), np.exp(np.asarray(targets.log_probs))
  out = np.zeros((len(ids), targets.vocab))
  np.add.at(out, (np.arange(len(ids))[:, None], ids), probs)
  return out


@pytest.mark.parametrize("number", range(4))
def test_the_targets_of_the_official_code(number):
  read = {name: STORED[f"{number}_{name}"] for name in ("student", "teacher", "vocabulary")}
  own = {spelled(token): i for i, token in enumerate(read["vocabulary"].tolist())}
  step_tokens = STORED[f"{number}_step_tokens"]
  theirs = {token: i for i, token in enumerate(sorted(set(step_tokens.ravel().tolist())))}
  student = [spelled(token) for token in read["student"].tolist()]
  places = one_to_one(read["teacher"].tolist(), student)
  ids = np.vectorize(theirs.get)(step_tokens)[places]
  told = TopK(
    jnp.asarray(ids),
    jnp.log(jnp.asarray(STORED[f"{number}_step_probs"][places], jnp.float32)),
    vocab=len(theirs),
    temperature=1.0,
  )
  table = jnp.asarray([own.get(token, -1) for token in theirs])
  labels = jnp.asarray([own[token] for token in student])
  found = dense(aligned_targets(told, table, labels, jnp.asarray(places >= 0), len(own)))
  wanted = np.zeros_like(found)
  for row, tokens in enumerate(STORED[f"{number}_moved_tokens"].tolist()):
    for token, prob in zip(tokens, STORED[f"{number}_moved_probs"][row], strict=True):
      if token:
        wanted[row, own[spelled(token)]] = prob
  if number == 0:
    assert (places >= 0).any() and (places < 0).any()
  # A step at which a token of the teacher comes twice keeps the first, as the official code does.
  repeated = [len(set(row)) < len(row) for row in step_tokens[places].tolist()]
  np.testing.assert_allclose(found[~np.array(repeated)], wanted[~np.array(repeated)], atol=1e-6)


def test_the_divergence_of_the_official_code():
  # It adds 1e-10 to the student's probabilities, none of which is that small.
  targets = STORED["targets"]
  ids = np.argsort(-targets, axis=1)[:, :5]
  log_probs = np.log(np.take_along_axis(targets, ids, axis=1))
  told = TopK(jnp.asarray(ids), jnp.asarray(log_probs), vocab=12, temperature=1.0)
  found = losses.sparse_forward_kl(jnp.asarray(STORED["logits"]), told, tail="drop")
  np.testing.assert_allclose(found, STORED["kl"], rtol=1e-5, atol=1e-5)


def sides(seed=0, time=6):
  keys = jax.random.split(jax.random.key(seed), 4)
  made = []
  for key, vocab in zip(keys[:2], (VOCAB, OTHER), strict=True):
    hidden = jax.random.normal(key, (2, time, WIDTH))
    made.append((hidden, Head(jax.random.normal(keys[2], (WIDTH, vocab)))))
  label = jax.random.randint(keys[3], (2, time), 0, VOCAB).at[1, -2:].set(-1)
  return made, {"label": label, "mask": label >= 0}


def outputs(side, chunked):
  hidden, head = side
  return Outputs(hidden=hidden, head=head) if chunked else Outputs(logits=head.logits(hidden))


PLACES = jnp.array([[3, -1, 0, 5, 2, -1], [1, 1, -1, 4, 0, 0]])


def test_whole_and_in_chunks_are_the_loss_written_out():
  (own, other), batch = sides()
  batch |= {"teacher_place": PLACES}
  values = []
  for chunk in (None, 4):
    objective = match_distribution(
      shared_tokens=(OURS, THEIRS), k=3, tail="renormalise_teacher", chunk_size=chunk
    )
    out, _ = applied(objective, *(outputs(s, chunk is not None) for s in (own, other)), batch)
    values.append(float(total(out)))
  assert values[0] == pytest.approx(values[1], rel=1e-5)
  q = np.asarray(jax.nn.log_softmax(own[1].logits(own[0])))
  p = np.asarray(jax.nn.softmax(other[1].logits(other[0])))
  wanted = []
  for row, place in zip(*np.nonzero(np.asarray(batch["mask"])), strict=True):
    at = int(PLACES[row, place])
    top = np.argsort(-p[row, at])[:3]
    mass = {OURS[THEIRS.index(t)]: p[row, at, t] for t in top if t in THEIRS and at >= 0}
    mass = mass or {int(batch["label"][row, place]): 1.0}
    whole = sum(mass.values())
    wanted.append(sum(m / whole * (np.log(m / whole) - q[row, place, i]) for i, m in mass.items()))
  assert values[0] == pytest.approx(np.mean(wanted), rel=1e-5)


def test_without_aligned_steps_it_is_the_labels_likelihood():
  (own, other), batch = sides(1)
  batch |= {"teacher_place": jnp.full(PLACES.shape, -1)}
  objective = match_distribution(shared_tokens=(OURS, THEIRS))
  out, _ = applied(objective, outputs(own, False), outputs(other, False), batch)
  nll = losses.cross_entropy(own[1].logits(own[0]), batch["label"], where=batch["mask"])
  assert float(total(out)) == pytest.approx(float(nll.sum()) / int(batch["mask"].sum()), rel=1e-6)
  aligned, count = out.metrics["aligned"]
  assert float(aligned) == 0 and float(count) == 10


def test_what_cannot_be_is_refused():
  with pytest.raises(KdjaxError, match="k = 0 must be at least 1"):
    match_distribution(shared_tokens=(OURS, THEIRS), k=0)
  with pytest.raises(KdjaxError, match="no token in common"):
    match_distribution(shared_tokens=((), ()))
  (own, other), batch = sides()
  with pytest.raises(KdjaxError, match=r"config\.data\.warped = True"):
    objective = match_distribution(shared_tokens=(OURS, THEIRS))
    applied(objective, outputs(own, False), outputs(other, False), batch)
