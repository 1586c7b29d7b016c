"""What a run leaves for its reader: a table, figures, one HTML page, and JSON for programs.

Everything here is made of plain numbers; nothing knows how they came about.
"""

from __future__ import annotations

import base64
import html
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.errors import KdjaxError
from kdjax.evaluation.statistics import verdict
from kdjax.train import plots

Results = Mapping[str, Mapping[str, float]]
# Columns that lead, in this order, and whether more is better; others follow without a mark.
HIGHER_IS_BETTER = {
  "perplexity": False,
  "accuracy": True,
  "nll": False,
  "brier": False,
  "ece": False,
  "mce": False,
  "agreement": True,
  "probability_loyalty": True,
  "forward_kl": False,
}
ABSENT = "–"
# Of a comparison, what is in its JSON alone or told elsewhere on the page.
UNSHOWN = ("variants", "title", "evaluations")


def format_table(results: Results, columns: Sequence[str] | None = None) -> str:
  """The results as aligned plain text, one line per row.

  Args:
    results: row to metric to value.
    columns: the metrics shown; None shows all, the usual ones first.

  Returns:
    A header, a rule and the rows, without a newline at the end.

  Example:
    >>> print(format_table({"teacher": {"accuracy": 0.97}, "student": {"accuracy": 0.9}}))
             accuracy
    -------  --------
    teacher    0.9700
    student    0.9000
  """
  columns = _columns(results) if columns is None else list(columns)
  rows = [["", *columns]]
  rows += [[row, *(_number(values.get(c)) for c in columns)] for row, values in results.items()]
  widths = [max(len(row[i]) for row in rows) for i in range(len(columns) + 1)]
  rows.insert(1, ["-" * width for width in widths])
  lines = [
    [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
    for row in rows
  ]
  return "\n".join("  ".join(cells).rstrip() for cells in lines)


def write_report(
  workdir: Path,
  *,
  title: str,
  results: Results,
  curves: plots.Curves,
  reliability: Mapping[str, Mapping[str, Any]],
  agreement: Mapping[str, Mapping[str, Any]],
  info: Mapping[str, Any],
  samples: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
  """Writes `report.json`, `report.html` and `plots/*.png`, each whole or not at all.

  Args:
    workdir: the folder.
    title: heads the page; may be empty.
    results: row to metric to value.
    curves: run to metric to (steps, values).
    reliability: row to `confidence`, `accuracy` and `count` of its bins; may be empty.
    agreement: row to `agreement` with the teacher and, where known, `matrix` (teacher's class by
      student's class); may be empty.
    info: joins the results in `report.json`; the page shows what is a mapping folded away.
    samples: prompt to row to the text that it wrote.

  Raises:
    KdjaxError: a file that cannot be written.
  """
  metric = next(iter(_columns(results)), "accuracy")
  figures = {
    "accuracy": (f"{metric.capitalize()}", plots.metric_bars(results, metric)),
    "curves": ("Learning curves", plots.learning_curves(curves)),
    "agreement": ("Agreement with the teacher", plots.agreement_figure(agreement)),
    "reliability": ("Calibration", plots.reliability_diagrams(reliability)),
  }
  parts = [_html_table(results)]
  parts += _html_figures(workdir, figures)
  parts += _html_samples(samples or {})
  parts.append(_html_info(info))
  written = {"results": results, **info} | ({"samples": samples} if samples else {})
  _write(workdir / "report.json", _json(written))
  _write(workdir / "report.html", _page(title or "Report", parts))


def write_comparison(workdir: Path, comparison: Mapping[str, Any]) -> str:
  """Writes `comparison.json`, `comparison.html` and `comparison.png`.

  Args:
    workdir: the folder.
    comparison: `metric`, `higher_is_better`, `variants` ("baseline" and "method" to one value per
      seed) and what `paired_comparison` says of them; where present, `names` of the variants,
      `seed_numbers`, `teacher` (row to value) and `title` are shown too.
      `evaluations` (variant to all metrics of each seed) go to the JSON alone.

  Returns:
    The table as text, with the verdict below. `comparison.json` holds the verdict too.

  Raises:
    KdjaxError: a file that cannot be written.
  """
  metric, variants = comparison["metric"], comparison["variants"]
  names = comparison.get("names") or {}
  told = verdict(comparison, metric=metric, higher_is_better=comparison["higher_is_better"])
  numbers = comparison.get("seed_numbers") or range(len(variants["method"]))
  rows: dict[str, dict[str, float]] = {}
  for variant, values in variants.items():
    by_seed = {f"seed {n}": value for n, value in zip(numbers, values, strict=True)}
    summary = {"mean": comparison["mean"][variant], "std": comparison["std"][variant]}
    rows[names.get(variant, variant)] = by_seed | summary
  columns = list(next(iter(rows.values())))
  teacher = comparison.get("teacher") or {}
  rows |= {row: {"mean": value} for row, value in teacher.items()}
  figure = plots.paired_dots(variants, metric=metric, names=names, teacher=teacher)
  table = f"{metric}\n{format_table(rows, columns)}\n\n{told}"
  shown = {key: value for key, value in comparison.items() if key not in UNSHOWN}
  parts = [
    f"<p class='verdict'>{html.escape(told)}</p>",
    _html_table(rows, columns),
    _img(figure, f"{metric} of each seed"),
    _html_info({"comparison": shown}),
  ]
  _write(workdir / "comparison.png", figure)
  _write(workdir / "comparison.html", _page(comparison.get("title") or "Comparison", parts))
  _write(workdir / "comparison.json", _json({**comparison, "verdict": told}))
  return table


def _columns(results: Results) -> list[str]:
  known = dict.fromkeys(metric for values in results.values() for metric in values)
  return [m for m in HIGHER_IS_BETTER if m in known] + [
    m for m in known if m not in HIGHER_IS_BETTER
  ]


def _number(value: float | None) -> str:
  if value is None or not math.isfinite(value):
    return ABSENT
  return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"


def _html_table(results: Results, columns: Sequence[str] | None = None) -> str:
  columns = _columns(results) if columns is None else columns
  best = {column: _best(results, column) for column in columns}
  arrows = {True: " ↑", False: " ↓"}
  head = "".join(
    f"<th>{html.escape(c)}{arrows.get(HIGHER_IS_BETTER.get(c), '')}</th>" for c in columns
  )
  body = []
  for row, values in results.items():
    cells = [
      f"<td class='best'>{_number(values[c])}</td>"
      if best[c] is not None and values.get(c) == best[c]
      else f"<td>{_number(values.get(c))}</td>"
      for c in columns
    ]
    body.append(f"<tr><th scope='row'>{html.escape(row)}</th>{''.join(cells)}</tr>")
  return (
    "<div class='wide'><table>"
    f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
  )


def _best(results: Results, column: str) -> float | None:
  values = [v[column] for v in results.values() if math.isfinite(v.get(column) or math.nan)]
  if len(values) < 2 or column not in HIGHER_IS_BETTER:
    return None
  return (max if HIGHER_IS_BETTER[column] else min)(values)


def _html_figures(workdir: Path, figures: Mapping[str, tuple[str, bytes | None]]) -> list[str]:
  parts = []
  for name, (heading, png) in figures.items():
    path = workdir / "plots" / f"{name}.png"
    if png is None:
      path.unlink(missing_ok=True)  # of an earlier run: it would belong to other numbers
      continue
    _write(path, png)
    parts.append(f"<h2>{html.escape(heading)}</h2>{_img(png, heading)}")
  return parts


def _html_samples(samples: Mapping[str, Mapping[str, str]]) -> list[str]:
  parts = ["<h2>Samples</h2>"] if samples else []
  for prompt, rows in samples.items():
    parts.append(f"<pre><b>{html.escape(prompt)}</b></pre><dl>")
    parts += [
      f"<dt>{html.escape(row)}</dt><dd><pre>{html.escape(text)}</pre></dd>"
      for row, text in rows.items()
    ]
    parts.append("</dl>")
  return parts


def _img(png: bytes, alt: str) -> str:
  data = base64.b64encode(png).decode()
  # The width stands at this place of every PNG; letters are then of one size in all figures.
  width = int.from_bytes(png[16:20], "big") * 96 // plots.DPI
  return f"<img width='{width}' alt='{html.escape(alt)}' src='data:image/png;base64,{data}'>"


def _html_info(info: Mapping[str, Any]) -> str:
  facts = [
    f"<dt>{html.escape(key)}</dt><dd>{html.escape(str(value))}</dd>"
    for key, value in info.items()
    if not isinstance(value, Mapping)
  ]
  folded = [
    f"<details><summary>{html.escape(key)}</summary>"
    f"<pre>{html.escape(json.dumps(_plain(value), indent=2, ensure_ascii=False))}</pre></details>"
    for key, value in info.items()
    if isinstance(value, Mapping)
  ]
  listed = f"<dl>{''.join(facts)}</dl>" if facts else ""
  return f"<h2>Details</h2>{listed}{''.join(folded)}"


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #f6f6f4; margin: 0; }
main { max-width: 1060px; margin: 2rem auto; padding: 1.5rem 2.5rem 2.5rem; background: #fff;
  border: 1px solid #e3e3df; border-radius: 8px; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .4rem 0 1.4rem; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .7rem; padding-top: 1rem; border-top: 1px solid #ecece8; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .65rem; text-align: right; white-space: nowrap; }
thead th { border-bottom: 2px solid #222; font-weight: 600; }
tbody th { text-align: left; font-weight: 600; }
tbody tr + tr > * { border-top: 1px solid #ecece8; }
td.best { font-weight: 700; color: #00603f; background: #e9f5ef; }
img { max-width: 100%; height: auto; display: block; margin: .6rem auto; }
.verdict { font-size: 1.05rem; padding: .7rem 1rem; background: #eef4f9; border-radius: 6px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; }
dt { color: #666; } dd { margin: 0; overflow-wrap: anywhere; }
details { margin: .5rem 0; } summary { cursor: pointer; }
pre { background: #f6f6f4; padding: .8rem 1rem; overflow-x: auto; font-size: 12.5px; }
"""


def _page(title: str, parts: Sequence[str]) -> bytes:
  title, body = html.escape(title), "\n".join(parts)
  return (
    "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
    "<meta name='viewport' content='width=device-width, initial-scale=1'>"
    f"<title>{title}</title><style>{STYLE}</style></head>\n"
    f"<body><main><h1>{title}</h1>\n{body}\n</main></body></html>\n"
  ).encode()


def _json(content: Mapping[str, Any]) -> bytes:
  text = json.dumps(_plain(content), indent=2, allow_nan=False, ensure_ascii=False)
  return (text + "\n").encode()


def _plain(value: Any) -> Any:
  """What JSON can hold; numbers that are not finite, which it cannot, become null."""
  if isinstance(value, Mapping):
    return {str(key): _plain(own) for key, own in value.items()}
  if isinstance(value, np.ndarray | np.generic):
    return _plain(value.tolist())
  if isinstance(value, list | tuple):
    return [_plain(own) for own in value]
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  return value if value is None or isinstance(value, bool | int | str) else str(value)


def _write(path: Path, content: bytes) -> None:
  scratch = path.with_name(path.name + ".tmp")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch.write_bytes(content)
    os.replace(scratch, path)
  except OSError as error:
    raise KdjaxError(
      f"{path} cannot be written ({error}); free space or permit writing, then run the same command"
      " again: checkpoints are kept and only the report is made anew"
    ) from None
