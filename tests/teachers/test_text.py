"""Teachers that answer in text: recorded, written by a model, solved."""

import json

import jax
import pytest

from kdjax.errors import KdjaxError
from kdjax.generation import generate_text
from kdjax.models.pretrained import decoder
from kdjax.teachers.text import Prompt, TextDecoding, recorded, solver, written
from tests.data.text.helpers import bytes_tokenizer

ROWS = [{"system": "s", "user": "u", "response": "r"}, {"user": "v", "response": "w"}]


def recording(tmp_path, rows, name="answers.jsonl"):
  path = tmp_path / name
  path.write_text("\n".join(map(json.dumps, rows)))
  return path


def test_recorded_answers_are_those_of_the_whole_prompt(tmp_path):
  teacher = recorded(recording(tmp_path, ROWS))
  assert teacher.answer([Prompt("", "v"), Prompt("s", "u")], TextDecoding()) == ["w", "r"]
  assert recorded(recording(tmp_path, ROWS, "same.jsonl")).name == teacher.name
  other = [ROWS[0] | {"response": "another"}, ROWS[1]]
  assert recorded(recording(tmp_path, other, "other.jsonl")).name != teacher.name
  with pytest.raises(KdjaxError, match="no answer to 1 of 1 prompts, the first 'u'"):
    teacher.answer([Prompt("", "u")], TextDecoding())


@pytest.mark.parametrize(
  ("rows", "told"),
  [
    ([], "holds no answer"),
    ([{"user": "u"}], "line 1 has no field 'response'"),
    ([{"user": 1, "response": "r"}], "'user' is 1"),
    ([ROWS[0], ROWS[0] | {"response": "x"}], "line 2 answers a prompt in another way"),
  ],
)
def test_damaged_recordings_are_told(tmp_path, rows, told):
  with pytest.raises(KdjaxError, match=told):
    recorded(recording(tmp_path, rows))


def test_a_function_answers_each_prompt():
  teacher = solver("length", lambda prompt: str(len(prompt.user)))
  assert teacher.name == "solver:length"
  assert teacher.answer([Prompt("", "abc"), Prompt("", "")], TextDecoding()) == ["3", "0"]


@pytest.mark.parametrize("chat", [True, False])
def test_a_model_answers_what_the_generator_writes(chat):
  tokenizer = bytes_tokenizer() if chat else bytes_tokenizer(None)
  model = decoder(num_classes=len(tokenizer), width=8, depth=1, heads=2)
  variables = model.init(jax.random.key(0))
  teacher = written("w", model, variables, tokenizer, [tokenizer.eos_token_id])
  said = teacher.answer([Prompt("s", "ab"), Prompt("", "c")], TextDecoding(max_new_tokens=5))
  wanted = (
    ["<system>s<eos>\n<user>ab<eos>\n<assistant>", "<user>c<eos>\n<assistant>"]
    if chat
    else ["s\n\nab", "c"]
  )
  assert said == generate_text(model, variables, tokenizer, wanted, max_new_tokens=5)
  hot = TextDecoding(temperature=5.0, max_new_tokens=5)
  one, two = (teacher.answer([Prompt("", "c")], each) for each in (hot, hot._replace(seed=1)))
  assert one != two and one == teacher.answer([Prompt("", "c")], hot)
  # Its draws are its own, whatever is asked beside it.
  assert teacher.answer([Prompt("", "ab"), Prompt("", "c")], hot)[1] == one[0]
