"""Tokenizers: from a Hugging Face folder or a GGUF file, and what tells two of them apart."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdjax.errors import KdjaxError
from kdjax.paths import locate

if TYPE_CHECKING:
  from transformers import PreTrainedTokenizerFast

# How GGUF names the ways to cut text into the pieces that are merged within: a regular expression,
# or None for the one that byte-level BPE began with (GPT-2's).
_SPLITS = {
  "gpt-2": None,
  "smollm": None,
  "qwen2": (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
  ),
  "llama-bpe": (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
  ),
}
_CONTROL, _USER_DEFINED = 3, 4  # values of token_type
_ROLES = {
  "bos_token": "bos_token_id",
  "eos_token": "eos_token_id",
  "unk_token": "unknown_token_id",
  "pad_token": "padding_token_id",
}


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerFast:
  """A tokenizer from the disk; nothing is downloaded and no code of a checkpoint is run.

  Args:
    path: a name for `kdjax.paths.locate`: a Hugging Face folder (tokenizer.json and the files
      beside it), a GGUF file, or a folder that holds exactly one GGUF file.

  Returns:
    The tokenizer, with its chat template and the ids of its special tokens.

  Raises:
    KdjaxError: nothing there, a damaged file, or a kind of tokenizer that is not supported.
  """
  found = locate(path)
  if found.is_file():
    if found.suffix != ".gguf":
      raise KdjaxError(
        f"{found} is no tokenizer; give a Hugging Face folder with tokenizer.json, or a .gguf file"
      )
    return _from_gguf(found)
  ggufs = sorted(found.glob("*.gguf"))
  if (found / "tokenizer.json").is_file() or (found / "tokenizer_config.json").is_file():
    return _from_folder(found)
  if len(ggufs) == 1:
    return _from_gguf(ggufs[0])
  has = f"{len(ggufs)} GGUF files: {', '.join(f.name for f in ggufs)}" if ggufs else "neither"
  raise KdjaxError(
    f"{found} must hold tokenizer.json or exactly one .gguf file; it has {has}. Copy the"
    " tokenizer's files there, or name the file"
  )


def fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
  """SHA-256 of all that decides which ids a text becomes.

  It covers the vocabulary, merges, normaliser, pre-tokeniser, special tokens and what is put around
  a text. Padding and truncation, which calls may change, and the chat template are left out.
  """
  backend = json.loads(tokenizer.backend_tokenizer.to_str())
  parts = {
    key: backend.get(key)
    for key in ("model", "normalizer", "pre_tokenizer", "post_processor", "added_tokens")
  }
  parts["roles"] = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
  return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def vocab_size(tokenizer: PreTrainedTokenizerFast) -> int:
  """The highest id plus one, added tokens among them; gaps count."""
  return max(tokenizer.get_vocab().values()) + 1


def is_byte_level(tokenizer: PreTrainedTokenizerFast) -> bool:
  """Whether each character of its tokens stands for a byte of the text (GPT-2's way)."""
  cutting = json.loads(tokenizer.backend_tokenizer.to_str()).get("pre_tokenizer")
  return '"ByteLevel"' in json.dumps(cutting)


def shared_tokens(
  student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """(student's ids, teacher's ids) of the tokens that both have, by the teacher's ids.

  Tokens are the same when they are written the same in both vocabularies.
  """
  own = student.get_vocab()
  pairs = sorted(
    (index, own[token]) for token, index in teacher.get_vocab().items() if token in own
  )
  return tuple(ours for _, ours in pairs), tuple(theirs for theirs, _ in pairs)


def _transformers() -> Any:
  # Imported late: it takes seconds. The advice it would print is to install PyTorch.
  quiet = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
  before = os.environ.get(quiet)
  os.environ[quiet] = "1"
  try:
    import transformers

    # Modules are loaded when they are first asked for.
    transformers.PreTrainedTokenizerFast  # noqa: B018
  finally:
    if before is None:
      del os.environ[quiet]
    else:
      os.environ[quiet] = before
  return transformers


def _from_folder(folder: Path) -> PreTrainedTokenizerFast:
  transformers = _transformers()
  # tokenizer.json says everything; the classes for single models only rebuild what it says.
  whole = (folder / "tokenizer.json").is_file()
  kind = transformers.PreTrainedTokenizerFast if whole else transformers.AutoTokenizer
  try:
    tokenizer = kind.from_pretrained(str(folder), local_files_only=True)
  except Exception as error:  # transformers and tokenizers raise many kinds, bare Exception too
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise KdjaxError(
      f"the tokenizer in {folder} cannot be read: {reason}. Copy its files there again,"
      " tokenizer.json among them"
    ) from None
  if not tokenizer.is_fast:
    raise KdjaxError(
      f"{folder} has no fast tokenizer; save one there with tokenizer.json (transformers'"
      " convert_slow_tokenizer makes it)"
    )
  return tokenizer


def _from_gguf(path: Path) -> PreTrainedTokenizerFast:
  metadata = _metadata(path)
  model, pre = metadata.get("ggml.model"), metadata.get("ggml.pre")
  if model != "gpt2":
    raise KdjaxError(
      f"{path}: a tokenizer of the kind {model!r} cannot be read from GGUF; only 'gpt2' (byte-level"
      " BPE) can. Give the Hugging Face folder with tokenizer.json"
    )
  if pre not in _SPLITS:
    raise KdjaxError(
      f"{path}: the pre-tokeniser {pre!r} is not known; {', '.join(_SPLITS)} are. Give the Hugging"
      " Face folder with tokenizer.json"
    )
  try:
    return _build(metadata, pre)
  except Exception as error:  # as in `_from_folder`
    raise KdjaxError(
      f"{path} has no whole tokenizer ({type(error).__name__}: {error}); download it again"
    ) from None


def _metadata(path: Path) -> dict[str, Any]:
  from gguf import GGUFReader

  from kdjax.gguf_header import check_header

  check_header(path)
  try:
    fields = GGUFReader(path).fields
    return {
      name.removeprefix("tokenizer."): field.contents()
      for name, field in fields.items()
      if name.startswith("tokenizer.")
    }
  except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
    raise KdjaxError(f"{path} is not a whole GGUF file ({error}); download it again") from None


def _build(metadata: dict[str, Any], pre: str) -> PreTrainedTokenizerFast:
  transformers = _transformers()
  from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

  tokens, types = metadata["ggml.tokens"], metadata.get("ggml.token_type", [])
  tokenizer = Tokenizer(
    models.BPE(
      {token: index for index, token in enumerate(tokens)},
      [tuple(merge.split(" ", 1)) for merge in metadata["ggml.merges"]],
      ignore_merges=pre == "llama-bpe",
    )
  )
  if pre == "qwen2":
    tokenizer.normalizer = normalizers.NFC()
  tokenizer.pre_tokenizer = _pre_tokenizer(pre)
  tokenizer.decoder = decoders.ByteLevel()
  roles = {
    role: tokens[metadata[f"ggml.{field}"]]
    for role, field in _ROLES.items()
    if f"ggml.{field}" in metadata
  }
  around = {
    role: metadata.get(f"ggml.add_{role}", False) and role in roles
    for role in ("bos_token", "eos_token")
  }
  steps = [processors.ByteLevel(trim_offsets=False)]
  if any(around.values()):
    template = [roles["bos_token"]] * around["bos_token"] + ["$A"]
    template += [roles["eos_token"]] * around["eos_token"]
    ids = [(roles[role], metadata[f"ggml.{_ROLES[role]}"]) for role in around if around[role]]
    steps.append(processors.TemplateProcessing(single=template, special_tokens=ids))
  tokenizer.post_processor = processors.Sequence(steps)
  for kind in (_CONTROL, _USER_DEFINED):
    added = [
      AddedToken(token, special=kind == _CONTROL, normalized=False)
      for token, own in zip(tokens, types, strict=False)
      if own == kind
    ]
    (tokenizer.add_special_tokens if kind == _CONTROL else tokenizer.add_tokens)(added)
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    chat_template=metadata.get("chat_template"),
    clean_up_tokenization_spaces=False,
    **roles,
  )


def _pre_tokenizer(pre: str) -> Any:
  from tokenizers import Regex, pre_tokenizers

  if (pattern := _SPLITS[pre]) is not None:
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, byte_level])
  byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
  if pre == "smollm":
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
  return byte_level
