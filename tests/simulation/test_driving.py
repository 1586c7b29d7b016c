"""The world of the drivers: motion, what is seen, crashes, and a driver that needs its rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.data import driving
from kdjax.errors import KdjaxError
from kdjax.simulation import (
  Car,
  Scene,
  advance,
  bird_view,
  crashed,
  expert,
  new_scene,
  obeyed,
  sense,
)

EMPTY = Scene(
  jnp.array([0.0, 80.0, 0.0]),
  jnp.array([[500.0, 0.0, 0.0]]),
  jnp.array([[500.0, 0.0, 1.0, 0.0]]),
)


def car(s=0.0, d=0.0, heading=0.0, speed=5.0, time=0.0):
  return Car(*map(jnp.float32, (s, d, heading, speed, time)))


def test_a_straight_road_is_driven_straight():
  on = advance(EMPTY, car(), jnp.array([0.5, 0.0]))
  np.testing.assert_allclose(on, [0.2 * 5.3, 0, 0, 5.3, 0.2], rtol=1e-6)
  stopped = advance(EMPTY, car(speed=1.0), jnp.array([-1.0, 0.0]))
  assert stopped.speed == 0 and stopped.s == 0


def test_a_circle_has_the_radius_of_the_bicycle():
  here, steer = car(), jnp.array([0.0, 0.5])
  for _ in range(10):
    here = advance(EMPTY, here, steer)
  turned = 10 * 0.2 * 5.0 * np.tan(0.2) / 2.7
  np.testing.assert_allclose(here.heading, turned, rtol=1e-5)


def test_along_a_bend_the_heading_stays_with_the_road_by_steering_as_it_bends():
  scene = EMPTY._replace(bend=jnp.array([0.03, 1e6, np.pi / 2]))  # 0.03 everywhere
  steer = np.arctan(2.7 * 0.03) / 0.4
  here = advance(scene, car(), jnp.array([0.0, steer]))
  np.testing.assert_allclose([here.heading, here.d], 0, atol=1e-5)


def test_what_is_around_lies_where_it_is():
  scene = EMPTY._replace(
    cars=jnp.array([[13.0, 0.0, 0.0]]), walkers=jnp.array([[9.0, -3.5, 1.0, 0.0]])
  )
  view = np.asarray(bird_view(scene, car()))
  assert view.shape == (16, 16, 4) and set(np.unique(view)) == {0, 1}
  rows, columns = np.nonzero(view[..., 2])
  np.testing.assert_allclose([rows.mean() * 2 - 1, columns.mean() - 7.5], [13, 0], atol=1)
  rows, columns = np.nonzero(view[..., 3])
  np.testing.assert_allclose([rows.mean() * 2 - 1, columns.mean() - 7.5], [9, -3.5], atol=1)
  assert (view[:, :, 0].sum(1) == 8).all() and (view[:, :, 1].sum(1) == 2).all()
  # Turned to the left, what is ahead is to the right.
  turned = np.asarray(bird_view(scene, car(heading=0.3)))
  assert np.nonzero(turned[..., 2])[1].mean() < np.nonzero(view[..., 2])[1].mean() - 2


def test_the_sensor_sees_what_is_there_but_not_behind_it():
  scene = EMPTY._replace(cars=jnp.array([[10.0, 0.0, 0.0], [22.0, 0.0, 0.0]]))
  clean = sense(scene, car(), jax.random.key(0), noise=0.0)
  assert clean.shape == (24, 16, 3)
  ahead = np.asarray(clean[11:13, :, 1]).max(0)
  ranges = np.linspace(1.5, 30, 16)
  assert ahead[(ranges > 8) & (ranges < 12)].max() == 1 and ahead[ranges > 18].max() == 0
  noisy = sense(scene, car(), jax.random.key(0))
  assert 0.2 < float((noisy - clean).std()) < 0.4


def test_crashes():
  scene = EMPTY._replace(
    cars=jnp.array([[13.0, 0.0, 2.0]]), walkers=jnp.array([[40.0, 0.0, 1.0, 99.0]])
  )
  assert not crashed(scene, car())
  assert crashed(scene, car(s=14, time=1.0)) and not crashed(scene, car(s=8, time=1.0))
  assert crashed(scene, car(s=39)) and crashed(scene, car(d=4.1))


def test_the_driver_needs_the_rule_and_it_needs_only_that():
  def trip(number, obeys):
    scene, here = new_scene(jax.random.key(number))

    def step(carry, _):
      here, ended = carry
      action, brakes = expert(scene, here)
      on = advance(scene, here, obeyed(action, brakes & obeys))
      here = jax.tree.map(lambda new, old: jnp.where(ended, old, new), on, here)
      return (here, ended | crashed(scene, here)), None

    (here, ended), _ = jax.lax.scan(step, (here, jnp.array(False)), None, length=80)
    return here.s, ended

  trips = jax.jit(jax.vmap(trip, in_axes=(0, None)))
  distance, ended = trips(jnp.arange(100), True)
  assert ended.mean() < 0.1 and distance.mean() > 60
  _, ended = trips(jnp.arange(100), False)
  assert ended.mean() > 0.8


def test_frames_are_those_of_trips():
  data = driving(trips=4, test_trips=3)
  batch = data.train.read(np.arange(len(data.train)))
  assert 200 < len(data.train) <= 320
  assert batch["bev"].shape[1:] == data.bev_shape and batch["image"].shape[1:] == data.image_shape
  np.testing.assert_array_equal(batch["route"], batch["bev"][..., 1:2])
  assert (batch["action"][batch["rule"], 0] > -0.3).all() and 0 < batch["rule"].mean() < 0.5
  assert (np.abs(batch["action"]) <= 1).all()
  again = driving(trips=4, test_trips=3)
  np.testing.assert_array_equal(again.train.rows["image"], data.train.rows["image"])
  other = driving(trips=4, test_trips=3, seed=1)
  assert len(other.train) != len(data.train) or (other.train.rows["bev"] != batch["bev"]).any()
  np.testing.assert_array_equal(other.test.rows["scene"], data.test.rows["scene"])
  with pytest.raises(KdjaxError, match="trips is 0"):
    driving(trips=0)
