"""The README's code runs, and its tables name what is there."""

import re
from pathlib import Path

from kdjax import objectives

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_library_snippet_lowers_the_loss():
  (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
  lines = [line for line in snippet.splitlines() if line.strip()]
  assert len([line for line in lines if "import" not in line]) <= 10
  namespace: dict = {}
  exec(snippet, namespace)
  assert namespace["after"] < namespace["before"]
  assert namespace["per_example"].shape == (64,)


def test_every_method_of_the_table_has_its_config():
  rows = re.findall(r"^\| `(\w+)` \|.*?`configs/(\w+)\.py`", README, re.MULTILINE)
  assert len(rows) >= 6
  for name, config in rows:
    # A method that is none of the objectives has a config of its own name.
    assert name in objectives.__all__ or name == config
    assert (ROOT / "configs" / f"{config}.py").exists()


def test_commands_of_the_readme_exist():
  for module in set(re.findall(r"python -m (launch\.[\w.]+)", README)):
    assert (ROOT / (module.replace(".", "/") + ".py")).exists()
  for target in set(re.findall(r"^make (\w+)", README, re.MULTILINE)):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
