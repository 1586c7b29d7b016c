"""Accuracy with a few labelled images of each class at hand, without training on them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from kdjax.data.base import UNLABELLED, DataSet
from kdjax.errors import KdjaxError
from kdjax.evaluation import classification, finalize, merge, retrieved
from kdjax.evaluation.held_out import base_and_novel
from kdjax.losses._common import unit
from kdjax.models.base import Model, ModelVars
from kdjax.train.mesh import batch_sharding, place
from kdjax.train.streams import evaluation_passes

TAPS = frozenset({"embedding", "head"})


def few_shot_metrics(
  model: Model,
  weights: ModelVars,
  data: DataSet,
  mesh: Mesh,
  *,
  shots: int,
  seed: int = 0,
  batch_size: int = 256,
) -> dict[str, float]:
  """Cosines with the classes, helped by the nearest labelled images: see `retrieved`.

  Args:
    model: with the taps embedding and head, whose classes are embeddings of length 1.
    weights: of the model.
    data: images to choose from and to test on.
    mesh: the tests are split over.
    shots: labelled images of each class, at least 1.
    seed: which ones.
    batch_size: of the tests.

  Returns:
    `few_shot/accuracy`, and with held-out classes their `base_accuracy`, `novel_accuracy` and
    `harmonic_mean`.

  Raises:
    KdjaxError: a model without class embeddings, or a class with fewer labelled images.
  """
  if not model.taps >= TAPS:
    raise KdjaxError("--shots wants a model that classifies by embeddings of its classes, as clip")
  chosen = data.train.read(support(data.train.labels, data.num_classes, shots, seed))

  def embed(weights: ModelVars, image: jax.Array):
    out, _ = model.apply(weights, {"image": image}, taps=TAPS)
    return unit(out.embedding), out.head

  known = jax.jit(lambda w, image: embed(w, image)[0])(weights, jnp.asarray(chosen["image"]))
  labels = jnp.asarray(chosen["label"])

  @jax.jit
  def evaluate(weights: ModelVars, batch):
    features, head = embed(weights, batch["image"])
    logits = retrieved(head.logits(features), features, known, labels)
    pairs = {"accuracy": classification(logits, batch["label"], batch["mask"])["accuracy"]}
    if data.novel:
      pairs |= base_and_novel(logits, batch["label"], data.novel, batch["mask"])
    return pairs

  total: dict = {}
  for batch in evaluation_passes(data.test, batch_size, mesh)():
    total = merge(total, evaluate(weights, place(batch, batch_sharding(mesh))))
  return {f"few_shot/{name}": value for name, value in finalize(total).items()}


def support(labels: np.ndarray, classes: int, shots: int, seed: int) -> np.ndarray:
  """Positions of `shots` labelled examples of each class, drawn without replacement."""
  if shots < 1:
    raise KdjaxError(f"--shots = {shots} must be at least 1")
  rng, found = np.random.default_rng(seed), []
  for label in range(classes):
    own = np.flatnonzero(labels == label)
    if len(own) < shots:
      hidden = " (labels of novel classes are hidden: set config.data.told = True)"
      raise KdjaxError(
        f"--shots = {shots}, but class {label} has {len(own)} labelled training images"
        f"{hidden if (labels == UNLABELLED).any() else ''}"
      )
    found.append(rng.choice(own, shots, replace=False))
  return np.concatenate(found)
