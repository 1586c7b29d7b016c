"""The report: tables, strict JSON, a page that needs nothing else, and whatever may be missing."""

import doctest
import html.parser
import json
import struct

import numpy as np
import pytest

from kdjax.errors import KdjaxError
from kdjax.evaluation import paired_comparison
from kdjax.train import plots, report
from kdjax.train.report import format_table, write_comparison, write_report

RESULTS = {
  "teacher": {"accuracy": 0.97, "nll": 0.12},
  "student_distilled": {"accuracy": 0.9, "nll": 0.33, "agreement": 0.93, "own": 12345.6},
}
CURVES = {
  "teacher": {"train/loss": ([20, 40], [1.0, 0.5])},
  "student_distilled": {
    "train/loss": ([20, 40], [2.0, 1.0]),
    "eval/accuracy": ([40], [0.9]),
    "eval/teacher/nll": ([40], [0.1]),
    "train/examples_per_second": ([40], [1e4]),
  },
}
BINS = {
  "confidence": np.linspace(0.03, 0.97, 15),
  "accuracy": np.linspace(0.1, 0.9, 15),
  "count": np.arange(15.0),
}
AGREEMENT = {"student_distilled": {"agreement": 0.93, "matrix": np.eye(3) / 3}}
INFO = {
  "step": np.int64(400),
  "seconds": 61.5,
  "versions": {"jax": "0.10"},
  "config": {"rate": float("inf"), "note": "<b>&", "shape": (2, np.float32(0.5))},
}


def write(folder, **changed):
  arguments = {
    "title": "A <title> & more",
    "results": RESULTS,
    "curves": CURVES,
    "reliability": {"teacher": BINS, "student_distilled": BINS},
    "agreement": AGREEMENT,
    "info": INFO,
  }
  write_report(folder, **(arguments | changed))
  return (folder / "report.html").read_text()


def strict(path):
  def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")

  return json.loads(path.read_text(), parse_constant=refuse)


class Page(html.parser.HTMLParser):
  """Checks that tags close in order, and collects what a test asks about."""

  VOID = ("meta", "img")

  def __init__(self, text):
    super().__init__()
    self.open, self.sources, self.cells, self.headings = [], [], [], []
    self.feed(text)
    assert not self.open

  def handle_starttag(self, tag, attributes):
    if tag not in self.VOID:
      self.open.append(tag)
    self.sources += [value for name, value in attributes if name in ("src", "href")]

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] in ("td", "th"):
      self.cells.append(data)
    if self.open and self.open[-1] in ("h1", "h2"):
      self.headings.append(data)


def png_size(path):
  content = path.read_bytes()
  assert content.startswith(b"\x89PNG\r\n\x1a\n") and content.endswith(b"IEND\xaeB`\x82")
  return struct.unpack(">II", content[16:24])


def test_the_table_is_aligned_with_the_usual_columns_first():
  table = format_table(
    {"teacher": {"other": 1.5, "accuracy": 0.97}, "student": {"accuracy": 0.9, "nll": float("nan")}}
  )
  assert table.splitlines() == [
    "         accuracy  nll   other",
    "-------  --------  ---  ------",
    "teacher    0.9700    –  1.5000",
    "student    0.9000    –       –",
  ]


def test_the_example_is_true():
  assert doctest.testmod(report) == (0, 1)


def test_the_table_shows_chosen_columns_only():
  lines = format_table(RESULTS, columns=["nll"]).splitlines()
  assert lines[0].split() == ["nll"]
  assert lines[2].split() == ["teacher", "0.1200"]


def test_json_is_strict_and_holds_results_and_info(tmp_path):
  write(tmp_path, results=RESULTS | {"other": {"accuracy": float("nan")}})
  content = strict(tmp_path / "report.json")
  assert content["results"] == RESULTS | {"other": {"accuracy": None}}
  assert content["step"] == 400 and content["seconds"] == 61.5
  assert content["config"] == {"rate": None, "note": "<b>&", "shape": [2, 0.5]}


def test_the_page_is_whole_and_needs_no_other_file(tmp_path):
  text = write(tmp_path)
  page = Page(text)
  assert page.headings[0] == "A <title> & more"
  assert {"Accuracy", "Learning curves", "Calibration", "Details"} <= set(page.headings)
  assert len(page.sources) == 4
  assert all(source.startswith("data:image/png;base64,") for source in page.sources)
  assert "<b>" not in text and "http" not in text
  for value in ("0.9700", "0.9000", "0.1200", "1.235e+04"):
    assert value in page.cells


def test_the_best_value_of_a_column_is_marked(tmp_path):
  text = write(tmp_path)
  assert "<td class='best'>0.9700</td>" in text  # accuracy: higher
  assert "<td class='best'>0.1200</td>" in text  # nll: lower
  assert "<td>0.3300</td>" in text
  assert "<td>0.9300</td>" in text  # the only one of its column


def test_figures_are_files_too(tmp_path):
  write(tmp_path)
  names = {path.name for path in (tmp_path / "plots").iterdir()}
  assert names == {"accuracy.png", "curves.png", "agreement.png", "reliability.png"}
  for name in names:
    width, height = png_size(tmp_path / "plots" / name)
    assert 400 < width < 4000 and 150 < height < 4000


def test_missing_pieces_leave_their_section_out(tmp_path):
  write(tmp_path)
  text = write(tmp_path, curves={}, reliability={}, agreement={}, results={"a": {}}, info={})
  assert Page(text).headings == ["A <title> & more", "Details"]
  assert not list((tmp_path / "plots").iterdir())  # nor do figures of the run before stay
  assert strict(tmp_path / "report.json") == {"results": {"a": {}}}


def test_odd_values_do_not_stop_a_report(tmp_path):
  empty = {key: np.zeros(15) for key in BINS}
  write(
    tmp_path,
    title="",
    results={"a": {"accuracy": 0.0}, "b": {"accuracy": float("nan")}},
    curves={"a": {"train/loss": ([1, 2], [1.0, float("nan")]), "eval/ece": ([], [])}},
    reliability={"a": empty, "b": BINS},
    agreement={"a": {"agreement": 0.5, "matrix": None}, "b": {"agreement": 0.0}},
  )
  assert (tmp_path / "plots" / "agreement.png").exists()
  assert "<title>Report</title>" in (tmp_path / "report.html").read_text()


def test_curves_show_the_usual_metrics_first_and_no_more_than_six(monkeypatch):
  drawn = []
  monkeypatch.setattr(plots, "_png", lambda figure: drawn.append(figure) or b"")
  many = {f"train/loss/{i}": ([1], [1.0]) for i in range(9)}
  plots.learning_curves({"run": CURVES["student_distilled"] | many})
  titles = [axes.get_title(loc="left") for axes in drawn[0].axes]
  assert titles[:2] == ["train/loss", "eval/accuracy"]
  assert len(titles) == 6
  assert not {"eval/teacher/nll", "train/examples_per_second"} & set(titles)


def test_reliability_bars_are_the_accuracies(monkeypatch):
  drawn = []
  monkeypatch.setattr(plots, "_png", lambda figure: drawn.append(figure) or b"")
  plots.reliability_diagrams({"a": BINS})
  upper, lower = drawn[0].axes
  heights = [bar.get_height() for bar in upper.patches]
  np.testing.assert_allclose(heights, BINS["accuracy"][1:])  # the first bin is empty
  np.testing.assert_allclose([bar.get_height() for bar in lower.patches], np.arange(15) / 105)
  gaps = np.abs(BINS["confidence"] - BINS["accuracy"])
  error = np.sum(gaps * np.arange(15)) / 105
  assert upper.get_title(loc="left") == f"a, ECE {error:.3f}"


def test_a_row_has_one_colour_in_every_figure():
  with_teacher = plots._colours({"teacher": 0, "alone": 0, "distilled": 0})
  without = plots._colours({"alone": 0, "distilled": 0})
  assert without.items() <= with_teacher.items()
  assert len(set(with_teacher.values())) == 3


def comparison(**changed):
  variants = {"baseline": [0.80, 0.82, 0.84], "method": [0.83, 0.84, 0.88]}
  return {
    "metric": "accuracy",
    "higher_is_better": True,
    "title": "Twins",
    "names": {"baseline": "alone", "method": "distilled"},
    "seed_numbers": [5, 6, 7],
    "teacher": {"teacher": 0.95, "unknown": None},
    "variants": variants,
    **paired_comparison(*variants.values()),
  } | changed


def test_comparison_writes_table_figure_page_and_json(tmp_path):
  table = write_comparison(tmp_path, comparison())
  lines = table.splitlines()
  assert lines[1].split() == ["seed", "5", "seed", "6", "seed", "7", "mean", "std"]
  assert lines[3].split() == ["alone", "0.8000", "0.8200", "0.8400", "0.8200", "0.0200"]
  assert lines[4].split()[0] == "distilled"
  assert lines[5].split() == ["teacher", "–", "–", "–", "0.9500", "–"]
  content = strict(tmp_path / "comparison.json")
  assert content["verdict"] == lines[-1]
  assert "above the baseline by 0.03" in lines[-1]
  assert content["variants"] == comparison()["variants"]
  assert content["p_value"] == pytest.approx(0.0351, abs=1e-4)
  png_size(tmp_path / "comparison.png")
  page = Page((tmp_path / "comparison.html").read_text())
  assert page.headings[0] == "Twins" and len(page.sources) == 1


def test_comparison_of_one_seed(tmp_path):
  single = {"baseline": [0.5], "method": [0.75]}
  bare = {"metric": "nll", "higher_is_better": False, "variants": single}
  table = write_comparison(tmp_path, bare | paired_comparison([0.5], [0.75]))
  assert "worse: lower is better" in table and "one seed" in table
  assert strict(tmp_path / "comparison.json")["p_value"] is None


def test_files_are_replaced_whole(tmp_path):
  write(tmp_path)
  write_comparison(tmp_path, comparison())
  assert not list(tmp_path.rglob("*.tmp"))


def test_a_file_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / "plots").write_text("in the way")
  with pytest.raises(KdjaxError, match=r"plots/accuracy\.png cannot be written"):
    write(tmp_path)
