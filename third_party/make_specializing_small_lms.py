"""Makes `reference/specializing_small_lms.npz` with the official alignment and transfer.

  python make_specializing_small_lms.py --source=FlanT5-CoT-Specialization --out=reference

The source is a checkout of FranxYao/FlanT5-CoT-Specialization. Needs PyTorch and editdistance,
which kdjax does not: it is run by hand and never by the tests. README.md beside this file says what
each array is.
"""

from __future__ import annotations

import argparse
import ast
import json
from collections import OrderedDict
from pathlib import Path

import editdistance
import numpy as np
import torch

WORDS = ("She", "sold", "13", "1322", "clips", "in", "May", "and", "half", "as", "many", "=", "24")
K = 5


def functions(source: str, names: set[str], scope: dict) -> dict:
  """Runs the definitions of some functions of a file, and nothing else of it."""
  body = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name in names]
  exec(compile(ast.Module(body, []), "official", "exec"), scope)
  return scope


def cut(word: str, rng: np.random.Generator) -> list[str]:
  """A word, whole or in two or three pieces."""
  places = np.sort(rng.permutation(np.arange(1, len(word)))[: rng.integers(0, 3)])
  return [word[a:b] for a, b in zip([0, *places], [*places, len(word)], strict=True)]


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--source", type=Path, required=True)
  parser.add_argument("--out", type=Path, required=True)
  options = parser.parse_args()
  notebook = options.source / "notebooks" / "dev_align_codex_to_flan_t5_dtw.ipynb"
  cells = json.loads(notebook.read_text())["cells"]
  code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
  defined = "\n".join(c for c in code if c.startswith("def "))
  scope = {"np": np, "torch": torch, "editdistance": editdistance, "OrderedDict": OrderedDict}
  functions((options.source / "src" / "utils.py").read_text(), {"dtw", "kl_divergence"}, scope)
  functions(defined, {"dist_fn", "transform_step_probs"}, scope)
  rng = np.random.default_rng(16)
  arrays = {}
  for number in range(4):
    words = rng.choice(WORDS, 9)
    student = [piece for w in words for piece in cut("\u2581" + w, rng)]
    teacher = [piece for w in words for piece in cut(" " + w, rng)]
    vocabulary = set(student) | {"\u2581" + w for w in WORDS[::2]}
    steps = []
    for token in teacher:
      others = [" " + w for w in rng.permutation(WORDS)][: K - 1]
      probs = np.sort(rng.dirichlet(np.ones(K + 1))[:K])[::-1]
      steps.append([*zip([token, *others], probs.tolist(), strict=True)])
    path, cost, *_ = scope["dtw"](teacher, student, norm_func=scope["dist_fn"])

    class Tokenizer:
      def __call__(self, text):
        return {"input_ids": None}

      def convert_ids_to_tokens(self, ids, tokens=student):
        return [*tokens, "</s>"]

    scope["tokenizer"] = Tokenizer()
    line = [("\n", 1.0)]
    wrapped = [[(" step", 1.0)], line, *steps, line, line]
    code, moved = scope["transform_step_probs"](0, 0, vocabulary, "Model output 0: x", wrapped)
    assert code == 1
    tokens, probs = np.full((len(student), K), "", "U16"), np.zeros((len(student), K))
    for place, own in enumerate(moved):
      for slot, (token, prob) in enumerate(own.items()):
        tokens[place, slot], probs[place, slot] = token, prob
    arrays |= {
      f"{number}_student": np.array(student),
      f"{number}_teacher": np.array(teacher),
      f"{number}_vocabulary": np.array(sorted(vocabulary)),
      f"{number}_step_tokens": np.array([[t for t, _ in step] for step in steps]),
      f"{number}_step_probs": np.array([[p for _, p in step] for step in steps]),
      f"{number}_path": np.array(path),
      f"{number}_cost": np.array(int(cost)),
      f"{number}_moved_tokens": tokens,
      f"{number}_moved_probs": probs,
    }
  logits = torch.tensor(2 * rng.standard_normal((6, 12)), dtype=torch.float32)
  targets = np.zeros((6, 12), np.float32)
  for row in range(6):
    targets[row, rng.permutation(12)[:K]] = rng.dirichlet(np.ones(K + 1))[:K]
  arrays |= {"logits": logits.numpy(), "targets": targets}
  arrays["kl"] = scope["kl_divergence"](torch.tensor(targets), logits.softmax(-1)).numpy()
  np.savez_compressed(options.out / "specializing_small_lms.npz", **arrays)


if __name__ == "__main__":
  main()
