"""The command line: a config file, overrides of its fields, and one line for what is wrong."""

from __future__ import annotations

import re
import runpy
import traceback
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from kdjax.errors import KdjaxError
from kdjax.resolve import hint

CONFIG = config_flags.DEFINE_config_file("config", None, "a file of configs/", lock_config=True)


def parse(argv: Sequence[str]) -> list[str]:
  """Parses all flags, as `app.run(flags_parser=...)` wants it.

  Raises:
    KdjaxError: an unknown flag or config field, a value of the wrong type, a missing flag, a config
      file that is not there or cannot be run.
  """
  flags.FLAGS["config"].parser = _ConfigFile(argv)
  try:
    rest = flags.FLAGS(argv)
  except flags.Error as error:
    raise KdjaxError(f"{' '.join(str(error).split())} (--help lists the flags)") from None
  if len(rest) > 1:
    raise KdjaxError(f"unexpected arguments {rest[1:]}; flags start with --")
  return rest


class _ConfigFile(flags.ArgumentParser):
  """Runs `get_config(variant)` of "FILE:variant"; absl tells a ValueError with its flag."""

  def __init__(self, argv: Sequence[str]):
    self._overrides = [m[1] for arg in argv if (m := re.match(r"--?(?:no)?config\.([^=]+)", arg))]

  def parse(self, path: str) -> ConfigDict:
    file, *variant = path.split(":", 1)
    if not Path(file).is_file():
      beside = [each.stem for each in Path(file).parent.glob("*.py")]
      raise ValueError(f"there is no file {file}{hint(Path(file).stem, beside)}")
    config = None
    try:
      if get_config := runpy.run_path(file).get("get_config"):
        config = get_config(*variant)
    except SyntaxError as error:  # says where by itself
      raise ValueError(f"{file} is not Python: {error}") from None
    except Exception as error:  # a config file is code and may raise anything
      at = traceback.extract_tb(error.__traceback__)[-1]
      told = f"{type(error).__name__}: {error}"
      raise ValueError(f"{told} ({at.filename}, line {at.lineno})") from None
    if not isinstance(config, ConfigDict):
      raise ValueError(f"{file} must have a function get_config() that returns a ConfigDict")
    for field in self._overrides:
      _check_field(config, field)
    return config.lock()


def _check_field(config: ConfigDict, field: str) -> None:
  node, path = config, "config"
  for name in field.split("."):
    if "[" in name:
      return  # an index into a list, which ml_collections looks up itself
    if not isinstance(node, ConfigDict):
      raise ValueError(f"{path} = {node!r} has no fields; --config.{field} asks for one")
    if name not in node:
      raise ValueError(
        f"{path}.{name} does not exist{hint(name, node.keys())}. Fields that the file leaves out"
        " are set there"
      )
    node, path = node[name], f"{path}.{name}"
