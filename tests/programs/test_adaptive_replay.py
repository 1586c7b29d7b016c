"""DistiLLM: its schedule and buffer against the rules written out, and a run of all sources."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import objectives
from kdjax.errors import KdjaxError
from kdjax.programs import adaptive_replay
from kdjax.programs.adaptive_replay import Replay, Threshold, chosen, pushed, raised, sampled
from tests.programs.helpers import sgd, trained
from tests.programs.test_on_policy import PROMPT, ROWS, STUDENT, VOCAB, batch, teacher

assert teacher  # the fixture


def test_the_threshold_follows_the_high_water_mark_of_the_validation_loss():
  losses = [3.0, 3.05, 3.1, 2.0, 3.15, 3.2, 3.21, 9.0, 9.05, 9.2]
  phi, mark, wanted = 0.0, losses[0], []
  for step, loss in enumerate(losses):  # as the official trainer writes it
    if step and loss >= mark + 0.1:
      phi, mark = min(phi + 0.4, 1.0), loss
    wanted.append((phi, mark))
  state, found = Threshold(jnp.float32(0), jnp.float32(0)), []
  for step, loss in enumerate(losses):
    state = raised(state, jnp.float32(loss), first=jnp.bool_(step == 0), increment=0.4, margin=0.1)
    found.append(tuple(map(float, state)))
  np.testing.assert_allclose(found, wanted, rtol=1e-6)
  assert wanted[-1][0] == 1.0


def test_rows_come_from_where_the_rule_says():
  rng = np.random.default_rng(0)
  u, phi, progress = rng.random((3, 500)).astype(np.float32)
  full = rng.random(500) < 0.5
  wanted = []
  for a, b, c, d in zip(u, phi, progress, full, strict=True):
    if a < b * (1 - c) or (a < b and not d):
      wanted.append(1)
    else:
      wanted.append(2 if a < b else 0)
  found = chosen(jnp.asarray(u), jnp.asarray(phi), jnp.asarray(progress), full=jnp.asarray(full))
  np.testing.assert_array_equal(found, wanted)
  assert set(wanted) == {0, 1, 2}


def test_the_oldest_rows_leave_first_and_none_is_drawn_twice():
  replay = Replay({"tokens": jnp.zeros((5, 1), jnp.int32)}, jnp.int32(0), jnp.int32(0))
  for begin in (1, 3, 5, 7):
    replay = pushed(replay, {"tokens": jnp.array([[begin], [begin + 1]])})
  assert replay.size == 5
  assert sorted(replay.rows["tokens"][:, 0].tolist()) == [4, 5, 6, 7, 8]
  drawn = sampled(replay, jax.random.key(0), 4)["tokens"][:, 0].tolist()
  assert len(set(drawn)) == 4 and set(drawn) <= {4, 5, 6, 7, 8}
  some = Replay(replay.rows, jnp.int32(2), jnp.int32(2))
  for seed in range(5):
    found = sampled(some, jax.random.key(seed), 2)["tokens"][:, 0].tolist()
    assert sorted(found) == sorted(replay.rows["tokens"][:2, 0].tolist())


def program(teacher, **options):
  defaults = {"total_steps": 12, "prompt_length": PROMPT, "validate_every": 1, "capacity": 2 * ROWS}
  objective = objectives.logit_kd(loss="skewed_forward_kl", chunk_size=4)
  return adaptive_replay(STUDENT, objective, sgd(), teacher=teacher, **(defaults | options))


def test_a_run_that_gets_worse_writes_fills_the_buffer_and_reads_it(teacher):
  # Any validation raises phi, so that every step is one on the student's own texts.
  one = program(teacher, increment=1.0, margin=-100.0)
  state, every = trained(one, [batch(i) | {"validation": batch(50 + i)} for i in range(12)])
  wrote, read = ([int(m[name][0]) for m in every] for name in ("on_policy", "replayed"))
  assert wrote[:3] == [0, 1, 1]  # the first validation sets the mark, the next two fill the buffer
  assert sum(wrote) + sum(read) == 11 and sum(read) >= 2
  assert state.replay.size == 2 * ROWS
  assert (state.replay.rows["label"] >= 0).sum(1).min() > 0
  assert state.threshold.value == 1.0
  assert all(np.isfinite(m["loss"][0]) for m in every)


@pytest.mark.parametrize(
  ("change", "told"),
  [
    ({"capacity": ROWS - 1}, "capacity = 3 holds no batch"),
    ({"validate_every": 0}, "validate_every = 0"),
    ({"increment": 0.0}, "increment = 0.0"),
    ({"eos_ids": (VOCAB,)}, "eos_ids"),
  ],
)
def test_options_that_do_not_fit_are_told(teacher, change, told):
  with pytest.raises(KdjaxError, match=told):
    program(teacher, **change).init(jax.random.key(0), batch() | {"validation": batch()})
