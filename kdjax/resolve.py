"""Names in a config become functions of one namespace, checked before anything is computed."""

from __future__ import annotations

import difflib
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from kdjax.errors import KdjaxError


def resolve(
  namespace: types.ModuleType, name: str, arguments: Mapping[str, Any], *, field: str
) -> Callable:
  """Finds a public function by name and binds keyword arguments to it.

  Args:
    namespace: the module whose `__all__` lists what exists.
    name: a member of it.
    arguments: keyword arguments to bind; each is checked against the signature and, where the
      annotation is a plain type, against that.
    field: the config field that holds the name, such as "config.student.name".

  Returns:
    `functools.partial(function, **arguments)`.

  Raises:
    KdjaxError: unknown name or argument (lists what exists) or an argument of the wrong type.
  """
  known = [n for n in namespace.__all__ if inspect.isfunction(getattr(namespace, n))]
  if name not in known:
    raise KdjaxError(f"{field} = {name!r} does not exist{_hint(name, known)}")
  function = getattr(namespace, name)
  parameters = inspect.signature(function).parameters
  accepted = [p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY]
  open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
  hints = typing.get_type_hints(function)
  parent = field.rpartition(".")[0]
  for argument, value in arguments.items():
    if argument not in accepted and not open_ended:
      raise KdjaxError(
        f"{parent}.{argument} is not an argument of {name!r}{_hint(argument, accepted)}"
      )
    check_type(value, hints.get(argument), f"{parent}.{argument}")
  return functools.partial(function, **arguments)


def check_type(value: Any, hint: Any, field: str) -> None:
  """Raises KdjaxError when `value` is not of the plain type(s) that `hint` names.

  Only bool, int, float, str and None (and unions of them) are checked; an int passes for a float.
  """
  options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
  plain = {bool, int, float, str, type(None)}
  if not options or any(option not in plain for option in options):
    return
  fits = type(value) in options or (type(value) is int and float in options)
  if not fits:
    wanted = " or ".join("None" if o is type(None) else o.__name__ for o in options)
    raise KdjaxError(f"{field} = {value!r} is of type {type(value).__name__}; it must be {wanted}")


def _hint(name: str, known: list[str]) -> str:
  near = difflib.get_close_matches(name, known, n=1)
  guess = f" (did you mean {near[0]!r}?)" if near else ""
  return f"{guess}; what exists: {', '.join(sorted(known)) or 'nothing'}"
