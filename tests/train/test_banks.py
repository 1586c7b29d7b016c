"""A memory bank is part of the checkpoint: an interrupted run ends as if it had not been."""

import jax
import numpy as np
import optax
import pytest

from kdjax import objectives
from kdjax.data.pipeline import evaluation_batches, training_stream
from kdjax.programs import distill
from kdjax.train.checkpoint import Checkpoints, fingerprint
from kdjax.train.loop import Data, Interrupted, Schedule, run
from kdjax.train.mesh import make_mesh
from tests.programs.helpers import STUDENT, teacher
from tests.train.test_loop import SET, Stream


def go(folder, *, stop=lambda: False, stream=None):
  objective = objectives.contrastive_representation(examples=40, width=4, negatives=6)
  program = distill(STUDENT, objective, optax.adam(1e-2), teacher=teacher())
  return run(
    program,
    Data(
      stream or training_stream(SET.train, batch_size=8, seed=3),
      lambda: evaluation_batches(SET.test, batch_size=8),
      lambda: evaluation_batches(SET.train, batch_size=8),
    ),
    make_mesh(data=8),
    Schedule(9, log_every=5, eval_every=9, save_every=4),
    Checkpoints(folder / "checkpoints"),
    workdir=folder,
    seed=0,
    meta={},
    matches=lambda meta: None,
    stop=stop,
  )


def test_banks_resume_exactly(tmp_path):
  whole = go(tmp_path / "whole")
  asked = []
  with pytest.raises(Interrupted):
    go(tmp_path / "parts", stop=lambda: len(asked) == 6, stream=Stream(asked.append))
  rest = go(tmp_path / "parts")
  assert 0 < rest.steps_run < whole.steps_run == 9
  assert fingerprint(rest.state) == fingerprint(whole.state)
  banks = jax.device_get(rest.state.objective_state["feature"])
  np.testing.assert_array_equal(banks.label, SET.train.labels)
  np.testing.assert_allclose(np.linalg.norm(banks.teacher, axis=1), 1.0, rtol=1e-5)
