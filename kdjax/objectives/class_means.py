"""A running mean per class, gathered by an objective's `prepare` over one pass of the data."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.objectives.base import Batch, valid


class ClassMeans(NamedTuple):
  sum: Float[Array, "classes width"]
  count: Float[Array, "classes"]


def labelled(batch: Batch) -> Bool[Array, "batch"]:
  """The valid rows whose label is known (not negative)."""
  return valid(batch, batch["label"]) & (batch["label"] >= 0)


def empty(classes: int, width: int) -> ClassMeans:
  """Nothing gathered yet."""
  return ClassMeans(jnp.zeros((classes, width)), jnp.zeros(classes))


def gather(table: ClassMeans, batch: Batch, values: Float[Array, "batch width"]) -> ClassMeans:
  """The table with the labelled rows of a batch added."""
  rows = labelled(batch)[:, None].astype(jnp.float32)
  one_hot = jax.nn.one_hot(batch["label"], len(table.count)) * rows
  return ClassMeans(
    table.sum + one_hot.T @ values.astype(jnp.float32), table.count + one_hot.sum(0)
  )


def means(table: ClassMeans) -> Float[Array, "classes width"]:
  """Row c is the mean of class c; 0 for a class that was not seen."""
  return table.sum / jnp.maximum(table.count, 1)[:, None]
