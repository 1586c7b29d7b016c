"""Tokenizers: the real one gives the ids it should, other files are built or refused."""

import json
from pathlib import Path

import pytest
from gguf import GGUFWriter, TokenType
from tokenizers import pre_tokenizers

from kdjax.data.tokenizers import fingerprint, load_tokenizer, vocab_size
from kdjax.errors import KdjaxError
from tests.data.text.helpers import bytes_tokenizer, smollm2

REFERENCE = json.loads(
  (Path(__file__).parents[2] / "third_party/reference/smollm2_tokens.json").read_text()
)


@pytest.mark.parametrize("case", REFERENCE, ids=range(len(REFERENCE)))
def test_smollm2_gives_the_reference_ids_and_the_text_back(case):
  tokenizer = smollm2()
  assert tokenizer(case["text"])["input_ids"] == case["ids"]
  assert tokenizer.decode(case["ids"]) == case["text"]


def test_what_smollm2_is():
  tokenizer = smollm2()
  assert vocab_size(tokenizer) == 49152
  special = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id
  assert special == (1, 2, 0) and tokenizer.pad_token_id == 2
  messages = [{"role": "user", "content": "Hi"}]
  text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
  assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
  assert tokenizer(text)["input_ids"].count(1) == 3  # system, user, assistant


def test_a_saved_tokenizer_is_the_same_one(tmp_path):
  tokenizer = smollm2()
  tokenizer.save_pretrained(tmp_path)
  again = load_tokenizer(tmp_path)
  assert fingerprint(again) == fingerprint(tokenizer)
  assert again.chat_template == tokenizer.chat_template
  assert again.eos_token_id == 2
  for case in REFERENCE:
    assert again(case["text"])["input_ids"] == case["ids"]


def test_any_change_shows_in_the_fingerprint_and_calls_do_not():
  plain = fingerprint(bytes_tokenizer())
  used = bytes_tokenizer()
  used(["a", "abc"], padding=True, truncation=True, max_length=2)
  assert fingerprint(used) == plain == fingerprint(bytes_tokenizer(chat_template=None))
  changed = [bytes_tokenizer() for _ in range(4)]
  changed[0].add_tokens(["more"])
  changed[1].backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(use_regex=False)
  changed[2].eos_token = "<user>"
  changed[3].add_special_tokens({"additional_special_tokens": ["<pad>"]})
  assert len({plain, *map(fingerprint, changed)}) == 5


def test_the_size_counts_added_tokens_and_gaps():
  tokenizer = bytes_tokenizer()
  assert vocab_size(tokenizer) == 259
  tokenizer.add_tokens(["more"])
  assert vocab_size(tokenizer) == 260


ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = [*ALPHABET, "12", "123", "1234", "Ġa", "ab", "abc", "bc", "<s>", "</s>", "<tool>"]


def write_gguf(path, model="gpt2", pre="gpt-2", add_bos=False, tokens=TOKENS):
  writer = GGUFWriter(path, "llama")
  if model is not None:
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    kinds = {"<s>": TokenType.CONTROL, "</s>": TokenType.CONTROL, "<tool>": TokenType.USER_DEFINED}
    writer.add_token_types([kinds.get(token, TokenType.NORMAL) for token in tokens])
    writer.add_token_merges(["1 2", "12 3", "123 4", "Ġ a", "b c", "a bc"])
    writer.add_bos_token_id(tokens.index("<s>"))
    writer.add_eos_token_id(tokens.index("</s>"))
    writer.add_add_bos_token(add_bos)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def pieces(tokenizer, text):
  return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])


@pytest.mark.parametrize(
  ("pre", "number", "composed"),
  [
    ("gpt-2", ["1234"], "e\u0301"),
    ("smollm", ["1", "2", "3", "4"], "e\u0301"),
    ("qwen2", ["1", "2", "3", "4"], "\u00e9"),
    ("llama-bpe", ["123", "4"], "e\u0301"),
  ],
)
def test_how_the_pre_tokenisers_cut(tmp_path, pre, number, composed):
  tokenizer = load_tokenizer(write_gguf(tmp_path / "m.gguf", pre=pre))
  assert pieces(tokenizer, "1234") == number
  assert pieces(tokenizer, "abc a") == ["abc", "Ġa"]
  assert tokenizer.decode(tokenizer("e\u0301")["input_ids"]) == composed
  assert pieces(tokenizer, "a<s>b<tool></s>") == ["a", "<s>", "b", "<tool>", "</s>"]
  assert tokenizer.decode(tokenizer("a<s><tool>")["input_ids"], skip_special_tokens=True) == (
    "a<tool>"
  )


def test_a_gguf_file_says_whether_texts_begin_with_bos(tmp_path):
  assert pieces(load_tokenizer(write_gguf(tmp_path / "a.gguf")), "ab") == ["a", "b"]
  tokenizer = load_tokenizer(write_gguf(tmp_path / "b.gguf", add_bos=True))
  assert pieces(tokenizer, "ab") == ["<s>", "a", "b"]
  assert tokenizer("ab", add_special_tokens=False)["input_ids"] == tokenizer("ab")["input_ids"][1:]


def test_what_cannot_be_read_is_told(tmp_path):
  (tmp_path / "empty").mkdir()
  (tmp_path / "two").mkdir()
  for name in "ab":
    write_gguf(tmp_path / "two" / f"{name}.gguf")
  (tmp_path / "broken").mkdir()
  (tmp_path / "broken/tokenizer.json").write_text("{")
  (tmp_path / "note.txt").write_text("no tokenizer")
  whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
  (tmp_path / "cut.gguf").write_bytes(whole[:300])
  write_gguf(tmp_path / "llama.gguf", model="llama")
  write_gguf(tmp_path / "other.gguf", pre="tekken")
  write_gguf(tmp_path / "none.gguf", model=None)
  for name, message in {
    "empty": "tokenizer.json or exactly one .gguf file; it has neither",
    "two": "2 GGUF files: a.gguf, b.gguf",
    "broken": "broken cannot be read",
    "note.txt": "is no tokenizer",
    "cut.gguf": "not a whole GGUF file",
    "llama.gguf": "kind 'llama' cannot be read from GGUF.*tokenizer.json",
    "other.gguf": "pre-tokeniser 'tekken' is not known; gpt-2, smollm, qwen2, llama-bpe",
    "none.gguf": "kind None cannot be read",
    "missing": "does not exist",
  }.items():
    with pytest.raises(KdjaxError, match=message):
      load_tokenizer(tmp_path / name)
