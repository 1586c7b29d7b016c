"""Small worlds in which a policy can be tried: pure functions that run under jit, vmap and scan."""

from kdjax.simulation.actions import beta_action
from kdjax.simulation.driving import (
  Car,
  Scene,
  advance,
  bird_view,
  crashed,
  expert,
  new_scene,
  obeyed,
  observe,
  sense,
)

__all__ = [
  "Car",
  "Scene",
  "advance",
  "beta_action",
  "bird_view",
  "crashed",
  "expert",
  "new_scene",
  "obeyed",
  "observe",
  "sense",
]
