"""JSON that may come from elsewhere."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
  """What a JSON text says; ValueError for one that says nothing, or is nested beyond reason."""
  try:
    return json.loads(text)
  except RecursionError:
    raise ValueError("it is nested too deeply") from None
