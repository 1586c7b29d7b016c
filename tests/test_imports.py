"""The module graph: one-way imports, no cycle, nothing heavy."""

import ast
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each layer may import those before it (and itself).
LAYERS = [
  {"errors", "outputs", "paths", "resolve", "simulation"},
  {"losses"},
  {"models", "objectives", "data", "evaluation", "laws"},
  {"signals", "teachers", "generation"},
  {"programs", "synthesis"},
  {"train"},
  {"plan"},
  {"launch"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def modules():
  for path in [*(ROOT / "kdjax").rglob("*.py"), *(ROOT / "launch").rglob("*.py")]:
    yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path


def imports(path: Path):
  """The modules of this project that a file imports."""
  for node in ast.walk(ast.parse(path.read_text())):
    names = []
    if isinstance(node, ast.ImportFrom) and node.module:
      names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    elif isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    yield from (n for n in names if n.split(".")[0] in ("kdjax", "launch", "configs"))


def layer(module: str) -> str | None:
  parts = module.split(".")
  return parts[0] if parts[0] == "launch" else parts[1] if len(parts) > 1 else None


def test_imports_go_one_way():
  wrong = [
    f"{module} imports {name}"
    for module, path in modules()
    for name in imports(path)
    if layer(module) in RANK and layer(name) in RANK and RANK[layer(name)] > RANK[layer(module)]
  ]
  assert not wrong, wrong


def test_models_data_and_evaluation_stand_alone():
  for module, path in modules():
    if layer(module) in ("models", "data", "evaluation", "laws", "losses", "simulation"):
      others = {layer(name) for name in imports(path)} - {layer(module), None}
      assert others <= {
        "errors",
        "gguf_header",
        "outputs",
        "parsing",
        "paths",
        "resolve",
        "losses",
        "simulation",
      }, (module, others)


def test_there_is_no_cycle():
  known = dict(modules())
  graph = {m: {n for n in imports(p) if n in known and n != m} for m, p in known.items()}
  # A package's __init__ only gathers its own modules; they do not depend on it.
  graph = {m: {n for n in names if not m.startswith(f"{n}.")} for m, names in graph.items()}
  while graph:
    leaves = {m for m, names in graph.items() if not names & graph.keys()}
    assert leaves, f"a cycle among {sorted(graph)}"
    graph = {m: names for m, names in graph.items() if m not in leaves}


@pytest.mark.parametrize("entry", ["train", "compare", "evaluate", "cache_teacher"])
def test_neither_tensorflow_nor_pytorch_is_imported(entry):
  code = f"import sys, launch.{entry}; print({{'tensorflow', 'torch'}} & set(sys.modules))"
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert done.stdout.strip() == "set()", done.stderr


def test_calling_losses_and_models_imports_no_data_science():
  """Each of these takes longer to import than all of kdjax."""
  code = (
    "import sys; from kdjax import losses, models, objectives, programs, teachers;"
    " print({'sklearn', 'scipy.stats', 'matplotlib', 'transformers'} & set(sys.modules))"
  )
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert done.stdout.strip() == "set()", done.stdout + done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.stem)
def test_a_benchmark_names_what_exists(path):
  """Also where it imports late: nothing else runs them in the tests."""
  for node in ast.walk(ast.parse(path.read_text())):
    if not isinstance(node, ast.ImportFrom) or not node.module.startswith(("kdjax", "configs")):
      continue
    module = importlib.import_module(node.module)
    for alias in node.names:
      inside = f"{node.module}.{alias.name}"
      assert hasattr(module, alias.name) or importlib.util.find_spec(inside), inside
