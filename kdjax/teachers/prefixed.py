"""A teacher that reads keys of its own, as its tokens of the student's text."""

from __future__ import annotations

from kdjax.errors import KdjaxError
from kdjax.teachers.base import Teacher


def prefixed(teacher: Teacher, prefix: str = "teacher_") -> Teacher:
  """The teacher, reading `teacher_tokens` of a batch where it would read `tokens`, and so on.

  Args:
    teacher: any that is asked about batches.
    prefix: in front of its keys; it sees no others.

  Returns:
    A teacher that raises KdjaxError, when traced, for a batch without such keys.
  """

  def apply(frozen, state, batch, *, taps):
    own = {
      key.removeprefix(prefix): value for key, value in batch.items() if key.startswith(prefix)
    }
    if not own:
      raise KdjaxError(
        f"the batch has no key {prefix}..., which the teacher reads; its source must hold the text"
        " in the teacher's tokens too (config.data.teacher_tokenizer)"
      )
    return teacher.apply(frozen, state, own, taps=taps)

  return teacher._replace(apply=apply)
