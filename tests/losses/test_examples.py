"""The examples in the docstrings, and what `kdjax.losses` exports."""

import doctest
import importlib
import inspect
import pkgutil

import jax
import jax.numpy as jnp
import pytest

from kdjax import losses

FILES = [module.name for module in pkgutil.iter_modules(losses.__path__)]
PUBLIC = {name: getattr(losses, name) for name in losses.__all__}


@pytest.mark.parametrize("file", FILES)
def test_docstring_examples(file):
  module = importlib.import_module(f"kdjax.losses.{file}")
  result = doctest.testmod(module, extraglobs={"jax": jax, "jnp": jnp, **PUBLIC})
  assert result.failed == 0


@pytest.mark.parametrize("file", [file for file in FILES if not file.startswith("_")])
def test_every_file_is_exported_flat(file):
  module = importlib.import_module(f"kdjax.losses.{file}")
  assert module.__all__, "an empty file"
  for name in module.__all__:
    assert getattr(losses, name) is getattr(module, name)
    assert name in losses.__all__


@pytest.mark.parametrize(
  "name", [name for name, item in PUBLIC.items() if inspect.isfunction(item)]
)
def test_every_function_has_the_parts_of_a_docstring(name):
  text = inspect.getdoc(PUBLIC[name])
  parts = ["Args:", "Returns:", "Raises:", "Example:"]
  assert [part for part in parts if part not in text] == []
  for parameter in inspect.signature(PUBLIC[name]).parameters:
    assert f"\n  {parameter}: " in text, f"{parameter} of {name} is not described"
