"""What the students of an experiment on teacher hacking came to, as numbers and as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.evaluation.statistics import paired_comparison
from kdjax.laws import detect, rebound
from kdjax.train.metrics import read_metrics

History = Mapping[str, Sequence[float]]


def history(path: Path) -> dict[str, list[float]]:
  """`steps`, `proxy` and `golden` of the evaluations in a run's metrics, step 0 included."""
  rows = [row for row in read_metrics(path) if row["split"] == "eval"]
  return {
    "steps": [row["step"] for row in rows],
    "proxy": [row["proxy"] for row in rows],
    "golden": [row["golden"] for row in rows],
  }


def summary(histories: Mapping[str, Sequence[History]], baseline: str) -> dict[str, Any]:
  """What each source came to: means over seeds, and its golden distance beside the baseline's."""
  out: dict[str, Any] = {}
  ends = {name: [run["golden"][-1] for run in runs] for name, runs in histories.items()}
  for name, runs in histories.items():
    after = [[(s, p) for s, p in zip(r["steps"], r["proxy"], strict=True) if s > 0] for r in runs]
    verdicts = [detect(*zip(*points, strict=True)) for points in after if len(points) > 3]
    out[name] = {
      "proxy": float(np.mean([run["proxy"][-1] for run in runs])),
      "golden": float(np.mean(ends[name])),
      "golden_min": float(np.mean([min(run["golden"]) for run in runs])),
      "rebound": float(np.mean([rebound(run["golden"]) for run in runs])),
      "deviation": float(np.mean([v.deviation for v in verdicts])) if verdicts else None,
      "flagged": sum(v.flagged for v in verdicts),
      "against_baseline": None
      if name == baseline
      else paired_comparison(ends[baseline], ends[name]),
    }
  return out


def table(result: Mapping[str, Any]) -> str:
  """The summary as text, a source a line."""
  count = len(result["seeds"])
  lines = [
    f"KL in nats a token ({result['divergence']}, texts of the {result['drawn_from']}), means over"
    f" {count} seed(s); the teacher is {result['teacher_golden']:.4f} from the oracle",
    f"{'':<22}{'proxy':>9}{'golden':>9}{'lowest':>9}{'rebound':>9}{'off law':>9}{'flagged':>9}"
    f"{'golden - ' + result['baseline']:>26}",
  ]
  for name, own in result["summary"].items():
    off = "–" if own["deviation"] is None else f"{own['deviation']:+.3f}"
    flagged = f"{own['flagged']}/{count}"
    beside = ""
    if told := own["against_baseline"]:
      p_value = told["p_value"]
      beside = f"{told['paired_difference']:+.4f}"
      beside += "" if p_value is None else f" (p = {p_value:.2g})"
    lines.append(
      f"{name:<22}{own['proxy']:>9.4f}{own['golden']:>9.4f}{own['golden_min']:>9.4f}"
      f"{own['rebound']:>9.4f}{off:>9}{flagged:>9}{beside:>26}"
    )
  return "\n".join(lines)
