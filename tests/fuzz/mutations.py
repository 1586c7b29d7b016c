"""Damage to a file that readers of headers, numbers and JSON are likely to stumble over."""

from __future__ import annotations

from hypothesis import strategies as st

PIECES = (
  b"\x00" * 8, b"\xff" * 8, b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"[" * 3000, b'{"a":' * 2000,
  b"1e999", b"NaN", b"-1", b"9" * 5000, b'"\\ud800"', b"null", b"true", b"[]", b"{}", b'"', b"\n",
  b"../", b"\x80",
)  # fmt: skip

EDITS = st.lists(
  st.tuples(
    st.sampled_from(["put", "insert", "cut", "end", "repeat"]),
    st.floats(0, 1, exclude_max=True),
    st.floats(0, 1),
    st.one_of(st.sampled_from(PIECES), st.binary(min_size=1, max_size=9)),
  ),
  min_size=1,
  max_size=4,
)


def mutated(content: bytes, edits: list[tuple[str, float, float, bytes]]) -> bytes:
  """A file after some edits: (kind, where as a share of its length, how far, bytes)."""
  for kind, where, far, piece in edits:
    # Headers come first in most formats, so that half of the edits fall there.
    place = int(where * len(content)) if far > 0.5 else int(where * min(len(content), 200))
    stop = place + 1 + int(far * min(len(content), 64))
    if kind == "put":
      content = content[:place] + piece + content[place + len(piece) :]
    elif kind == "insert":
      content = content[:place] + piece + content[place:]
    elif kind == "cut":
      content = content[:place] + content[stop:]
    elif kind == "end":
      content = content[:place]
    else:
      content = content[:stop] + content[place:]
  return content
