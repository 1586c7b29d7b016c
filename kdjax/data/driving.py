"""Trips of a scripted driver, frame by frame, and new scenes to drive in."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.data.base import Example, unstack
from kdjax.errors import KdjaxError
from kdjax.simulation import driving as world

TEST = 1_000_000  # scenes from here on are for testing


@dataclasses.dataclass(frozen=True)
class Frames:
  """Rows of arrays of equal length, with an `index`.

  Attributes:
    rows: name to array, `label` (all 0: actions are no classes) among them.
  """

  rows: dict[str, np.ndarray]

  @property
  def labels(self) -> np.ndarray:
    return self.rows["label"]

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, position: int) -> Example:
    return unstack(self.read(np.array([position])))[0]

  def read(self, positions: np.ndarray) -> Example:
    index = {"index": np.asarray(positions, np.int32)}
    return {name: array[positions] for name, array in self.rows.items()} | index


class Trips(NamedTuple):
  """What a driver learns from, and where it is tried.

  Attributes:
    train: frames: `bev` [16, 16, 4], what is around, seen from above; `route` [16, 16, 1], one of
      its channels, which a student knows too; `image` [24, 16, 3], what its sensor has; `speed`
      [1], a share of the limit; `action` [2], the driver's acceleration and steering; `rule` bool,
      where a rule braked and the driver did not.
    test: a `scene` for each trip.
    num_classes: number of actions.
    image_shape: of `image`.
    bev_shape: of `bev`.
    name: for messages.
  """

  train: Frames
  test: Frames
  num_classes: int
  image_shape: tuple[int, int, int]
  bev_shape: tuple[int, int, int]
  name: str = "driving"


def driving(*, trips: int = 64, test_trips: int = 64, sway: float = 0.3, seed: int = 0) -> Trips:
  """Frames of trips in the world of `kdjax.simulation`, whose driver sees all but the people.

  For these a rule brakes. The driver's hand is unsteady, so that there is something to correct; its
  `action` is what it meant. A trip ends after 16 seconds or at a crash.

  Args:
    trips: to learn from, about 80 frames each.
    test_trips: scenes to drive in.
    sway: standard deviation of what is added to each action.
    seed: of the scenes to learn from; those for testing are always the same.

  Raises:
    KdjaxError: numbers out of range.
  """
  for name, value in {"trips": trips, "test_trips": test_trips}.items():
    if not 1 <= value < TEST:
      raise KdjaxError(f"driving: {name} is {value}; it must lie in 1 .. {TEST - 1}")
  if not sway >= 0:
    raise KdjaxError(f"driving: sway is {sway}; it must be at least 0")
  record = jax.jit(jax.vmap(_record, in_axes=(0, None, None)))
  made = jax.device_get(record(jnp.arange(trips), sway, seed))
  alive = made.pop("alive").reshape(-1)
  rows = {name: array.reshape(-1, *array.shape[2:])[alive] for name, array in made.items()}
  rows["label"] = np.zeros(len(rows["speed"]), np.int32)
  tests = {"scene": np.arange(TEST, TEST + test_trips, dtype=np.int32)}
  tests["label"] = np.zeros(test_trips, np.int32)
  return Trips(
    Frames(rows),
    Frames(tests),
    num_classes=2,
    image_shape=(world.RAYS, world.RANGES, world.SENSED),
    bev_shape=(*world.GRID, len(world.CHANNELS)),
  )


def _record(number: jax.Array, sway: float, seed: int) -> dict[str, jax.Array]:
  """The frames of one trip, [STEPS, ...]."""
  key = jax.random.fold_in(jax.random.key(seed), number)
  scene, start = world.new_scene(key)

  def step(carry, key):
    car, alive = carry
    action, brakes = world.expert(scene, car)
    seen, shaken = jax.random.split(key)
    frame = world.observe(scene, car, seen) | {"action": action, "alive": alive}
    frame["rule"] = world.overruled(action, brakes)
    taken = world.obeyed(action, brakes) + sway * jax.random.normal(shaken, (2,))
    car = world.advance(scene, car, taken)
    return (car, alive & ~world.crashed(scene, car)), frame

  keys = jax.random.split(jax.random.fold_in(key, 1), world.STEPS)
  return jax.lax.scan(step, (start, jnp.array(True)), keys)[1]
