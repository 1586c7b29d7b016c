"""A teacher on its mesh, and the rows that it is to be asked about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from kdjax.errors import KdjaxError
from kdjax.models.base import Batch
from kdjax.signals import Spec, codec
from kdjax.signals.draws import draw_words
from kdjax.signals.manifest import KINDS
from kdjax.teachers import Teacher
from kdjax.train.checkpoint import fingerprint
from kdjax.train.config import Config, check_config
from kdjax.train.mesh import (
  TEACHER_RULES,
  Rules,
  batch_sharding,
  check_batch,
  data_shard,
  make_mesh,
  place,
  shardings,
  teacher_rules,
)
from kdjax.train.pretrained import build_teacher
from kdjax.train.signal_rows import SignalRows, signal_rows
from kdjax.train.streams import augmentation, load_data
from kdjax.train.vocabulary import check_teacher

SHARD = 65_536
HIDDEN = frozenset({"hidden", "head"})


class CacheOptions(NamedTuple):
  """What is to be stored.

  Attributes:
    kind: "sampled", "top_k" or "hidden".
    num_samples: draws a position, for sampled.
    k: classes a position, for top_k. At a vocabulary of 151,936, 45 fit into 127 bytes.
    temperature: of the stored distribution.
    dtype: of hidden states.
    seed: of draws and augmentation.
    versions: of each image, where they are augmented.
    rows_per_shard: of the data in one file; what a kill can cost. 0 for those of 65,536 positions,
      or 16,384 images.
  """

  kind: str = "sampled"
  num_samples: int = 50
  k: int = 45
  temperature: float = 1.0
  dtype: str = "bfloat16"
  seed: int = 0
  versions: int = 1
  rows_per_shard: int = 0


class Session(NamedTuple):
  """A teacher on its mesh and the rows that it is asked about.

  Attributes:
    teacher: any that does not follow the student.
    source: its rows.
    spec: of the cache.
    frozen: the teacher's arrays, placed.
    sharding: of batches.
    batch_size: rows of a global batch.
    share: (index, count) of this process's rows of each batch.
  """

  teacher: Teacher
  source: SignalRows
  spec: Spec
  frozen: Any
  sharding: Any
  batch_size: int
  share: tuple[int, int]

  def place(self, rows: Sequence[int]) -> tuple[Batch, Any]:
    """This process's part of a global batch, filled up with copies of its first row.

    Returns:
      (batch, two words for each position, see `draw_words`), both placed.
    """
    own = self.batch_size // self.share[1]
    batch = self.source.rows.read(np.array([*rows, *[rows[0]] * (own - len(rows))]))
    words = np.zeros((own, self.source.length or 1, 2), np.uint32)
    if self.spec.kind == "sampled":
      for place_of, row in enumerate(rows):
        for key, start, stop in self.source.rows.spans(row):
          words[place_of, start:stop] = draw_words(self.spec.seed, key, stop - start)
    if self.source.length is None:
      words = words[:, 0]
    return place(batch, self.sharding), place(words, self.sharding)


def open_session(config: Config, options: CacheOptions) -> Session:
  """The teacher and the data of a config, ready to be asked.

  Args:
    config: a plain mapping; its `data`, `teacher`, `mesh` and `eval.batch_size`.
    options: what to store.

  Raises:
    KdjaxError: a mistake in either.
  """
  check_config(config)
  _check_options(config, options)
  splits = load_data(config["data"])
  source = signal_rows(
    config,
    splits.train,
    augmentation(config["data"].get("augment", ())),
    seed=options.seed,
    versions=options.versions,
  )
  mesh = make_mesh(**config["mesh"])
  batch_size = config["eval"]["batch_size"]
  check_batch(batch_size, mesh, field="config.eval.batch_size")
  check_teacher(config, splits.whole)
  teacher = build_teacher(config, splits.whole)
  rules = teacher_rules(config["teacher"]["rules"])
  return session_of(teacher, source, options, mesh, batch_size, splits.whole.name, rules)


def session_of(
  teacher: Teacher,
  source: SignalRows,
  options: CacheOptions,
  mesh: Mesh,
  batch_size: int,
  name: str,
  rules: Rules = TEACHER_RULES,
) -> Session:
  """The same from code: a teacher and rows, on a mesh; `name` is that of the data."""
  frozen = jax.device_put(teacher.frozen, shardings(teacher.frozen, teacher.axes, rules, mesh))
  sharding = batch_sharding(mesh)
  session = Session(
    teacher,
    source,
    None,
    frozen,
    sharding,
    batch_size,
    data_shard(sharding, batch_size),
  )
  return session._replace(spec=_spec(session, options, name))


def _spec(session: Session, options: CacheOptions, name: str) -> Spec:
  teacher, source = session.teacher, session.source
  kind = options.kind
  softcap, support = None, {"sampled": options.num_samples, "top_k": options.k}.get(kind)
  if kind == "hidden":
    if not teacher.taps >= HIDDEN:
      raise KdjaxError(
        f"--kind=hidden needs a teacher with the taps 'hidden' and 'head'; config.teacher gives"
        f" {sorted(teacher.taps)}. Use --kind=sampled or --kind=top_k"
      )
    example = source.rows.read(np.zeros(1, np.int64))
    out = jax.eval_shape(
      lambda frozen, batch: teacher.apply(frozen, (), batch, taps=HIDDEN), teacher.frozen, example
    )
    support, softcap = out.hidden.shape[-1], out.head.softcap
  if kind == "top_k" and options.k > teacher.num_classes:
    raise KdjaxError(f"--k is {options.k}; the teacher has {teacher.num_classes} classes")
  return Spec(
    kind=kind,
    vocab=teacher.num_classes,
    support=support,
    temperature=None if kind == "hidden" else options.temperature,
    dtype=options.dtype if kind == "hidden" else None,
    softcap=softcap,
    seed=options.seed if kind == "sampled" else None,
    teacher=fingerprint(teacher.frozen),
    tokenizer=source.tokenizer,
    source=name,
    data=source.data,
    rows=len(source.rows),
    rows_per_shard=options.rows_per_shard or max(1, SHARD // (source.length or 4)),
  )


def _check_options(config: Config, options: CacheOptions) -> None:
  spec = config["teacher"]
  if not spec or spec["kind"] != "frozen":
    kind = spec and spec["kind"]
    raise KdjaxError(f"config.teacher.kind = {kind!r} cannot be cached; 'frozen' is wanted")
  if options.kind not in KINDS:
    raise KdjaxError(f"--kind is {options.kind!r}; it must be one of {', '.join(KINDS)}")
  if options.dtype not in codec.HIDDEN_DTYPES:
    raise KdjaxError(
      f"--dtype is {options.dtype!r}; it must be one of {', '.join(codec.HIDDEN_DTYPES)}"
    )
  for name, least in {"num_samples": 1, "k": 1, "versions": 1, "rows_per_shard": 0}.items():
    if getattr(options, name) < least:
      raise KdjaxError(f"--{name} is {getattr(options, name)}; it must be at least {least}")
  if not options.temperature > 0:
    raise KdjaxError(f"--temperature is {options.temperature}; it must be > 0")
  if options.seed < 0:
    raise KdjaxError(f"--seed is {options.seed}; it must be at least 0")
