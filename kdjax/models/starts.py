"""Students that start from others' weights: pruned, sharing attention, embeddings alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from kdjax.errors import KdjaxError
from kdjax.models.adapters import quantize_params
from kdjax.models.base import Batch, Model, ModelVars
from kdjax.models.convert import Checkpoint, load_weights
from kdjax.models.convert.mapping import entries_of
from kdjax.models.importance import Importance, importance
from kdjax.models.prune import prune, select
from kdjax.models.transformer import Seq2SeqSpec, Spec, language_model
from kdjax.models.transformer.sharing import share
from kdjax.outputs import Head

PyTree = Any
Calibration = Callable[[int], Batch]
ROWS = 8  # of calibration text that are measured at a time


class Parent(NamedTuple):
  """A checkpoint to start from, and the text on which to see what matters in it.

  Attributes:
    checkpoint: where its weights are.
    spec: of it.
    calibration: `calibration(rows)` reads so many rows of tokens; None where there is no text.
    rows: how many to read.
    dtype: compute dtype of the measurement.
  """

  checkpoint: Checkpoint
  spec: Spec | Seq2SeqSpec
  calibration: Calibration | None
  rows: int
  dtype: str

  def measure(self, params: PyTree) -> Importance:
    batch = self.calibration(self.rows)
    parts = range(0, len(batch["tokens"]), ROWS)
    batches = ({key: values[i : i + ROWS] for key, values in batch.items()} for i in parts)
    return importance(self.spec, params, batches, dtype=self.dtype)

  def check(self) -> None:
    """Raises KdjaxError where importance cannot be measured."""
    if self.calibration is None:
      raise KdjaxError(
        "what to leave out is chosen by its importance on training text, and there is none; take"
        " config.data of text (outside a config: the argument calibration)"
      )
    if self.rows < 1:
      raise KdjaxError(f"calibration_rows = {self.rows} must be at least 1")


def with_pruned(model: Model, parent: Parent, *, layers: Sequence[int] | None) -> Model:
  """The model, started from the parts of a larger one that matter most.

  Args:
    model: of a spec that `narrow` and `keep_layers` give.
    parent: the larger one. Its weights lie beside the model's own while these are cut out.
    layers: which to keep; the most important ones where None.

  Raises:
    KdjaxError: no text to measure importance on.
  """
  parent.check()
  spec, child = parent.spec, model.spec

  def start(shardings: ModelVars | None = None, dtype: Any = None) -> ModelVars:
    larger = language_model(spec)
    placed = None if shardings is None else _for_larger(shardings, larger)
    rounded = dtype == "int8"
    read = None if rounded else dtype
    weights = load_weights(parent.checkpoint, larger, shardings=placed, dtype=read)

    def cut(params: PyTree, found: Importance) -> PyTree:
      return prune(params, spec, child, select(found, spec, child, layers=layers))

    cut = jax.jit(cut, out_shardings=None if shardings is None else shardings.params)
    params = cut(weights.params, parent.measure(weights.params))
    return weights._replace(params=quantize_params(params) if rounded else params)

  return model._replace(start=start)


def _for_larger(shardings: ModelVars, larger: Model) -> ModelVars:
  """Where a larger model's weights lie: as the smaller's, whole along axes that do not divide."""

  def one(leaf: jax.ShapeDtypeStruct, placed: NamedSharding) -> NamedSharding:
    def divides(size: int, axes: Any) -> bool:
      axes = (axes,) if isinstance(axes, str) else axes or ()
      return size % math.prod(placed.mesh.shape[axis] for axis in axes) == 0

    pairs = zip(leaf.shape, placed.spec, strict=False)
    return NamedSharding(
      placed.mesh, PartitionSpec(*(axes if divides(size, axes) else None for size, axes in pairs))
    )

  return jax.tree.map(one, jax.eval_shape(larger.init, jax.random.key(0)), shardings)


def with_shared_attention(model: Model, whole: Model) -> Model:
  """The model, started from the weights of one whose layers all compute attention.

  Args:
    model: of the same spec but for its `attention_from`.
    whole: the other, with a `start`. Both models' weights are held while these are taken out.
  """

  def start(shardings: ModelVars | None = None, dtype: Any = None) -> ModelVars:
    if dtype == "int8":
      raise KdjaxError("weights in int8 cannot be shared out; take config.teacher.dtype = None")
    placed = None
    if shardings is not None:
      stack = {k: part for k, part in shardings.params["stack"].items() if k != "copies"}
      placed = _for_larger(ModelVars({**shardings.params, "stack": stack}, shardings.state), whole)
    weights = whole.start(placed, dtype)
    return weights._replace(params=_shared(model, weights.params, shardings))

  return model._replace(start=start)


def inheriting(model: Model, teacher: Any) -> Model:
  """A model with `inherit`, started from a teacher's weights.

  Args:
    model: the student.
    teacher: `ModelVars` of a single frozen model, concrete or abstract.

  Raises:
    KdjaxError: no such weights, or weights of another architecture.
  """
  if not isinstance(teacher, ModelVars):
    raise KdjaxError(
      "config.student.inherit = True starts from the weights of config.teacher, which is none of"
      " one frozen model; set it to False, or use a single teacher of kind 'frozen'"
    )
  own = jax.eval_shape(model.init, jax.random.key(0))
  try:
    shapes = jax.eval_shape(model.inherit, teacher.params)
    fits = jax.tree.map(lambda a: a.shape, shapes) == jax.tree.map(lambda a: a.shape, own.params)
  except (KeyError, TypeError, AttributeError):
    fits = False
  if not fits:
    raise KdjaxError(
      "config.student.inherit = True wants config.teacher.model of the same sizes as config.student"
      " and not in int8; make them equal but for attention_from, or set inherit = False"
    )

  def start(shardings: ModelVars | None = None, dtype: Any = None) -> ModelVars:
    params = _shared(model, teacher.params, shardings)
    return ModelVars(params, teacher.state)

  return model._replace(start=start)


def adopting(model: Model, head_of: Callable[[Any], Head], teacher: Any) -> Model:
  """A model with `adopt`, started with what it takes over of a teacher's head.

  Args:
    model: the student.
    head_of: the head, from the teacher's weights; it is computed once.
    teacher: those weights, concrete or abstract.

  Raises:
    KdjaxError: a head of another size.
  """
  own = jax.eval_shape(model.init, jax.random.key(0)).params

  def adopt(weights: Any) -> PyTree:
    return model.adopt(head_of(weights))

  for name, found in jax.eval_shape(adopt, teacher).items():
    if found.shape != own[name].shape:
      raise KdjaxError(
        f"config.student takes over its teacher's head: {name} are {list(found.shape)} there and"
        f" {list(own[name].shape)} in config.student; set config.student.embedding ="
        f" {found.shape[-1]}, and the same classes"
      )

  def start(shardings: ModelVars | None = None, dtype: Any = None) -> ModelVars:
    given = ModelVars({}, {}) if model.start is None else model.start(shardings, dtype)
    return given._replace(params={**given.params, **jax.jit(adopt)(teacher)})

  return model._replace(start=start)


def containing(model: Model, teacher: Any) -> Model:
  """A model with `contains`, started with its teacher's weights in that place.

  Args:
    model: the student.
    teacher: `ModelVars` of a single frozen model, concrete or abstract.

  Raises:
    KdjaxError: no such weights, or weights of other shapes.
  """
  if not isinstance(teacher, ModelVars):
    raise KdjaxError(
      f"config.student has its teacher inside ({model.contains}), and config.teacher is none of one"
      " frozen model; give it one of kind 'frozen'"
    )
  own = jax.eval_shape(model.init, jax.random.key(0)).params[model.contains]
  shapes = [jax.tree.map(lambda a: a.shape, tree) for tree in (own, teacher.params)]
  if shapes[0] != shapes[1]:
    raise KdjaxError(
      f"config.student has its teacher inside ({model.contains}), but with other sizes than"
      " config.teacher.model has; make channels, strides and width the same"
    )

  def start(shardings: ModelVars | None = None, dtype: Any = None) -> ModelVars:
    # A copy: a run gives away what it starts from, and the teacher is still needed.
    copied = jax.tree.map(jnp.copy, teacher.params)
    if shardings is not None:
      copied = jax.device_put(copied, shardings.params[model.contains])
    return ModelVars({model.contains: copied}, {})

  return model._replace(start=start)


def _shared(model: Model, params: PyTree, shardings: ModelVars | None) -> PyTree:
  """A copy of a larger model's parameters, in the dtypes of the model's own."""
  own = jax.eval_shape(model.init, jax.random.key(0)).params

  def taken(params: PyTree) -> PyTree:
    return jax.tree.map(
      lambda a, like: jnp.array(a, like.dtype), share(params, model.spec.sources), own
    )

  return jax.jit(taken, out_shardings=None if shardings is None else shardings.params)(params)


def with_embeddings(model: Model, parent: Parent) -> Model:
  """The model, its embedding that of a checkpoint, and its head too where both have one of its own.

  The table is copied as it lies, without a factor that the checkpoint's model multiplies it by. A
  narrower model gets the channels that matter most.

  Args:
    model: any decoder or encoder of the checkpoint's vocabulary and at most its width.
    parent: the checkpoint.

  Returns:
    The model. Its `start` gives these weights alone; the others are random.

  Raises:
    KdjaxError: another vocabulary, a larger width, or no text to choose the channels by.
  """
  spec, child = parent.spec, model.spec
  if isinstance(spec, Seq2SeqSpec) or isinstance(child, Seq2SeqSpec):
    raise KdjaxError("embeddings are copied between decoders and encoders only")
  if child.vocab != spec.vocab:
    raise KdjaxError(
      f"num_classes = {child.vocab}, but {parent.checkpoint.path} has embeddings of {spec.vocab}"
      f" tokens; with its tokenizer as config.data.tokenizer, set num_classes = {spec.vocab}"
    )
  if child.width > spec.width:
    raise KdjaxError(
      f"width = {child.width}, but the embeddings of {parent.checkpoint.path} have {spec.width};"
      " take at most that"
    )
  if child.width < spec.width:
    parent.check()
  copied = [("embed", "tokens")]
  if spec.head and child.head and not (spec.tied or child.tied):
    copied.append(("vocabulary", "kernel"))

  def start(shardings: ModelVars | None = None, dtype: Any = None) -> ModelVars:
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    channels = _channels(parent, child) if child.width < spec.width else None
    params: dict[str, Any] = {}
    for part, name in copied:
      leaf = abstract.params[part][name]
      array = _read(parent, f"{part}/{name}")
      if channels is not None:
        array = array.take(channels, axis=list(model.axes().params[part][name]).index("embed"))
      array = array.astype(leaf.dtype if dtype is None else dtype)
      placed = None if shardings is None else shardings.params[part][name]
      params.setdefault(part, {})[name] = jax.device_put(array, placed)
    return ModelVars(params, {})

  return model._replace(start=start)


def _read(parent: Parent, path: str) -> np.ndarray:
  spec = parent.spec
  shape = (spec.vocab, spec.width) if path == "embed/tokens" else (spec.width, spec.vocab)
  entry = next(entry for entry in entries_of(spec) if entry.ours == (path,))
  return entry.layout.read(parent.checkpoint.read(entry.theirs), [shape])[0]


def _channels(parent: Parent, child: Spec) -> np.ndarray:
  """The channels of a checkpoint that matter most, as many as the child is wide."""
  larger = language_model(parent.spec)
  found = parent.measure(load_weights(parent.checkpoint, larger, dtype=parent.dtype).params)
  kept = select(found, parent.spec, parent.spec.replace(width=child.width)).channels
  return np.asarray(kept)
