"""Whether ids mean the same tokens on both sides: asked before anything is computed."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kdjax.data.text import ClassifiedText
from kdjax.data.tokenizers import fingerprint, load_tokenizer, vocab_size
from kdjax.errors import KdjaxError, within
from kdjax.objectives.base import Objective
from kdjax.train.build import is_text
from kdjax.train.checkpoint import Checkpoints
from kdjax.train.config import Config
from kdjax.train.emulation import parts_of
from kdjax.train.pretrained import checkpoint_paths, find_checkpoints

LOG = logging.getLogger("kdjax")
ACROSS = (
  "Objectives that work across tokenizers are 'uld' (universal logit distillation) and 'gold', with"
  " the teacher's tokenizer in config.data.teacher_tokenizer"
)


class Vocabulary(NamedTuple):
  """What the ids of a tokenizer mean.

  Attributes:
    sha256: fingerprint of the tokenizer.
    size: the highest id plus one.
    tokens: id to token.
  """

  sha256: str
  size: int
  tokens: Mapping[int, str]


def check_vocabularies(config: Config, data: Any, objective: Objective) -> None:
  """Raises KdjaxError where the ids of a side, or of both, do not mean what they are taken for.

  The tokenizers that lie with the checkpoints of teacher and student are compared with those of the
  data, whose ids they will read. A checkpoint without a tokenizer passes, and so does a vocabulary
  that goes on where the other ends: the numbers of classes are compared elsewhere.

  Args:
    config: of one run.
    data: what it is trained on.
    objective: what it minimises; one that does not read the teacher passes.
  """
  if isinstance(data, ClassifiedText):
    _check_classified(config)
  if not is_text(data) or not objective.taps.teacher:
    return
  check_teacher(config, data)
  for path in _pretrained(config["student"]):
    check_tokenizer("config.student", path, config["data"]["tokenizer"])
  if objective.pairs_classes and data.teacher is not None:
    path = config["data"]["teacher_tokenizer"]
    check_tokenizer("config.data.teacher_tokenizer", path, config["data"]["tokenizer"])
    raise KdjaxError(
      f"config.data.teacher_tokenizer ({path}) gives the teacher tokens and positions of its own,"
      f" and config.objective compares both sides position by position; leave it out. {ACROSS}"
    )


def _check_classified(config: Config) -> None:
  """The same where texts have classes: the ids are all that both sides share."""
  models = (
    ("config.student", config["student"]),
    ("config.teacher.model", config["teacher"]["model"]),
  )
  for field, spec in models:
    for path in _pretrained(spec):
      check_tokenizer(field, path, config["data"]["tokenizer"])


def check_teacher(config: Config, data: Any) -> None:
  """The same for the teacher alone."""
  if is_text(data):
    which = "tokenizer" if data.teacher is None else "teacher_tokenizer"
    for field, path in _teachers(config):
      check_tokenizer(field, path, config["data"][which], f"config.data.{which}")


def check_tokenizer(
  field: str, path: str, tokenizer: str, other: str = "config.data.tokenizer"
) -> None:
  """Raises KdjaxError where the ids of a tokenizer are not those of the data's.

  Args:
    field: of the config, that the tokenizer or its checkpoint comes from.
    path: of the checkpoint, or of its tokenizer.
    tokenizer: the data's.
    other: the field that it comes from.
  """
  if path == tokenizer:
    return
  try:
    own = _vocabulary(path)
  except KdjaxError as error:
    LOG.info("%s: its tokenizer is not compared with the data's: %s", field, error)
    return
  read = _vocabulary(tokenizer)
  if own.sha256 == read.sha256:
    return
  common = range(min(own.size, read.size))
  differs = next((i for i in common if own.tokens.get(i) != read.tokens.get(i)), None)
  if differs is None:
    return
  sizes = (
    f"{own.size} tokens in the one and {read.size} in the other"
    if own.size != read.size
    else f"{own.size} tokens in both, but the ids mean different things"
  )
  raise KdjaxError(
    f"{field} has another tokenizer ({path}) than {other} ({tokenizer}): {sizes}, and id {differs}"
    f" is {own.tokens.get(differs)!r} in the one and {read.tokens.get(differs)!r} in the other; use"
    f" one tokenizer for all. {ACROSS}"
  )


@functools.lru_cache(maxsize=8)
def _vocabulary(path: str) -> Vocabulary:
  tokenizer = load_tokenizer(path)
  tokens = {index: token for token, index in tokenizer.get_vocab().items()}
  return Vocabulary(fingerprint(tokenizer), vocab_size(tokenizer), tokens)


def _teachers(config: Config) -> Iterator[tuple[str, str]]:
  """(field, path of the tokenizer) of what the teacher's weights come from."""
  spec = config["teacher"]
  if not spec or spec["kind"] == "ema":
    return
  if spec["kind"] == "emulated":
    for part in parts_of(config):
      yield from _teachers(part.config)
    return
  if not (folders := checkpoint_paths(spec["checkpoint"])):
    yield from (("config.teacher.model", path) for path in _pretrained(spec["model"]))
  for folder in folders:  # runs of this library, whose configs name their tokenizers
    with within("config.teacher.checkpoint"):
      checkpoints = Checkpoints(find_checkpoints(Path(folder)), read_only=True)
    data = checkpoints.read_meta().get("config", {}).get("data", {})
    checkpoints.close()
    if path := data.get("tokenizer"):
      yield f"config.teacher.checkpoint ({folder})", path


def _pretrained(spec: Mapping[str, Any]) -> list[str]:
  read = spec.get("name") in ("pretrained", "text_classifier") and spec.get("weights", True)
  return [spec["path"]] if read and isinstance(spec.get("path"), str) else []
