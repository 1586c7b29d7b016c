"""Names in a config become functions of one namespace, checked before anything is computed."""

from __future__ import annotations

import difflib
import functools
import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from kdjax.errors import KdjaxError


def resolve(
  namespace: types.ModuleType,
  name: str,
  arguments: Mapping[str, Any],
  *,
  field: str,
  given: Collection[str] = (),
  also: Iterable[str] = (),
) -> Callable:
  """Finds a public function by name and binds keyword arguments to it.

  Args:
    namespace: the module whose `__all__` lists what exists.
    name: a member of it.
    arguments: keyword arguments to bind; each is checked against the signature and, where the
      annotation is a plain type, against that.
    field: the config field that holds the name, such as "config.student.name".
    given: arguments that the caller will add, which a config may therefore not name.
    also: other fields beside the name, which the caller has read; messages list them.

  Returns:
    `functools.partial(function, **arguments)`.

  Raises:
    KdjaxError: unknown name or argument (lists what exists), an argument of the wrong type, or a
      missing one.
  """
  known = [n for n in namespace.__all__ if inspect.isfunction(getattr(namespace, n))]
  if name not in known:
    raise KdjaxError(f"{field} = {name!r} does not exist{hint(name, known)}")
  function = getattr(namespace, name)
  parameters = inspect.signature(function).parameters
  own = [p for p in parameters.values() if p.kind is p.KEYWORD_ONLY and p.name not in given]
  accepted = [p.name for p in own]
  open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
  hints = typing.get_type_hints(function)
  parent = field.rpartition(".")[0]
  for argument, value in arguments.items():
    if argument not in accepted and not open_ended:
      raise KdjaxError(
        f"{parent}.{argument} is not an argument of {name!r}{hint(argument, [*accepted, *also])}"
      )
    check_type(value, hints.get(argument), f"{parent}.{argument}")
  for parameter in own:
    if parameter.default is parameter.empty and parameter.name not in arguments:
      raise KdjaxError(f"{parent}.{parameter.name} is missing; {name!r} needs it")
  return functools.partial(function, **arguments)


def check_type(value: Any, wanted: Any, field: str) -> None:
  """Raises KdjaxError when `value` is not of the plain type(s) that an annotation names.

  Only bool, int, float, str and None, unions of them and sequences of one of them are checked; an
  int passes for a float.
  """
  if (typing.get_origin(wanted) or wanted) in (Sequence, list, tuple):
    if not isinstance(value, list | tuple):
      raise KdjaxError(f"{field} = {value!r} is of type {type(value).__name__}; it must be a list")
    kinds = set(typing.get_args(wanted)) - {Ellipsis}
    for index, item in enumerate(value if len(kinds) == 1 else ()):
      check_type(item, *kinds, f"{field}[{index}]")
    return
  options = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
  plain = {bool, int, float, str, type(None)}
  if not options or any(option not in plain for option in options):
    return
  fits = type(value) in options or (type(value) is int and float in options)
  if not fits:
    names = " or ".join("None" if o is type(None) else o.__name__ for o in options)
    raise KdjaxError(f"{field} = {value!r} is of type {type(value).__name__}; it must be {names}")


def hint(name: str, known: Iterable[str]) -> str:
  """The end of a message about an unknown name: the nearest one, and all there are."""
  near = difflib.get_close_matches(str(name), known := sorted(set(known)), n=1)
  guess = f" (did you mean {near[0]!r}?)" if near else ""
  return f"{guess}; what exists: {', '.join(known) or 'nothing'}"
