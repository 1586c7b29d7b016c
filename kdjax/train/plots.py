"""The figures of a report, as PNG. Each takes plain numbers and knows nothing of training."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from kdjax.train.metrics import timing

# Distinguishable with every common colour blindness (Okabe and Ito).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
INK, FAINT = "#222222", "#d9d9d9"
PANELS = 6
DPI = 144
# Shown first where they exist; others fill up what is left of the panels.
PREFERRED = (
  "train/loss",
  "eval/accuracy",
  "eval/nll",
  "eval/agreement",
  "eval/ece",
  "eval/probability_loyalty",
)
Curves = Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]


def learning_curves(curves: Curves) -> bytes | None:
  """One panel per metric, one line per run; None without points."""
  known = dict.fromkeys(name for metrics in curves.values() for name in metrics)
  # What a run says of its teacher does not change as it learns.
  others = [n for n in known if n not in PREFERRED and "teacher" not in n and not timing(n)]
  names = ([n for n in PREFERRED if n in known] + others)[:PANELS]
  if not names:
    return None
  columns = min(len(names), 3)
  rows = -(-len(names) // columns)
  figure = _figure(4.1 * columns, 3.0 * rows + 0.4)
  colours = _colours(curves)
  for place, name in enumerate(names):
    axes = _axes(figure, rows, columns, place + 1)
    for run, metrics in curves.items():
      if name in metrics:
        steps, values = metrics[name]
        marker = "o" if len(steps) <= 12 else None
        axes.plot(steps, values, color=colours[run], lw=1.7, marker=marker, ms=3.5, label=run)
    axes.set_xlim(left=0)
    axes.set_title(name, fontsize=10.5, loc="left")
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(color=FAINT, lw=0.6)
  _legend(figure, colours)
  return _png(figure)


def metric_bars(results: Mapping[str, Mapping[str, float]], metric: str) -> bytes | None:
  """One bar per row, from 0, with its value; None where no row has the metric."""
  found = {row: values[metric] for row, values in results.items() if _finite(values.get(metric))}
  if not found:
    return None
  figure = _figure(7.2, 0.9 + 0.42 * len(found))
  _bars(_axes(figure, 1, 1, 1), found, metric, _colours(results))
  return _png(figure)


def reliability_diagrams(reliability: Mapping[str, Mapping[str, Any]]) -> bytes | None:
  """Accuracy against confidence for each row, with the share of examples per bin below."""
  found = {
    row: {key: np.asarray(value, float) for key, value in bins.items()}
    for row, bins in reliability.items()
    if np.sum(bins["count"]) > 0
  }
  if not found:
    return None
  columns = min(len(found), 4)
  bands = -(-len(found) // columns)
  figure = _figure(3.3 * columns, 4.1 * bands)
  grid = figure.add_gridspec(2 * bands, columns, height_ratios=[3.2, 1] * bands)
  colours = _colours(reliability)
  for place, (row, bins) in enumerate(found.items()):
    band, column = divmod(place, columns)
    size = len(bins["count"])
    edges, used = np.arange(size) / size, bins["count"] > 0
    upper = figure.add_subplot(grid[2 * band, column])
    share = bins["count"] / bins["count"].sum()
    error = np.sum(share * np.abs(bins["confidence"] - bins["accuracy"]))
    bar = {"width": 1 / size, "align": "edge", "edgecolor": "white", "lw": 0.6}
    upper.bar(edges[used], bins["accuracy"][used], color=colours[row], **bar)
    upper.hlines(
      bins["confidence"][used], edges[used], edges[used] + 1 / size, color=INK, lw=2.2, zorder=3
    )
    upper.plot([0, 1], [0, 1], color="#888888", lw=1, ls=(0, (4, 3)))
    upper.set_title(f"{row}, ECE {error:.3f}", fontsize=10, loc="left")
    upper.set(xlim=(0, 1), ylim=(0, 1.02))
    upper.tick_params(labelbottom=False)
    lower = figure.add_subplot(grid[2 * band + 1, column], sharex=upper)
    lower.bar(edges, share, color="#9a9a9a", **bar)
    lower.set(ylim=(0, max(share.max() * 1.1, 1e-3)), xlabel="confidence")
    lower.yaxis.set_major_locator(MaxNLocator(2))
    if column == 0:
      upper.set_ylabel("accuracy")
      lower.set_ylabel("share")
    for axes in (upper, lower):
      _bare(axes)
  keys = [
    Patch(color="#9a9a9a", label="accuracy in the bin"),
    Line2D([], [], color=INK, lw=2.2, label="mean confidence (higher than the bar: overconfident)"),
  ]
  figure.legend(handles=keys, loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
  return _png(figure)


def agreement_figure(agreement: Mapping[str, Mapping[str, Any]]) -> bytes | None:
  """How often each row agrees with the teacher, and on which classes."""
  values = {row: own["agreement"] for row, own in agreement.items() if _finite(own["agreement"])}
  if not values:
    return None
  matrices = {
    row: np.asarray(own["matrix"], float)
    for row, own in agreement.items()
    if own.get("matrix") is not None and np.sum(own["matrix"]) > 0
  }
  columns = max(len(matrices), 1)
  bars = 0.75 + 0.42 * len(values)
  figure = _figure(max(3.9 * columns, 7.2), bars + (3.7 if matrices else 0))
  ratios = [bars, 3.7] if matrices else [1]
  grid = figure.add_gridspec(len(ratios), columns, height_ratios=ratios)
  _bars(
    figure.add_subplot(grid[0, :]),
    values,
    "share of examples with the teacher's class on top",
    _colours(agreement),
  )
  image = None
  for column, (row, matrix) in enumerate(matrices.items()):
    axes = figure.add_subplot(grid[1, column])
    # By rows: of what the teacher calls i, the share that the student calls j.
    total = matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, total, out=np.zeros_like(matrix), where=total > 0)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    classes = len(matrix)
    if classes <= 12:
      axes.set_xticks(range(classes))
      axes.set_yticks(range(classes))
      for i, j in np.argwhere(shares >= 0.005):
        # Two digits after the point, without the leading 0, fit into the cell.
        text = f"{shares[i, j]:.2f}".removeprefix("0")
        colour = "white" if shares[i, j] > 0.55 else INK
        axes.text(j, i, text, ha="center", va="center", fontsize=6.5, color=colour)
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_color(FAINT)
    axes.set_title(row, fontsize=10.5, loc="left")
    axes.set_xlabel("student's class")
    axes.set_ylabel("teacher's class")
  if image is not None:
    bar = figure.colorbar(image, ax=figure.axes[1:], shrink=0.85, pad=0.02)
    bar.set_label("share of the teacher's class", fontsize=8.5)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
  return _png(figure)


def paired_dots(
  variants: Mapping[str, Sequence[float]],
  *,
  metric: str,
  names: Mapping[str, str],
  teacher: Mapping[str, float],
) -> bytes:
  """One dot per seed and variant, the dots of a seed joined, with each variant's mean."""
  figure = _figure(5.6, 4.2)
  axes = _axes(figure, 1, 1, 1)
  places = range(len(variants))
  for values in zip(*variants.values(), strict=True):
    axes.plot(places, values, color="#9a9a9a", lw=1, zorder=1)
  for place, (variant, colour) in enumerate(zip(variants, PALETTE, strict=False)):
    values = np.asarray(variants[variant], float)
    axes.scatter([place] * len(values), values, s=44, color=colour, edgecolor="white", zorder=3)
    mean = values.mean()
    axes.plot([place - 0.16, place + 0.16], [mean, mean], color=colour, lw=3, zorder=2)
    side = -1 if place == 0 else 1
    axes.annotate(
      f"{mean:.4g}",
      (place + side * 0.16, mean),
      xytext=(side * 6, 0),
      textcoords="offset points",
      ha="right" if side < 0 else "left",
      va="center",
      color=colour,
      fontweight="bold",
    )
  for row, value in teacher.items():
    if _finite(value):
      axes.axhline(value, color=INK, lw=1, ls=(0, (4, 3)), zorder=0)
      axes.annotate(
        f"{row} {value:.4g}", (0.5, value), xytext=(0, 3), textcoords="offset points", ha="center"
      )
  axes.set_xticks(places, [names.get(variant, variant) for variant in variants], fontsize=10)
  axes.set_xlim(-0.6, len(variants) - 0.4)
  axes.margins(y=0.14)
  axes.set_ylabel(metric)
  axes.grid(axis="y", color=FAINT, lw=0.6)
  return _png(figure)


def ranked_dots(
  values: Mapping[str, Sequence[float]], *, metric: str, reference: str, teacher: float | None
) -> bytes:
  """A line a method in the given order: a dot for each seed, a bar for their mean."""
  figure = _figure(7.2, 1.0 + 0.3 * len(values))
  axes = _axes(figure, 1, 1, 1)
  for place, (name, own) in enumerate(values.items()):
    colour = PALETTE[1] if name == reference else PALETTE[0]
    axes.scatter(own, [place] * len(own), s=22, color=colour, alpha=0.55, lw=0, zorder=3)
    axes.plot([np.mean(own)] * 2, [place - 0.3, place + 0.3], color=colour, lw=2.4, zorder=4)
  axes.axvline(np.mean(values[reference]), color=PALETTE[1], lw=1, ls=(0, (4, 3)), zorder=1)
  spread = np.concatenate([np.asarray(own, float) for own in values.values()])
  # A teacher far from all students would squeeze them into one place.
  if _finite(teacher) and abs(teacher - spread.mean()) <= 4 * np.ptp(spread):
    axes.axvline(teacher, color=INK, lw=1, ls=(0, (4, 3)), zorder=1)
    axes.annotate("teacher", (teacher, -0.9), ha="center", fontsize=8.5, annotation_clip=False)
  axes.set_yticks(range(len(values)), list(values))
  axes.set_ylim(len(values) - 0.4, -0.6)
  axes.set_xlabel(metric)
  axes.grid(axis="x", color=FAINT, lw=0.6)
  axes.tick_params(axis="y", length=0)
  return _png(figure)


def distance_curves(
  sources: Mapping[str, Sequence[Mapping[str, Sequence[float]]]], level: float
) -> bytes:
  """Distances to the teacher and to the oracle over the steps, and the one against the other.

  Args:
    sources: name to runs, each with `steps`, `proxy` and `golden`; runs of one name share a colour.
    level: the teacher's own distance to the oracle.
  """
  figure = _figure(12.0, 3.8)
  colours = _colours(sources)
  panels = (("steps", "proxy"), ("steps", "golden"), ("proxy", "golden"))
  for place, (across, up) in enumerate(panels):
    axes = _axes(figure, 1, 3, place + 1)
    for name, runs in sources.items():
      for run in runs:
        start = 1 if across == "steps" and run["steps"][0] == 0 else 0  # for the logarithm
        x, y = run[across][start:], run[up][start:]
        axes.plot(x, y, color=colours[name], lw=1.5, marker="o", ms=2.5, label=name)
    axes.set_xscale("log")
    if up == "proxy":
      axes.set_yscale("log")
    else:
      axes.axhline(level, color=INK, lw=1, ls=(0, (4, 3)), zorder=0)
    for axis in (axes.xaxis, axes.yaxis) if up == "proxy" else (axes.xaxis,):
      axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
      axis.set_major_formatter("{x:g}")
      axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel({"steps": "step", "proxy": "distance to the teacher"}[across])
    title = {"proxy": "distance to the teacher", "golden": "distance to the oracle"}[up]
    axes.set_title(title, fontsize=10.5, loc="left")
    axes.grid(color=FAINT, lw=0.6)
  _legend(figure, colours)
  return _png(figure)


def _bars(axes: Axes, values: Mapping[str, float], title: str, colours: Mapping[str, str]) -> None:
  names = list(values)
  axes.barh(names, list(values.values()), color=[colours[name] for name in names], height=0.62)
  for place, value in enumerate(values.values()):
    axes.annotate(
      f"{value:.4f}",
      (max(value, 0), place),
      xytext=(5, 0),
      textcoords="offset points",
      va="center",
      fontsize=9,
    )
  axes.invert_yaxis()
  top = max(0.0, *values.values())
  # Room for the number to the right of the longest bar.
  axes.set_xlim(min(0.0, *values.values()), 1.14 * top if top else 1)
  axes.set_title(title, fontsize=10.5, loc="left")
  axes.grid(axis="x", color=FAINT, lw=0.6)
  axes.set_axisbelow(True)
  axes.tick_params(axis="y", length=0)
  _bare(axes)


def _colours(rows: Mapping[str, Any]) -> dict[str, str]:
  # The teacher's is fixed, so that a student has one colour in figures with and without it.
  students = [row for row in rows if not row.startswith("teacher")]
  teachers = [row for row in rows if row.startswith("teacher")]
  colours = {row: PALETTE[i % (len(PALETTE) - 1)] for i, row in enumerate(students)}
  return colours | dict.fromkeys(teachers, PALETTE[-1])


def _figure(width: float, height: float) -> Figure:
  # Not pyplot: it keeps every figure in a global table and may want a display.
  figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
  figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
  FigureCanvasAgg(figure)
  return figure


def _axes(figure: Figure, rows: int, columns: int, place: int) -> Axes:
  axes = figure.add_subplot(rows, columns, place)
  _bare(axes)
  return axes


def _bare(axes: Axes) -> None:
  for side in ("top", "right"):
    axes.spines[side].set_visible(False)
  for side in ("left", "bottom"):
    axes.spines[side].set_color("#888888")
  axes.tick_params(labelsize=8.5, color="#888888")


def _legend(figure: Figure, colours: Mapping[str, str]) -> None:
  lines = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
  shown = [row for row in colours if row in lines]
  figure.legend(
    [lines[row] for row in shown],
    shown,
    loc="outside lower center",
    ncols=len(shown),
    frameon=False,
  )


def _finite(value: Any) -> bool:
  return value is not None and bool(np.isfinite(value))


def _png(figure: Figure) -> bytes:
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png")
  return buffer.getvalue()
