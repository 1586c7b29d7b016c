"""Graded answers: what is written in the evaluation is what the generator writes by itself."""

import jax
import numpy as np
import pytest

from kdjax.data.text import PairRows
from kdjax.generation import GREEDY, Generator
from kdjax.models.pretrained import decoder
from kdjax.models.seq2seq import seq2seq
from kdjax.outputs import Outputs
from kdjax.programs.answers import with_answers
from kdjax.programs.distill import NO_TEACHER
from kdjax.programs.evaluators import language

VOCAB, SOURCE, NEW = 20, 7, 6
SOURCES = [[1, 2], [3, 4, 5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15], [1, 2]]
MODELS = {
  "joined": decoder(num_classes=VOCAB, width=8, depth=1, heads=2),
  "apart": seq2seq(num_classes=VOCAB, width=8, encoder_depth=1, decoder_depth=1, heads=2, start=0),
}


@pytest.mark.parametrize("form", MODELS)
def test_exact_match_is_that_of_what_the_student_writes(form):
  model = MODELS[form]
  variables = model.init(jax.random.key(0))
  alone = Generator(model)(variables, SOURCES, max_new_tokens=NEW, sampling=GREEDY)
  targets = np.array(alone.tokens)
  marker = int(targets[0, 0])
  wanted = [marker in row for row in targets.tolist()]
  # The last row asks the first one's question and has another answer.
  targets[4, -1] = next(t for t in range(VOCAB) if t not in (marker, targets[4, -1]))
  wanted[4] = False
  assert wanted[0]
  padded = np.array([row + [0] * (SOURCE - len(row)) for row in SOURCES], np.int32)
  lengths = np.array([len(row) for row in SOURCES], np.int32)
  full = np.full(len(SOURCES), NEW, np.int32)
  joined = form == "joined"
  rows = PairRows(padded, targets.astype(np.int32), lengths, full, 0, joined)
  evaluate = with_answers(
    language(), answer_token=marker, source_length=SOURCE, eos_ids=(), joined=joined
  )(model, NO_TEACHER)
  batch = rows.read(np.arange(len(SOURCES)))
  batch = {k: np.concatenate([v, np.zeros_like(v[:3])]) for k, v in batch.items()}  # filled up
  values = jax.jit(lambda b: evaluate(variables, lambda taps: Outputs(), b))(batch)
  assert [float(x) for x in values["exact_match"]] == [sum(wanted), len(SOURCES)]
  assert "nll" in values
