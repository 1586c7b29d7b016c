"""Rows that hold the same documents twice: in the student's tokens and in the teacher's."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, NamedTuple

import numpy as np

from kdjax.data.base import Example
from kdjax.data.text.alignment import align
from kdjax.data.text.examples import Examples, learnable
from kdjax.data.text.mixture import Mixture
from kdjax.data.text.packing import PackedRows, before_in_row, runs
from kdjax.data.text.plan import Plan, plan_packed, plan_single
from kdjax.data.text.split import Chosen
from kdjax.data.text.tokenized import Tokenized
from kdjax.data.text.warping import one_to_one
from kdjax.errors import KdjaxError

LOG = logging.getLogger("kdjax")
TEACHER_KEYS = ("tokens", "label", "mask", "segment_ids", "positions")
PREFIX = "teacher_"


class PairedExamples(NamedTuple):
  """Examples by number, each in the tokens of both sides; see `Examples`.

  Attributes:
    start: int64 [E], in the student's tokens.
    length: int32 [E].
    domain: int32 [E].
    teacher_start: int64 [E], in the teacher's tokens.
    teacher_length: int32 [E].
    groups: int64 [E], how many groups of tokens its labels are.
  """

  start: np.ndarray
  length: np.ndarray
  domain: np.ndarray
  teacher_start: np.ndarray
  teacher_length: np.ndarray
  groups: np.ndarray


class Pair(NamedTuple):
  """A domain's tokens of both sides, and to which group each of them belongs.

  Attributes:
    student: its tokens.
    teacher: the same documents in the teacher's.
    student_groups: int64 [tokens of the student].
    teacher_groups: int64 [tokens of the teacher].
    scored: bool [groups], whether the two sides can be compared on a group.
  """

  student: Tokenized
  teacher: Tokenized
  student_groups: np.ndarray
  teacher_groups: np.ndarray
  scored: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PairedRows:
  """A `Source` of rows of both tokenizations.

  A row has the keys of `PackedRows` in the student's tokens, `teacher_tokens`, `teacher_label`,
  `teacher_mask`, `teacher_segment_ids` and `teacher_positions` in the teacher's, whose segments are
  the same examples under the same numbers, and `group_ids` int32 [T] and `teacher_group_ids` int32
  [T_teacher]: labels of one number spell the same bytes. They count from 0 in each row, and are -1
  where there is nothing to compare: at padding, in the group that begins a document, whose first
  token nothing predicts, and in groups with a label that is not to be learnt.

  Attributes:
    student: the rows in the student's tokens.
    teacher: the same in the teacher's.
    student_groups: for each domain, the group of each token in its example, -1 for none.
    teacher_groups: the same of the teacher's tokens.
    groups: how many each example has.
    pieces: how each side's tokens are spelled, by id; with them rows have `teacher_place` int32
      [T], the teacher's position whose label is the student's, step for step (see `warping`); -1
      for none. It is worked out when rows are read.
  """

  student: PackedRows
  teacher: PackedRows
  student_groups: tuple[np.ndarray, ...]
  teacher_groups: tuple[np.ndarray, ...]
  groups: np.ndarray
  pieces: tuple[tuple[str, ...], tuple[str, ...]] | None = None

  @property
  def labels(self) -> np.ndarray:
    return self.student.labels

  @property
  def mixture(self) -> Mixture | None:
    return self.student.mixture

  def __len__(self) -> int:
    return len(self.student)

  def __getitem__(self, position: int) -> Example:
    return {key: values[0] for key, values in self.read(np.array([position])).items()}

  def read(self, positions: np.ndarray) -> Example:
    positions = np.asarray(positions, np.int64)
    batch, told = self.student.read(positions), self.teacher.read(positions)
    batch |= {PREFIX + key: told[key] for key in TEACHER_KEYS}
    batch["group_ids"] = self._groups(self.student, self.student_groups, positions)
    batch[PREFIX + "group_ids"] = self._groups(self.teacher, self.teacher_groups, positions)
    if self.pieces is not None:
      batch[PREFIX + "place"] = self._places(positions)
    return batch

  def _places(self, positions: np.ndarray) -> np.ndarray:
    layouts = [rows.layout(positions) for rows in (self.student, self.teacher)]
    spelled, at = [], []
    for rows, layout, pieces in zip(
      (self.student, self.teacher), layouts, self.pieces, strict=True
    ):
      labels = np.empty(len(layout.read), np.int64)
      for domain in np.unique(layout.domain):
        own = layout.domain == domain
        labels[own] = rows.texts[domain].tokens[layout.read[own] + 1]
      cuts = np.cumsum(layout.lengths)[:-1]
      spelled.append([[pieces[i] for i in each] for each in np.split(labels, cuts)])
      at.append(np.split(layout.place % rows.sequence_length, cuts))
    places = []
    for student, teacher, theirs in zip(*spelled, at[1], strict=True):
      found = one_to_one(teacher, student)
      places.append(np.where(found < 0, -1, theirs[found]))
    return layouts[0].rows(np.concatenate(places).astype(np.int32), -1)

  def _groups(
    self, rows: PackedRows, groups: tuple[np.ndarray, ...], positions: np.ndarray
  ) -> np.ndarray:
    layout = rows.layout(positions)
    before = before_in_row(self.groups[layout.example], layout.counts)
    own = np.empty(len(layout.read), np.int64)
    for domain in np.unique(layout.domain):
      here = layout.domain == domain
      own[here] = groups[domain][layout.read[here] + 1]  # of the label
    ids = np.where(own < 0, -1, own + np.repeat(before, layout.lengths))
    return layout.rows(ids.astype(np.int32), -1)


def paired(student: Tokenized, teacher: Tokenized) -> Pair:
  """Aligns two tokenizations, with `ends`, of the same documents.

  Raises:
    KdjaxError: a document of which a tokenizer makes nothing.
  """
  for own in (student, teacher):
    if (np.diff(own.offsets) == 0).any():
      raise KdjaxError(
        "a document has no token at all in one of tokenizer and teacher_tokenizer; leave it out, or"
        " use a tokenizer with a token for what is unknown"
      )
  sides = []
  for own in (student, teacher):
    sides += [np.array(own.ends, np.int64), np.array(own.offsets)]
  groups = align(*sides)
  scored = np.ones(groups.count, bool)
  last = []
  for own, of_tokens in ((student, groups.student), (teacher, groups.teacher)):
    offsets = np.array(own.offsets)
    scored[of_tokens[offsets[:-1]]] = False
    last.append(np.array(own.ends)[offsets[1:] - 1])
    if own.weights is not None:
      scored[of_tokens[np.array(own.weights) == 0]] = False
  # Where only one side has a token for the end of a text, they do not say the same there.
  scored[groups.student[np.array(student.offsets)[1:] - 1][last[0] != last[1]]] = False
  return Pair(student, teacher, groups.student, groups.teacher, scored)


def cut_pairs(
  pair: Pair, chosen: Chosen, domain: int, sequence_length: int, teacher_length: int
) -> PairedExamples:
  """Documents cut between groups, into examples that fit both lengths; see `examples.cut`.

  A group that is longer than a row is left out, and the document goes on behind it.
  """
  offsets = np.array(pair.student.offsets), np.array(pair.teacher.offsets)
  every = np.arange(len(pair.scored))
  own_groups = pair.student_groups, pair.teacher_groups
  closes = [np.searchsorted(groups, every, side="right") for groups in own_groups]
  rooms = sequence_length, teacher_length
  out: list[tuple[int, int, int, int, int]] = []
  skipped = 0
  for document in np.searchsorted(offsets[0][:-1], chosen.start).tolist():
    group = int(own_groups[0][offsets[0][document]])
    stop = int(own_groups[0][offsets[0][document + 1] - 1]) + 1
    label = [int(own[document]) + 1 for own in offsets]  # the next one of each side
    while group < stop:
      fits = [
        int(np.searchsorted(own[group:stop], at + room, side="right"))
        for own, at, room in zip(closes, label, rooms, strict=True)
      ]
      end = group + max(min(fits), 1)
      lengths = [int(own[end - 1]) - at for own, at in zip(closes, label, strict=True)]
      if not min(fits):
        skipped += 1
      elif min(lengths):
        out.append((label[0] - 1, lengths[0], label[1] - 1, lengths[1], end - group))
      label, group = [int(own[end - 1]) for own in closes], end
  if skipped:
    LOG.info("%d groups of tokens are longer than a row and are left out", skipped)
  columns = np.array(out, np.int64).reshape(-1, 5).T
  return PairedExamples(
    columns[0],
    columns[1].astype(np.int32),
    np.full(len(out), domain, np.int32),
    columns[2],
    columns[3].astype(np.int32),
    columns[4],
  )


def pair_rows(
  pairs: list[Pair],
  chosen: list[Chosen],
  pack: str,
  seed: int,
  *,
  student: dict[str, Any],
  teacher: dict[str, Any],
) -> PairedRows:
  """Rows of examples that fit both sides.

  Args:
    pairs: of each domain.
    chosen: its documents.
    pack: "pack" or "none", see `kdjax.data.text`.
    seed: of the packing.
    student: fields of `PackedRows` for the student's side, without texts and plan.
    teacher: for the teacher's.
  """
  rooms = student["sequence_length"], teacher["sequence_length"]
  parts = []
  for domain, (pair, own) in enumerate(zip(pairs, chosen, strict=True)):
    examples = cut_pairs(pair, own, domain, *rooms)
    kept = learnable(Examples(*examples[:3]), pair.student.weights)
    parts.append(PairedExamples(*(array[kept] for array in examples)))
  if pack == "pack":
    # What is within its share of both sides' rows is so in sum.
    sizes = [
      np.maximum(p.length.astype(np.int64) * rooms[1], p.teacher_length.astype(np.int64) * rooms[0])
      for p in parts
    ]
    plan = plan_packed(parts, rooms[0] * rooms[1], seed, sizes)
  else:
    plan = plan_single(parts)
  every = plan.examples
  theirs = Examples(every.teacher_start, every.teacher_length, every.domain)
  return PairedRows(
    PackedRows(
      texts=tuple(pair.student for pair in pairs),
      plan=Plan(Examples(*every[:3]), plan.first, plan.domain),
      **student,
    ),
    PackedRows(
      texts=tuple(pair.teacher for pair in pairs),
      plan=Plan(theirs, plan.first, plan.domain),
      **teacher,
    ),
    _within(every.start, every.length, every, pairs, "student"),
    _within(every.teacher_start, every.teacher_length, every, pairs, "teacher"),
    every.groups,
  )


def _within(
  starts: np.ndarray, lengths: np.ndarray, every: PairedExamples, pairs: list[Pair], side: str
) -> tuple[np.ndarray, ...]:
  """For each domain, the place of each label's group in its example, int32, -1 for none."""
  out = []
  for domain, pair in enumerate(pairs):
    own = every.domain == domain
    groups = pair.student_groups if side == "student" else pair.teacher_groups
    places, _ = runs(starts[own] + 1, lengths[own].astype(np.int64))
    # An example ends with a group, so that its first one is so many before.
    last = groups[starts[own] + lengths[own]]
    first = np.repeat(last - every.groups[own] + 1, lengths[own])
    ids = np.full(len(groups), -1, np.int32)
    ids[places] = np.where(pair.scored[groups[places]], groups[places] - first, -1)
    out.append(ids)
  return tuple(out)
