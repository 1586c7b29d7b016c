"""The table of what came of the faults."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.faults.bench import ROUNDING, SAME, Found

BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"
HEAD = ("fault", "times", "how it ended", "examples lost or repeated", "finished checkpoints lost")
# What a fault's own remedy takes away is no loss.
BY_DESIGN = ("left out 1 step", "went back past")


def bad(found: Found) -> bool:
  """Whether a fault did not end as it should."""
  good = (SAME, ROUNDING, *BY_DESIGN, "not tried")
  told = any(each in found.outcome for each in good)
  wrong = any(each in found.outcome for each in ("unclear", "NOT", "fails", "failed"))
  lost = found.examples and not found.outcome.startswith(BY_DESIGN)
  return bool(not told or wrong or lost or found.checkpoints)


def format_table(results: Mapping[str, Sequence[Found]]) -> str:
  """Markdown: a row for each fault."""
  lines = [_row(HEAD), _row(["---"] * len(HEAD))]
  for name, found in results.items():
    outcomes = collections.Counter()
    for each in found:
      outcomes[each.outcome] += max(each.injected, 1)
    told = [text if len(outcomes) == 1 else f"{n} x {text}" for text, n in outcomes.most_common()]
    by_design = any(each.outcome.startswith(BY_DESIGN) for each in found)
    lost = sum(each.examples for each in found)
    lines.append(
      _row(
        [
          name,
          sum(each.injected for each in found),
          "; ".join(told) or "–",
          f"{lost} (as asked for)" if by_design else lost,
          sum(each.checkpoints for each in found),
        ]
      )
    )
  return "\n".join(lines)


def write_document(path: Path, text: str) -> None:
  """Puts text between the two marks of a document.

  Raises:
    ValueError: it has not both marks.
  """
  document = path.read_text()
  if BEGIN not in document or END not in document:
    raise ValueError(f"{path} must hold {BEGIN} and {END}; the table goes between them")
  before, rest = document.split(BEGIN, 1)
  path.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END, 1)[1]}")


def _row(cells) -> str:
  return f"| {' | '.join(map(str, cells))} |"
