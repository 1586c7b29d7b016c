"""A car on a winding road, slower cars ahead of it and people who cross.

Positions are along the road (s, metres) and across it (d, to the left of its middle). The car is
the kinematic bicycle of Polack et al. (IV 2017) in these coordinates. Everything is a function of a
scene, which a key makes, and of the car's state, so that whole trips run inside a compiled step.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

DT = 0.2  # seconds
STEPS = 80  # of a trip: sixteen seconds
WHEELBASE = 2.7
STEER = 0.4  # radians at full lock
SPEED_UP, SLOW_DOWN = 3.0, 6.0  # metres per second squared at full throttle and full brake
LIMIT = 8.0  # metres per second
HALF_ROAD, HALF_LANE = 4.0, 1.2
CARS, WALKERS = 3, 4
CHANNELS = ("road", "route", "cars", "walkers")
GRID = (16, 16)  # of 2 m ahead by 1 m across
RAYS, RANGES = 24, 16
SENSED = 3  # channels of what the sensor has: road, cars, walkers


class Scene(NamedTuple):
  """What is around: all arrays of one trip."""

  bend: Float[Array, "3"]  # curvature a sin(2 pi s / w + phase): a, w, phase
  cars: Float[Array, "car 3"]  # s at time 0, d, speed
  walkers: Float[Array, "walker 4"]  # s, d at time 0, speed across, when they start


class Car(NamedTuple):
  """The state of the car that is driven; scalars."""

  s: Array
  d: Array
  heading: Array  # against the road's, radians
  speed: Array
  time: Array


def new_scene(key: Array) -> tuple[Scene, Car]:
  """A random scene and where its trip begins."""
  keys = jax.random.split(key, 8)
  bend = jnp.stack(
    [
      jax.random.uniform(keys[0], minval=-0.03, maxval=0.03),
      jax.random.uniform(keys[1], minval=60.0, maxval=120.0),
      jax.random.uniform(keys[2], maxval=2 * jnp.pi),
    ]
  )
  gaps = jax.random.uniform(keys[3], (CARS,), minval=25.0, maxval=60.0)
  speeds = jax.random.uniform(keys[4], (CARS,), minval=3.0, maxval=7.0)
  cars = jnp.stack([jnp.cumsum(gaps), jnp.zeros(CARS), jnp.sort(speeds)], axis=-1)
  places = jax.random.uniform(keys[5], (WALKERS,), minval=15.0, maxval=110.0)
  side = jnp.where(jax.random.bernoulli(keys[6], shape=(WALKERS,)), 1.0, -1.0)
  pace = jax.random.uniform(keys[7], (WALKERS,), minval=1.0, maxval=2.0)
  # Each is near the middle about when a car at seven metres a second comes by.
  starts = places / 7.0 - 6.0 / pace + jax.random.uniform(keys[5], (WALKERS,), minval=-1, maxval=2)
  walkers = jnp.stack([places, -6.0 * side, pace * side, starts], axis=-1)
  off = 0.3 * jax.random.normal(keys[0], (2,))
  car = Car(jnp.float32(0), off[0], 0.2 * off[1], jnp.float32(6), jnp.float32(0))
  return Scene(bend, cars, walkers), car


def curvature(scene: Scene, s: Array) -> Array:
  """1 / radius of the road at s, positive to the left."""
  size, length, phase = scene.bend
  return size * jnp.sin(2 * jnp.pi * s / length + phase)


def advance(scene: Scene, car: Car, action: Float[Array, "2"]) -> Car:
  """The car after one time step.

  Args:
    scene: the road.
    car: its state.
    action: acceleration and steering in [-1, 1]; below 0 the first brakes, above 0 the second turns
      left.
  """
  action = jnp.clip(action, -1, 1)
  force = jnp.where(action[0] > 0, SPEED_UP, SLOW_DOWN) * action[0]
  speed = jnp.clip(car.speed + DT * force, 0, 1.5 * LIMIT)
  bend = curvature(scene, car.s)
  along = speed * jnp.cos(car.heading) / jnp.maximum(1 - car.d * bend, 0.2)
  turn = speed * jnp.tan(STEER * action[1]) / WHEELBASE - bend * along
  return Car(
    car.s + DT * along,
    car.d + DT * speed * jnp.sin(car.heading),
    car.heading + DT * turn,
    speed,
    car.time + DT,
  )


def others(scene: Scene, time: Array) -> tuple[Float[Array, "car 2"], Float[Array, "walker 2"]]:
  """(s, d) of the cars and of the people at a time."""
  cars = jnp.stack([scene.cars[:, 0] + scene.cars[:, 2] * time, scene.cars[:, 1]], axis=-1)
  s, d, pace, start = scene.walkers.T
  return cars, jnp.stack([s, d + pace * jnp.clip(time - start, 0, 12 / jnp.abs(pace))], axis=-1)


def crashed(scene: Scene, car: Car) -> Bool[Array, ""]:
  """Whether the car touches another or a person, or has left the road."""
  cars, walkers = others(scene, car.time)
  hit_car = (jnp.abs(cars[:, 0] - car.s) < 4.0) & (jnp.abs(cars[:, 1] - car.d) < 1.8)
  hit_walker = (jnp.abs(walkers[:, 0] - car.s) < 2.3) & (jnp.abs(walkers[:, 1] - car.d) < 1.3)
  return hit_car.any() | hit_walker.any() | (jnp.abs(car.d) > HALF_ROAD)


def expert(scene: Scene, car: Car) -> tuple[Float[Array, "2"], Bool[Array, ""]]:
  """A good action, but for people; and whether a rule brakes for one of them.

  Steering follows the middle of the lane, acceleration is that of the intelligent driver model
  (Treiber et al., 2000) behind the next car.
  """
  cars, walkers = others(scene, car.time)
  ahead = curvature(scene, car.s + 0.4 * car.speed)
  wanted = ahead - 0.08 * car.d - 0.6 * car.heading
  steer = jnp.arctan(WHEELBASE * wanted) / STEER
  gaps = jnp.where(cars[:, 0] > car.s, cars[:, 0] - car.s - 4.5, 200.0)
  nearest = jnp.argmin(gaps)
  closing = car.speed - scene.cars[nearest, 2]
  most, comfortable = 2.0, 3.0
  room = 2 + 1.2 * car.speed + car.speed * closing / (2 * (most * comfortable) ** 0.5)
  push = 1 - (car.speed / LIMIT) ** 4
  push = most * (push - (jnp.maximum(room, 0) / jnp.maximum(gaps[nearest], 0.5)) ** 2)
  force = jnp.where(push > 0, push / SPEED_UP, push / SLOW_DOWN)
  stopping = car.speed**2 / (2 * 5.0) + 4.0
  before = (walkers[:, 0] > car.s) & (walkers[:, 0] - car.s < stopping)
  brakes = (before & (jnp.abs(walkers[:, 1] - car.d) < 2.5)).any()
  return jnp.clip(jnp.stack([force, steer]), -1, 1), brakes


def _on_road(scene: Scene, car: Car, x: Array, y: Array) -> tuple[Array, Array]:
  """(s, d) of points x metres ahead of the car and y to its left."""
  size, length, phase = scene.bend
  rate = 2 * jnp.pi / length
  cos, sin = jnp.cos(car.heading), jnp.sin(car.heading)
  ahead, left = x * cos - y * sin, x * sin + y * cos
  # Twice the integral of the curvature: how far the road has gone to the left by then.
  slope = jnp.cos(rate * car.s + phase)
  waves = jnp.sin(rate * (car.s + ahead) + phase) - jnp.sin(rate * car.s + phase)
  swerve = size / rate * (slope * ahead - waves / rate)
  return car.s + ahead, car.d + left - swerve


def _layers(scene: Scene, car: Car, x: Array, y: Array) -> Float[Array, "*place 4"]:
  """What lies at points: the channels of `CHANNELS`, 0 or 1."""
  s, d = _on_road(scene, car, x, y)
  cars, walkers = others(scene, car.time)

  def near(these, half_s: float, half_d: float):
    theirs = these.reshape((1,) * s.ndim + these.shape)
    close_s = jnp.abs(s[..., None] - theirs[..., 0]) < half_s
    return (close_s & (jnp.abs(d[..., None] - theirs[..., 1]) < half_d)).any(-1)

  parts = (
    jnp.abs(d) < HALF_ROAD,
    jnp.abs(d) < HALF_LANE,
    near(cars, 2.4, 1.0),
    near(walkers, 1.2, 0.8),
  )
  return jnp.stack(parts, axis=-1).astype(jnp.float32)


def bird_view(scene: Scene, car: Car) -> Float[Array, "16 16 4"]:
  """What is around the car, seen from above: its state is known to a privileged teacher alone."""
  x = jnp.arange(GRID[0], dtype=jnp.float32) * 2.0 - 1.0
  y = jnp.arange(GRID[1], dtype=jnp.float32) - 7.5
  return _layers(scene, car, *jnp.meshgrid(x, y, indexing="ij"))


def sense(scene: Scene, car: Car, key: Array, noise: float = 0.3) -> Float[Array, "24 16 3"]:
  """What a sensor on the car has: rays by ranges, with noise, gaps and shadows behind what is hit.

  Args:
    scene: around it.
    car: its state.
    key: of the noise.
    noise: its standard deviation.
  """
  angles = jnp.linspace(-1.3, 1.3, RAYS)[:, None]
  ranges = jnp.linspace(1.5, 30.0, RANGES)[None]
  layers = _layers(scene, car, ranges * jnp.cos(angles), ranges * jnp.sin(angles))
  hit = layers[..., 2:].max(-1)
  shadow = jnp.cumsum(hit, axis=1) - hit > 0
  seen = jnp.where(shadow[..., None], 0.0, layers[..., jnp.array([0, 2, 3])])
  noise_key, gap_key = jax.random.split(key)
  seen = seen + noise * jax.random.normal(noise_key, seen.shape)
  return jnp.where(jax.random.bernoulli(gap_key, 0.1, seen.shape[:2])[..., None], 0.0, seen)


def observe(scene: Scene, car: Car, key: Array) -> dict[str, Array]:
  """What models read of one moment: `bev`, `route`, `image` and `speed`."""
  bev = bird_view(scene, car)
  return {
    "bev": bev,
    "route": bev[..., 1:2],
    "image": sense(scene, car, key),
    "speed": car.speed[None] / LIMIT,
  }


def obeyed(action: Array, brakes: Array) -> Array:
  """The action [2] that is taken where a rule may brake: steering stays."""
  return jnp.where(brakes, jnp.stack([-1.0, action[1]]), action)


def overruled(action: Array, brakes: Array) -> Array:
  """Where a rule brakes and the driver's action [..., 2] does not; bool [...]."""
  return brakes & (action[..., 0] > -0.3)
