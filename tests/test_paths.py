"""Names of files: paths as they are, and places inside installed packages."""

import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.paths import locate


def test_a_path_is_itself(tmp_path):
  assert locate(tmp_path) == tmp_path
  with pytest.raises(KdjaxError, match="does not exist"):
    locate(tmp_path / "missing")


def test_a_package_is_found_with_what_lies_in_it():
  assert (locate("package:numpy") / "__init__.py").samefile(np.__file__)
  assert locate("package:numpy/linalg").name == "linalg"


@pytest.mark.parametrize(
  ("name", "told"),
  [
    ("package:no_such_package", "no package 'no_such_package' is installed"),
    ("package:../etc", "no package"),
    ("package:numpy/no_such_file", "has no 'no_such_file'"),
    ("package:numpy/../../../etc/passwd", "has no"),
  ],
)
def test_what_is_not_there_is_told(name, told):
  with pytest.raises(KdjaxError, match=told):
    locate(name)
