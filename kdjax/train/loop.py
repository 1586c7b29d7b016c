"""The one training loop: runs any program, knows nothing about distillation."""

from __future__ import annotations

import functools
import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from kdjax.evaluation.classification import finalize
from kdjax.programs.base import Program, Start
from kdjax.train import metrics as metric_lib
from kdjax.train.checkpoint import Checkpoints
from kdjax.train.feed import Feed
from kdjax.train.memory import compile_ahead, jit_on
from kdjax.train.mesh import (
  STUDENT_RULES,
  TEACHER_RULES,
  Rules,
  batch_sharding,
  place,
  shardings,
)
from kdjax.train.timing import Profiler, Stopwatch

PyTree = Any
LOG = logging.getLogger("kdjax")


class Stream(Protocol):
  """Training batches without end, with a position that can be saved."""

  def __next__(self) -> PyTree: ...
  def get_state(self) -> Any: ...
  def set_state(self, state: Any) -> None: ...


class Data(NamedTuple):
  """What a run reads.

  Attributes:
    stream: training batches of this process's rows.
    evaluation: makes one pass over the evaluation data; padded batches with a `mask`.
    training_pass: makes one pass over what programs prepare on, without augmentation.
    adapt: `adapt(step, state, frozen)`, called before each batch is read: what the stream hands out
      may follow the training. Whatever it carries is part of the stream's state. None for nothing.
  """

  stream: Stream
  evaluation: Callable[[], Iterable[PyTree]]
  training_pass: Callable[[], Iterable[PyTree]]
  adapt: Callable[[int, Any, PyTree], None] | None = None


class Schedule(NamedTuple):
  """When things happen, in steps."""

  total_steps: int
  log_every: int = 20
  eval_every: int = 200
  save_every: int = 200


class Interrupted(Exception):
  """The job was asked to stop; what it has done is on disk."""

  def __init__(self, done: str):
    super().__init__(f"{done} and stopped; run the same command to go on")


class RunResult(NamedTuple):
  """What a finished run leaves.

  Attributes:
    state: the final state, on the mesh.
    evaluation: the final metrics; vectors (as reliability bins) are NumPy arrays.
    seconds: spent by this process, start-up included.
    steps_run: steps done by this process.
  """

  state: Any
  evaluation: dict[str, Any]
  seconds: float
  steps_run: int


class Compiled(NamedTuple):
  """A program's functions, jitted with explicit shardings."""

  init: Callable
  step: Callable
  evaluate: Callable
  prepare: Callable | None
  frozen: PyTree
  frozen_shardings: PyTree
  abstract_state: Any
  state_shardings: Any
  batch_sharding: Any


def compile_program(
  program: Program,
  mesh: Mesh,
  batch: PyTree,
  *,
  rules: Rules = TEACHER_RULES,
  own_rules: Rules = STUDENT_RULES,
  moment_rules: Rules | None = None,
) -> Compiled:
  """Lays a program out on a mesh.

  Args:
    program: any.
    mesh: where to run it.
    batch: a global training batch, or its shapes.
    rules: logical axis to mesh axis for what is frozen.
    own_rules: the same for the state.
    moment_rules: the same for the optimiser's part of it; `own_rules` where None. Split along more
      axes than the weights, moments are updated slice by slice and the weights gathered after
      (ZeRO-1 and 2).

  Returns:
    Its functions. `step` donates the state; `init` takes a key and what to start from (see
    `Program`). Nothing is compiled before its first call, and then once.
  """
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)

  def init(rng, start=None):
    return program.init(rng, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), start)

  abstract = jax.eval_shape(init, jax.random.key(0))
  axes = program.axes(abstract)
  state_sh = shardings(abstract, axes, own_rules, mesh)
  if moment_rules is not None and hasattr(abstract, "opt_state"):
    moments = shardings(abstract.opt_state, axes.opt_state, moment_rules, mesh)
    state_sh = state_sh._replace(opt_state=moments)
  frozen_sh = shardings(program.frozen, program.frozen_axes, rules, mesh)
  batch_sh = batch_sharding(mesh)
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  reads = (state_sh, frozen_sh, batch_sh)

  jit = functools.partial(jit_on, mesh)
  prepare = None
  if program.prepare is not None:
    prepare = jit(program.prepare, in_shardings=reads, out_shardings=state_sh, donate_argnums=0)
  return Compiled(
    init=jit(init, out_shardings=state_sh, donate_argnums=1),
    step=jit(program.step, in_shardings=reads, out_shardings=(state_sh, whole), donate_argnums=0),
    evaluate=jit(program.evaluate, in_shardings=reads, out_shardings=whole),
    prepare=prepare,
    frozen=program.frozen,
    frozen_shardings=frozen_sh,
    abstract_state=abstract,
    state_shardings=state_sh,
    batch_sharding=batch_sh,
  )


def evaluate(
  compiled: Compiled, state: Any, feed: Feed, batches: Iterable[PyTree]
) -> dict[str, Any]:
  """One pass over evaluation batches; returns finished metrics."""
  return summarize(
    compiled.evaluate(state, compiled.frozen, feed.held_out(batch)) for batch in batches
  )


def summarize(every: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
  """Adds up the (sum, count) pairs of all batches and divides once."""
  total: dict[str, Any] = {}
  for pairs in every:
    metric_lib.add(total, jax.device_get(pairs))
  return finalize(total)


def run(
  program: Program,
  data: Data,
  mesh: Mesh,
  schedule: Schedule,
  checkpoints: Checkpoints,
  *,
  workdir: Path,
  seed: int,
  meta: Mapping[str, Any],
  matches: Callable[[Mapping[str, Any]], None],
  rules: Rules = TEACHER_RULES,
  own_rules: Rules = STUDENT_RULES,
  moment_rules: Rules | None = None,
  other: Mesh | None = None,
  start: Callable[[], Start | None] = lambda: None,
  name: str = "train",
  stop: Callable[[], bool] = lambda: False,
  skip: int = 0,
  profile: range = range(0),
) -> RunResult:
  """Trains to `schedule.total_steps`, from the newest checkpoint if there is one.

  Args:
    program: what to train.
    data: batches.
    mesh: devices.
    schedule: how long, and how often to log, evaluate and save.
    checkpoints: where to; the last step is always saved.
    workdir: for `metrics.jsonl` and TensorBoard events.
    seed: of the initial state.
    meta: JSON stored with every checkpoint.
    matches: raises KdjaxError for the meta of a checkpoint of another run.
    rules: where the program's frozen arrays lie (see `compile_program`).
    own_rules: where its state lies.
    moment_rules: where the optimiser's part of it lies.
    other: where what the program has computed apart from its step runs.
    start: gives what a new run starts from, on the mesh; None for random.
    name: shown on the progress bar.
    stop: asked after every step; True saves and raises Interrupted.
    skip: batches to leave out before the first step.
    profile: steps, counted from 1, of which WORKDIR/profile gets a trace.

  Returns:
    The final state and its evaluation.

  Raises:
    NonFinite: a loss that is not finite.
    KdjaxError: a failed save, a checkpoint that does not fit.
    Interrupted: when asked to stop, with a checkpoint of the last finished step on disk.
  """
  started = time.monotonic()
  position = data.stream.get_state()
  first = next(data.stream)
  data.stream.set_state(position)
  feed = Feed(program, mesh, other, rules)
  batch_shape = feed.shapes(jax.eval_shape(lambda b: b, place(first, batch_sharding(mesh))))
  compiled = compile_program(
    program, mesh, batch_shape, rules=rules, own_rules=own_rules, moment_rules=moment_rules
  )
  compiled = compiled._replace(frozen=jax.device_put(program.frozen, compiled.frozen_shardings))

  restored = checkpoints.restore(
    compiled.abstract_state._asdict(), compiled.state_shardings._asdict(), matches=matches
  )
  start_weights = start() if restored is None else None
  if restored is None:
    step, state = 0, compiled.init(jax.random.key(seed), start_weights)
    if compiled.prepare is not None:
      for batch in data.training_pass():
        state = compiled.prepare(state, compiled.frozen, feed.train(batch))
  else:
    step, state = restored.step, type(compiled.abstract_state)(**restored.items)
    data.stream.set_state(restored.meta["data"])
    LOG.info("%s: resumed at step %d of %d", name, step, schedule.total_steps)
  for _ in range(skip):
    next(data.stream)
  log = metric_lib.MetricLog(workdir, resume_step=step, write=jax.process_index() == 0)
  first_step = step
  latest: dict[str, Any] = {}
  if restored is None and start_weights is not None:  # what they are worth before any training
    log.write(0, "eval", _scalars(evaluate(compiled, state, feed, data.evaluation())))
  with _progress(schedule, step, name) as bar:
    watch, profiler = Stopwatch(), Profiler(profile, workdir)
    window = _Window(schedule, log, bar, batch_shape, restored and restored.meta["window"], watch)
    while step < schedule.total_steps:
      if data.adapt is not None:
        data.adapt(step, state, compiled.frozen)
      with watch.on("data"):
        batch = feed.train(next(data.stream))
      if step == first_step:
        compile_ahead(compiled.step, state, compiled.frozen, batch)
      profiler.before(step + 1)
      state, pairs = compiled.step(state, compiled.frozen, batch)
      feed.stepped(pairs)
      step += 1
      profiler.after(step, pairs)
      bar.update()
      window.push(step, pairs)
      checkpoints.check()
      last = step == schedule.total_steps
      stopping = stop()
      due = {"eval": step % schedule.eval_every == 0, "save": step % schedule.save_every == 0}
      evaluation = None
      if due["eval"] or last:
        window.flush()
        with watch.on("eval"):
          evaluation = latest = evaluate(compiled, state, feed, data.evaluation())
        log.write(step, "eval", _scalars(evaluation))
      if due["save"] or last or stopping:
        window.flush()  # a state that came with a non-finite loss is never saved
        position = {"step": step, "data": data.stream.get_state(), "window": window.state()}
        saved = dict(meta) | position
        with watch.on("save"):
          checkpoints.save(step, state, saved, evaluation and _scalars(evaluation))
      if stopping and not last:
        checkpoints.wait()
        log.close()
        profiler.close()
        raise Interrupted(f"saved step {step} to {checkpoints.folder}")
  checkpoints.wait()
  log.close()
  if not latest:  # already finished before this process started
    latest = evaluate(compiled, state, feed, data.evaluation())
  return RunResult(state, latest, time.monotonic() - started, step - first_step)


class _Window:
  """Metrics of the steps since the last row, fetched a step late so that no step waits for them."""

  def __init__(self, schedule: Schedule, log, bar: tqdm, batch_shape: PyTree, state: Any, watch):
    self._schedule, self._log, self._bar, self._watch = schedule, log, bar, watch
    self._rows = jax.tree.leaves(batch_shape)[0].shape[0]
    tokens = batch_shape.get("tokens")
    self._tokens = 0 if tokens is None else tokens.size
    self._pending: list[tuple[int, Any]] = []
    self._total: dict[str, Any] = dict(state or {})
    self._last = bar.n

  def push(self, step: int, pairs: Any) -> None:
    self._pending.append((step, pairs))
    if (step - 1) % self._schedule.log_every == 0 and len(self._pending) > 1:
      self._fetch(self._pending[:-1])
      self._pending = self._pending[-1:]

  def flush(self) -> None:
    """Waits for every step so far."""
    self._fetch(self._pending)
    self._pending = []

  def state(self) -> dict[str, list[float]]:
    """What the next row has gathered so far, as JSON; after `flush`."""
    scalars = {name: pair for name, pair in self._total.items() if np.ndim(pair[0]) == 0}
    return {name: [float(num), float(den)] for name, (num, den) in scalars.items()}

  def _fetch(self, pending: list[tuple[int, Any]]) -> None:
    for step, pairs in zip(
      [s for s, _ in pending], jax.device_get([p for _, p in pending]), strict=True
    ):
      metric_lib.check_finite(step, pairs)
      metric_lib.add(self._total, pairs)
      if step % self._schedule.log_every == 0 or step == self._schedule.total_steps:
        self._row(step)

  def _row(self, step: int) -> None:
    values = metric_lib.divide(self._total)
    self._total = {}
    steps, self._last = step - self._last, step
    seconds, split = self._watch.lap(steps)
    rate = steps * self._rows / seconds
    speed, shown = {"examples_per_second": rate}, {"ex/s": f"{rate:,.0f}"}
    if self._tokens:
      rate *= self._tokens / self._rows
      speed, shown = speed | {"tokens_per_second": rate}, {"tok/s": f"{rate:,.0f}"}
    self._log.write(step, "train", values | speed | split)
    # A row of skipped steps has no loss.
    loss = {"loss": f"{values['loss']:.4f}"} if "loss" in values else {}
    self._bar.set_postfix(loss | shown, refresh=False)


def _scalars(values: Mapping[str, Any]) -> dict[str, float]:
  return {name: value for name, value in values.items() if isinstance(value, float)}


def _progress(schedule: Schedule, step: int, name: str) -> tqdm:
  # A terminal sees a moving bar; a log file a line now and then.
  slow = not sys.stderr.isatty()
  return tqdm(
    total=schedule.total_steps,
    initial=step,
    desc=name,
    unit="step",
    mininterval=10 if slow else 0.2,
    ascii=slow or None,
    disable=jax.process_index() != 0,
  )
