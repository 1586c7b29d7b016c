"""A corpus that every machine has: the sources of Python's standard library."""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from kdjax.data.text.documents import Document, Documents, decoded, identity_of
from kdjax.errors import KdjaxError

FIELDS = ("code", "docs", "all")
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}
_Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def python_library(field: str = "code") -> Documents:
  """The modules of the standard library, one document each, sorted by name.

  What they hold depends on the version of Python alone.

  Args:
    field: "code" for the sources without docstrings, "docs" for the docstrings, each under the name
      of what it describes, "all" for the sources as they are.

  Raises:
    KdjaxError: another field, or an installation without sources.
  """
  if field not in FIELDS:
    raise KdjaxError(f"the library has the fields {', '.join(FIELDS)}; field is {field!r}")
  root = Path(sysconfig.get_paths()["stdlib"])
  files = sorted(_modules(root))
  if not files:
    raise KdjaxError(f"{root} has no *.py file: this Python came without its library's sources")

  def read() -> Iterator[Document]:
    for file in files:
      source = decoded(file.read_bytes(), str(file))
      module = ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
      text = source if field == "all" else _part(source, module, field)
      yield Document(text, str(file))

  identity = {"kind": "python", "field": field, "version": sys.version}
  return Documents(read, identity | identity_of(root, files))


@functools.cache
def library_docstrings() -> tuple[tuple[str, str], ...]:
  """(module, docstring) of everything that the standard library documents, in order of modules."""
  root = Path(sysconfig.get_paths()["stdlib"])
  found = []
  for file in sorted(_modules(root)):
    module = ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    with contextlib.suppress(SyntaxError):
      tree = ast.parse(decoded(file.read_bytes(), str(file)))
      found += [
        (module, inspect.cleandoc(node.value.value)) for _, _, node in _docstrings(tree, module)
      ]
  return tuple(found)


@functools.cache
def library_functions() -> tuple[tuple[str, str], ...]:
  """(code, first line of the docstring) of the library's functions, in order of modules.

  The code is without docstring and comments, as Python itself writes it out. Of equal lines the
  first is kept.
  """
  root = Path(sysconfig.get_paths()["stdlib"])
  found: dict[str, str] = {}
  for file in sorted(_modules(root)):
    with contextlib.suppress(SyntaxError):
      tree = ast.parse(decoded(file.read_bytes(), str(file)))
      for _, owner, node in list(_docstrings(tree, "")):
        line = inspect.cleandoc(node.value.value).partition("\n")[0].strip()
        if line and isinstance(owner, ast.FunctionDef | ast.AsyncFunctionDef):
          owner.body = owner.body[1:] or [ast.Pass()]
          found.setdefault(line, ast.unparse(owner))
  return tuple((code, line) for line, code in found.items())


def _modules(root: Path) -> Iterator[Path]:
  # Installed packages, often the most of it, are not even listed.
  for folder, inner, names in os.walk(root):
    inner[:] = [name for name in inner if name not in _LEFT_OUT]
    yield from (Path(folder, name) for name in names if name.endswith(".py"))


def _part(source: str, module: str, field: str) -> str:
  try:
    tree = ast.parse(source)
  except SyntaxError:  # not every file of a distribution is for its own version
    return source if field == "code" else ""
  found = list(_docstrings(tree, module))
  if field == "docs":
    parts = [f"{name}\n\n{inspect.cleandoc(node.value.value)}\n" for name, _, node in found]
    return "\n".join(parts)
  return _without(source, [(owner, node) for _, owner, node in found])


def _docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, _Definition, ast.Expr]]:
  """(qualified name, what is described, the docstring's statement), in the order of the source."""
  if isinstance(node, _Definition) and node.body:
    first = node.body[0]
    if (
      isinstance(first, ast.Expr)
      and isinstance(first.value, ast.Constant)
      and isinstance(first.value.value, str)
    ):
      yield name, node, first
  for child in ast.iter_child_nodes(node):
    inner = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    yield from _docstrings(child, f"{name}.{child.name}" if inner else name)


def _without(source: str, found: list[tuple[_Definition, ast.Expr]]) -> str:
  """Cuts the docstrings out; a body of nothing else becomes an ellipsis."""
  data = source.encode()  # columns count bytes
  if b"\r" in data:  # some end lines and some do not; the library has none
    return source
  starts = [0]
  for line in data.split(b"\n"):
    starts.append(starts[-1] + len(line) + 1)
  kept, end = [], 0
  for owner, node in sorted(found, key=lambda pair: (pair[1].lineno, pair[1].col_offset)):
    start = starts[node.lineno - 1] + node.col_offset
    stop = starts[node.end_lineno - 1] + node.end_col_offset
    if len(owner.body) == 1 and not isinstance(owner, ast.Module):
      kept += [data[end:start], b"..."]
    else:
      line = data.rfind(b"\n", 0, start) + 1
      newline = data.find(b"\n", stop)
      newline = len(data) if newline < 0 else newline + 1
      if not data[line:start].strip() and not data[stop:newline].strip():  # lines of its own
        start, stop = line, newline
      kept.append(data[end:start])
    end = stop
  return b"".join([*kept, data[end:]]).decode()
