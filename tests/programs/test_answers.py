"""Graded answers: what is written in the evaluation is what the generator writes by itself."""

import json

import jax
import numpy as np
import pytest

from kdjax.data import text_pairs
from kdjax.evaluation.classification import finalize
from kdjax.generation import generate_text
from kdjax.models.pretrained import decoder
from kdjax.outputs import Outputs
from kdjax.programs.distill import NO_TEACHER
from kdjax.train.build import evaluator_of
from tests.data.text.helpers import bytes_tokenizer

SOURCES = ["ab", "abcde", "x", "yz"]


@pytest.mark.parametrize("joined", [True])
def test_exact_match_is_that_of_the_texts_it_writes(tmp_path, joined):
  tokenizer = bytes_tokenizer()
  tokenizer.save_pretrained(tmp_path / "tokenizer")
  model = decoder(num_classes=len(tokenizer), width=8, depth=1, heads=2)
  variables = model.init(jax.random.key(0))
  # Of a random model, whatever it writes is right for half of the rows: the marker is the token
  # that it writes first. Its end is the length's, as the reference's is.
  prompts = [source + tokenizer.eos_token for source in SOURCES]
  ids = [tokenizer(p, add_special_tokens=False)["input_ids"] for p in prompts]
  assert all(row[-1] == tokenizer.eos_token_id for row in ids)
  said = generate_text(model, variables, tokenizer, prompts, max_new_tokens=6)
  rows = [{"source": s, "target": t} for s, t in zip(SOURCES, said, strict=True)]
  rows[1]["target"] = rows[1]["target"][:-1] + "?"
  (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
  marker = next((c for c in said[0] if all(c in text[:5] for text in said)), said[0][0])
  data = text_pairs(
    tokenizer=str(tmp_path / "tokenizer"),
    path=str(tmp_path / "rows.jsonl"),
    test_path=str(tmp_path / "rows.jsonl"),
    source_length=7,
    target_length=6,
    joined=joined,
    answer_marker=marker,
  )
  evaluate = evaluator_of(data)(model, NO_TEACHER)
  batch = data.test.read(np.arange(4))
  batch = {k: np.concatenate([v, np.zeros_like(v[:2])]) for k, v in batch.items()}  # filled up
  values = jax.jit(lambda b: evaluate(variables, lambda taps: Outputs(), b))(batch)
  wanted = [marker in text for text in said]
  wanted[1] = False
  assert [float(x) for x in values["exact_match"]] == [sum(wanted), 4]
  assert "nll" in finalize(values)
