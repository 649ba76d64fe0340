"""Convolution and pooling against plain JAX, in float64, to second order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from maml_jax import ops

# (image height and width, kernel size, stride, padding)
GEOMETRIES = [
  ((6, 7), 3, 1, 1),
  ((6, 5), 3, 1, 0),
  ((4, 5), 3, 1, 2),
  ((7, 6), 3, 2, 1),
  ((6, 6), 3, 2, 1),
  ((5, 4), 1, 1, 0),
  ((5, 4), 1, 2, 0),
  ((9, 8), 5, 3, 2),
]


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def plain_conv(image, kernel, stride, padding):
  return lax.conv_general_dilated(
    image,
    kernel,
    (stride, stride),
    [(padding, padding)] * 2,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def operands(geometry, tasks=()):
  (h, w), size, *_ = geometry
  r = np.random.RandomState(0)
  image = r.randn(*tasks, 2, h, w, 3)
  return jnp.array(image), jnp.array(r.randn(*tasks, size, size, 3, 4))


def both(geometry):
  _, _, stride, padding = geometry

  def ours(image, kernel):
    return ops.conv(image, kernel, stride=stride, padding=padding)

  def plain(image, kernel):
    return plain_conv(image, kernel, stride, padding)

  return ours, plain


def first(fn):
  return jax.grad(lambda *args: jnp.sin(fn(*args)).sum(), (0, 1))


def second(fn):
  def loss(*args):
    return sum(jnp.cos(g).sum() for g in first(fn)(*args))

  return jax.grad(loss, (0, 1))


def assert_close(ours, plain):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-10),
    ours,
    plain,
  )


@pytest.mark.parametrize('geometry', GEOMETRIES, ids=str)
def test_conv_equals_plain_conv(geometry):
  def all_orders(fn):
    return lambda *args: (fn(*args), first(fn)(*args), second(fn)(*args))

  ours, plain = map(all_orders, both(geometry))
  args = operands(geometry)
  expected = jax.jit(plain)(*args)
  assert_close(jax.jit(ours)(*args), expected)
  with jax.disable_jit():
    assert_close(ours(*args), expected)


@pytest.mark.parametrize('geometry', GEOMETRIES[3:4], ids=str)
def test_conv_in_forward_and_reverse_mode(geometry):
  ours, _ = both(geometry)
  check_grads(ours, operands(geometry), order=3, modes=('fwd', 'rev'))


@pytest.mark.parametrize('axes', [(0, 0), (0, None), (None, 0), (2, 1)])
@pytest.mark.parametrize('order', [lambda fn: fn, second])
def test_conv_under_vmap(axes, order):
  geometry = GEOMETRIES[3]
  ours, plain = both(geometry)
  args = [
    x[0] if axis is None else jnp.moveaxis(x, 0, axis)
    for x, axis in zip(operands(geometry, (3,)), axes, strict=True)
  ]
  assert_close(
    jax.jit(jax.vmap(order(ours), axes))(*args),
    jax.jit(jax.vmap(order(plain), axes))(*args),
  )


def test_conv_under_nested_vmap():
  ours, plain = both(GEOMETRIES[0])
  image, kernel = operands(GEOMETRIES[0], (3,))
  args = image, kernel
  for inner, outer in (((0, None), (None, 0)), ((0, 0), (None, None))):
    nested = [
      jax.vmap(jax.vmap(f, inner), outer, axis_size=2)
      if outer == (None, None)
      else jax.vmap(jax.vmap(f, inner), outer)
      for f in (ours, plain)
    ]
    assert_close(nested[0](*args), nested[1](*args))


@pytest.mark.parametrize('padding', [0, 1])
def test_the_two_lowerings_agree(padding):
  """What runs on accelerators, here on the CPU."""
  image, kernel = operands(GEOMETRIES[0], (3,))
  size = {'stride': 1, 'padding': padding}
  g = jnp.sin(ops._conv_grouped(image, kernel, **size))
  assert_close(
    ops._conv_grouped(image, kernel, **size),
    jax.vmap(lambda x, k: plain_conv(x, k, 1, padding))(image, kernel),
  )
  singles = [
    ops._kernel_grad_single(x, y, padding=padding)
    for x, y in zip(image, g, strict=True)
  ]
  assert_close(
    ops._kernel_grad_grouped(image, g, padding=padding), jnp.stack(singles)
  )


def test_bfloat16_convolutions_sum_in_float32():
  """Over 64 images; the only rounding is that of the result, 2^-8 of it."""
  r = np.random.RandomState(0)
  image, kernel, g = (
    jnp.array(r.rand(*shape), jnp.bfloat16)
    for shape in ((3, 64, 6, 6, 3), (3, 3, 3, 3, 4), (3, 64, 6, 6, 4))
  )

  def all_three(image, kernel, g):
    out, pull = jax.vjp(jax.vmap(ops.conv), image, kernel)
    return out, *pull(g)

  def grouped(image, kernel, g):
    size = {'stride': 1, 'padding': 1}
    grad = ops._kernel_grad_grouped(image, g, padding=1)
    return ops._conv_grouped(image, kernel, **size), grad

  args = image, kernel, g
  exact = jax.jit(all_three)(*(x.astype(jnp.float64) for x in args))
  runs = [jax.jit(all_three)(*args), all_three(*args)]
  *_, kernel_grad = exact
  pairs = [
    *zip(runs[0] + runs[1], exact * 2, strict=True),
    *zip(jax.jit(grouped)(*args), (exact[0], kernel_grad), strict=True),
  ]
  for got, expected in pairs:
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(float), expected, rtol=1.001 * 2**-8)


def test_conv_refuses_what_does_not_fit():
  image, kernel = jnp.zeros((1, 4, 4, 3)), jnp.zeros((3, 3, 3, 2))
  with pytest.raises(ValueError, match='takes an image'):
    ops.conv(image[0], kernel)
  with pytest.raises(ValueError, match='has 2 channels, the kernel takes 3'):
    ops.conv(image[..., :2], kernel)
  with pytest.raises(ValueError, match='padding must be in 0..2'):
    ops.conv(image, kernel, padding=3)


@pytest.mark.parametrize('side', [4, 5])
@pytest.mark.parametrize('sign', [1, -1])
def test_max_pool_equals_reduce_window(side, sign):
  x = jnp.array(np.random.RandomState(0).randn(2, side, side + 1, 3))
  scale = jnp.array([0.5, 2.0, 1.0]).reshape(1, 1, 1, 3) * sign

  def ours(x):
    return scale * ops.max_pool(x, scale)

  def plain(x):
    return lax.reduce_window(
      scale * x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID'
    )

  def loss(fn):
    # The factor makes the second derivative that of pooling, too.
    return lambda x: jnp.sin(fn(x)).sum() * jnp.square(fn(x)).mean()

  def second(fn):
    return jax.grad(lambda x: jnp.cos(jax.grad(loss(fn))(x)).sum())

  assert_close(ours(x), plain(x))
  assert_close(jax.grad(loss(ours))(x), jax.grad(loss(plain))(x))
  # JAX knows no second derivative of reduce_window: ask finite differences.
  check_grads(loss(ours), (x,), order=2, modes=('fwd', 'rev'))
  batch = jnp.stack([x, -x])
  singles = jnp.stack([second(ours)(x), second(ours)(-x)])
  assert_close(jax.jit(jax.vmap(second(ours)))(batch), singles)
  with jax.disable_jit():
    assert_close(second(ours)(x), singles[0])


def test_max_pool_hands_every_gradient_on_once():
  """Also where the corners of a window are equal."""
  grad = jax.grad(lambda x: ops.max_pool(x).sum())(jnp.zeros((1, 4, 4, 2)))
  windows = grad.reshape(1, 2, 2, 2, 2, 2).sum((2, 4))
  np.testing.assert_array_equal(windows, np.ones((1, 2, 2, 2)))
