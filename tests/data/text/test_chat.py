"""Chats: only the assistant's answers are learnt, exactly, and what is cut off is not."""

import json

import numpy as np
import pytest

from kdjax.data import text
from kdjax.errors import KdjaxError
from tests.data.text.helpers import MARKED, bytes_tokenizer, smollm2

CHATS = [
  [("user", "Hi"), ("assistant", "Hello!"), ("user", "2+2?"), ("assistant", " \n4\n")],
  [("user", "naïve?"), ("assistant", "ja 🙂")],
  [("user", "Bye"), ("assistant", "")],
]


def as_messages(chat):
  return [{"role": role, "content": content} for role, content in chat]


@pytest.fixture
def make(tmp_path):
  def made(chats, tokenizer=None, sequence_length=64, **options):
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": as_messages(c)}) + "\n" for c in chats))
    folder = tmp_path / f"tokenizer{len(list(tmp_path.iterdir()))}"
    (tokenizer or bytes_tokenizer()).save_pretrained(folder)
    source = {"chat": {"kind": "chat", "path": str(path)}}
    defaults = {"test_fraction": 0.01, "pack": "none"}
    return text(
      tokenizer=str(folder),
      sequence_length=sequence_length,
      sources=source,
      **(defaults | options),
    )

  return made


def learnt(data):
  """What the labels of each row say, and the whole row, by the row's text."""
  out = {}
  for rows in (data.train, data.test):
    batch = rows.read(np.arange(len(rows)))
    for row in range(len(rows)):
      used = batch["segment_ids"][row] > 0
      whole = data.tokenizer.decode(batch["tokens"][row, used])
      out[whole] = data.tokenizer.decode(batch["label"][row, batch["mask"][row]])
  return out


@pytest.mark.parametrize("template", ["plain", "marked"])
def test_answers_and_their_ends_are_learnt_and_nothing_else(make, template):
  tokenizer = bytes_tokenizer() if template == "plain" else bytes_tokenizer(MARKED)
  data = make(CHATS, tokenizer)
  assert data.num_classes == 259 and "weight" not in data.train[0]
  rows = {
    whole.removeprefix("<user>").split("<eos>")[0]: answers
    for whole, answers in learnt(data).items()
  }
  assert rows == {"Hi": "Hello!<eos> \n4\n<eos>", "naïve?": "ja 🙂<eos>", "Bye": "<eos>"}


def test_a_label_stands_where_the_answer_is_predicted(make):
  data = make([CHATS[0], CHATS[1]], pack="none")
  for rows in (data.train, data.test):
    row = rows[0]
    np.testing.assert_array_equal(row["label"][row["mask"]], row["tokens"][1:][row["mask"][:-1]])
    first = np.flatnonzero(row["mask"])[0]
    assert data.tokenizer.decode(row["tokens"][first : first + 1]) == "<assistant>"


def test_the_real_template(make):
  chats = [[*CHATS[0]], [("system", "Be brief."), *CHATS[1]]]
  data = make(chats, smollm2(), sequence_length=96)
  texts = learnt(data)
  assert sorted(texts.values()) == ["Hello!<|im_end|> \n4\n<|im_end|>", "ja 🙂<|im_end|>"]
  wanted = [
    smollm2().apply_chat_template(as_messages(chat), tokenize=False).removesuffix("\n")
    for chat in chats
  ]
  assert sorted(texts) == sorted(wanted)  # the last token is a label alone


def test_what_is_cut_off_is_left_out_and_told(make, caplog):
  chats = [*CHATS, [("user", "x" * 40), ("assistant", "late")]]
  with caplog.at_level("INFO", logger="kdjax"):
    data = make(chats, sequence_length=25)
  rows = learnt(data)
  assert len(rows) == 3 and "chat: 1 documents hold nothing to learn" in caplog.text
  # The first 26 tokens: 25 inputs, the last one a label alone.
  assert rows["<user>Hi<eos>\n<assistant>Hello!<eos>\n<user>2+2?<eos>\n<assistant> \n4"] == (
    "Hello!<eos> \n4\n"
  )


def test_nothing_left_to_learn_is_an_error(make):
  chats = [[("user", "x" * 40), ("assistant", str(i))] for i in range(4)]
  with pytest.raises(
    KdjaxError, match=r"sources\.chat: no example of at most 30 .*sequence_length"
  ):
    make(chats, sequence_length=30)
  with pytest.raises(KdjaxError, match="anything to learn"):
    make([[("user", str(i))] for i in range(4)])


def test_what_a_template_refuses(make):
  forgetful = (
    "{% for m in messages %}{% if loop.last or m['role'] == 'user' %}<{{ m['role'] }}>"
    "{{ m['content'] }}<eos>{% endif %}{% endfor %}"
  )
  with pytest.raises(KdjaxError, match=r"line 1: the chat template writes the messages before"):
    make([CHATS[0]] * 2, bytes_tokenizer(forgetful))
  strict = "{{ raise_exception('roles must alternate') }}"
  with pytest.raises(KdjaxError, match=r"line 1: the chat template refuses.*roles must alternate"):
    make(CHATS, bytes_tokenizer(strict))
  with pytest.raises(KdjaxError, match="the tokenizer has no chat template"):
    make(CHATS, bytes_tokenizer(None))
