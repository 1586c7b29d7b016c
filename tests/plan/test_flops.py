"""Operations of products that can be counted by hand."""

import jax
import jax.numpy as jnp

from kdjax.plan.flops import count

S = jax.ShapeDtypeStruct


def traced(function, *shapes):
  return jax.jit(function).trace(*(S(shape, jnp.float32) for shape in shapes)).jaxpr


def test_a_product_and_its_gradient():
  assert count(traced(jnp.matmul, (3, 5), (5, 7))) == 2 * 3 * 5 * 7
  assert count(traced(jnp.matmul, (4, 3, 5), (4, 5, 7))) == 4 * 2 * 3 * 5 * 7

  def loss(x, w):
    return (x @ w).sum()

  both = traced(jax.value_and_grad(loss, argnums=(0, 1)), (3, 5), (5, 7))
  assert count(both) == 3 * 2 * 3 * 5 * 7  # forwards, and backwards to either side


def test_a_scan_counts_as_often_as_it_runs():
  def layers(ws, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0]

  assert count(traced(layers, (6, 5, 5), (3, 5))) == 6 * 2 * 3 * 5 * 5

  def twice(ws, x):
    return jax.lax.scan(lambda x, _: (layers(ws, x), None), x, length=4)[0]

  assert count(traced(twice, (6, 5, 5), (3, 5))) == 4 * 6 * 2 * 3 * 5 * 5


def test_of_branches_the_dearest():
  def either(x, w):
    return jax.lax.cond(x.sum() > 0, lambda: x @ w, lambda: x @ w @ w)

  assert count(traced(either, (3, 5), (5, 5))) == 2 * 2 * 3 * 5 * 5


def test_what_is_computed_again_counts_again():
  def loss(x, w):
    return jnp.sin(jnp.sin(x @ w) @ w).sum()

  once = count(traced(jax.grad(loss), (3, 5), (5, 5)))
  again = count(traced(jax.grad(jax.checkpoint(loss)), (3, 5), (5, 5)))
  assert again > once == 4 * 2 * 3 * 5 * 5


def test_a_convolution_of_groups():
  def convolve(x, kernel):
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      (1, 1),
      "SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=2,
    )

  # Each output reads 3 x 3 places of half of the 4 channels.
  assert count(traced(convolve, (1, 8, 8, 4), (3, 3, 2, 6))) == 2 * (8 * 8 * 6) * (3 * 3 * 2)
