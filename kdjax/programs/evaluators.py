"""What a program evaluates: a student beside its teacher, on labels or on text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from kdjax.evaluation.classification import agreement, classification, top_k_accuracy
from kdjax.evaluation.corruption import corruption_errors
from kdjax.evaluation.held_out import base_and_novel
from kdjax.evaluation.language import next_token
from kdjax.evaluation.segmentation import intersection_over_union
from kdjax.evaluation.similarity import batch_cka
from kdjax.models.base import Model, ModelVars
from kdjax.objectives.chunks import sum_chunks
from kdjax.outputs import Outputs
from kdjax.teachers.base import Teacher

LOGITS = frozenset({"logits"})
HEADED = frozenset({"hidden", "head"})
# Positions of the time axis whose logits exist at a time.
CHUNK = 32
# Top-5 accuracy is told of more classes than that.
TOP = 5

Metrics = dict[str, tuple[jax.Array, jax.Array]]
Tell = Callable[..., Outputs]  # tell(taps): the teacher on the batch; tell(taps, another)
Evaluator = Callable[[Model, Teacher], Callable[[ModelVars, Tell, dict], Metrics]]


def classifier(student: Model, teacher: Teacher):
  """Metrics of a classifier, the teacher's, their agreement, and how alike their embeddings are."""
  beside = "logits" in teacher.taps and teacher.anywhere
  pooled = LOGITS & teacher.taps and student.taps & teacher.taps & {"embedding"}
  taps = LOGITS | (pooled if beside else frozenset())

  def metrics_of(outputs: Outputs, batch) -> Metrics:
    own = (outputs.logits, batch["label"], batch["mask"])
    return classification(*own) | (top_k_accuracy(*own) if outputs.logits.shape[-1] > TOP else {})

  def evaluate(variables: ModelVars, tell: Tell, batch) -> Metrics:
    outputs, _ = student.apply(variables, batch, taps=taps)
    metrics = metrics_of(outputs, batch)
    if not beside:
      return metrics
    told = tell(taps)
    if told.logits.ndim != outputs.logits.ndim:  # next tokens, of a language model
      return metrics
    if outputs.embedding is not None and told.embedding is not None:
      metrics |= batch_cka(outputs.embedding, told.embedding, batch["mask"])
    own = metrics_of(told, batch)
    metrics |= {f"teacher/{name}": pair for name, pair in own.items()}
    if teacher.num_classes == student.num_classes:
      metrics |= agreement(outputs.logits, told.logits, batch["mask"])
    return metrics

  return evaluate


def named_classes(novel: Sequence[int]) -> Evaluator:
  """The evaluator of classes of which some are held out: what `classifier` tells, and each kind's.

  Args:
    novel: the held-out classes; see `kdjax.evaluation.base_and_novel`.
  """

  def evaluator(student: Model, teacher: Teacher):
    plain = classifier(student, teacher)
    beside = "logits" in teacher.taps and teacher.anywhere

    def evaluate(variables: ModelVars, tell: Tell, batch) -> Metrics:
      def both(logits: jax.Array, prefix: str = "") -> Metrics:
        pairs = base_and_novel(logits, batch["label"], novel, batch["mask"])
        return {f"{prefix}{name}": pair for name, pair in pairs.items()}

      outputs, _ = student.apply(variables, batch, taps=LOGITS)
      metrics = plain(variables, tell, batch) | both(outputs.logits)
      return metrics | both(tell(LOGITS).logits, "teacher/") if beside else metrics

    return evaluate

  return evaluator


def corrupted_images(kinds: Sequence[str]) -> Evaluator:
  """The evaluator of clean images and damaged copies: what `classifier` tells of the clean ones.

  Beside it the errors on the copies. Of a model with several heads, each head's accuracy and error.

  Args:
    kinds: of damage; see `kdjax.evaluation.corruption_errors`.
  """

  def evaluator(student: Model, teacher: Teacher):
    plain = classifier(student, teacher)
    beside = "logits" in teacher.taps and teacher.anywhere
    taps = LOGITS | student.taps & {"head_logits"}

    def evaluate(variables: ModelVars, tell: Tell, batch) -> Metrics:
      def errors(logits: jax.Array, prefix: str = "") -> Metrics:
        own = (logits, batch["label"], batch["corruption"], kinds, batch["mask"])
        return {f"{prefix}{name}": pair for name, pair in corruption_errors(*own).items()}

      clean = batch["mask"] & (batch["corruption"] == 0)
      outputs, _ = student.apply(variables, batch, taps=taps)
      metrics = plain(variables, tell, batch | {"mask": clean}) | errors(outputs.logits)
      for name, logits in (outputs.head_logits or {}).items():
        own = classification(logits, batch["label"], clean) | errors(logits)
        wanted = ("accuracy", "corruption_error")
        metrics |= {f"{name}_head/{metric}": own[metric] for metric in wanted}
      return metrics | errors(tell(LOGITS).logits, "teacher/") if beside else metrics

    return evaluate

  return evaluator


def label_maps(student: Model, teacher: Teacher):
  """Metrics of models that classify places: what `classifier` tells of them, and `mean_iou`."""
  beside = "logits" in teacher.taps and teacher.anywhere

  def metrics_of(logits: jax.Array, batch, where) -> Metrics:
    own = (logits, batch["label"], where)
    return classification(*own) | intersection_over_union(*own)

  def evaluate(variables: ModelVars, tell: Tell, batch) -> Metrics:
    outputs, _ = student.apply(variables, batch, taps=LOGITS)
    where = jnp.broadcast_to(batch["mask"][:, None], batch["label"].shape)
    metrics = metrics_of(outputs.logits, batch, where)
    if not beside:
      return metrics
    told = tell(LOGITS)
    own = metrics_of(told.logits, batch, where)
    metrics |= {f"teacher/{name}": pair for name, pair in own.items()}
    if teacher.num_classes == student.num_classes:
      metrics |= agreement(outputs.logits, told.logits, where)
    return metrics

  return evaluate


def language(domains: Sequence[str] = ()) -> Evaluator:
  """The evaluator of a language model: next tokens, perplexity of each domain, the teacher's word.

  Args:
    domains: what the values of `batch["domain"]` are called; none or one leaves domains out.
  """

  names = tuple(domains) if len(domains) > 1 else ()

  def evaluator(student: Model, teacher: Teacher):
    beside = teacher.taps >= HEADED and teacher.anywhere

    def of_tokens(outputs: Outputs, batch, prefix: str = "", told: Outputs | None = None):
      """Metrics of one side on its own tokens, and with `told` the agreement on them."""
      label = batch[f"{prefix}label"]
      where = batch[f"{prefix}mask"] & (label >= 0)

      def chunk(part):
        logits, own = outputs.head.logits(part["hidden"]), (part["label"], part["where"])
        metrics = next_token(logits, *own, part.get("domain"), names)
        if told is not None:
          theirs = told.head.logits(part["told"])
          beside = next_token(theirs, *own, part.get("domain"), names)
          metrics |= {f"teacher/{name}": pair for name, pair in beside.items()}
          if teacher.num_classes == student.num_classes:
            metrics |= agreement(logits, theirs, part["where"])
        return metrics

      parts = {"hidden": outputs.hidden, "label": label, "where": where}
      if told is not None:
        parts["told"] = told.hidden
      if names:
        parts["domain"] = jnp.broadcast_to(batch["domain"][:, None], label.shape)
      return sum_chunks(chunk, parts, label.shape, CHUNK)

    def evaluate(variables: ModelVars, tell: Tell, batch) -> Metrics:
      outputs, _ = student.apply(variables, batch, taps=HEADED)
      told = tell(HEADED) if beside else None
      if told is None or "teacher_label" not in batch:
        return of_tokens(outputs, batch, told=told)
      theirs = of_tokens(told, batch, "teacher_")  # it has tokens of its own
      return of_tokens(outputs, batch) | {f"teacher/{k}": pair for k, pair in theirs.items()}

    return evaluate

  return evaluator
