"""Compares convolution and pooling with `lax`, in float64, to second order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from maml_jax import ops

# (image height and width), kernel size, stride, padding
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


def lax_conv(image, kernel, stride, padding):
  return lax.conv_general_dilated(
    image,
    kernel,
    (stride, stride),
    [(padding, padding)] * 2,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def make_operands(geometry, tasks=()):
  """Returns random images and kernels with leading axes `tasks`."""
  (h, w), size, *_ = geometry
  r = np.random.RandomState(0)
  image = r.randn(*tasks, 2, h, w, 3)
  return jnp.array(image), jnp.array(r.randn(*tasks, size, size, 3, 4))


def make_functions(geometry):
  """Returns `ops.conv` and the reference with a stride and a padding."""
  _, _, stride, padding = geometry

  def conv(image, kernel):
    return ops.conv(image, kernel, stride=stride, padding=padding)

  def reference(image, kernel):
    return lax_conv(image, kernel, stride, padding)

  return conv, reference


def first_derivatives(fn):
  return jax.grad(lambda *args: jnp.sin(fn(*args)).sum(), (0, 1))


def second_derivatives(fn):
  def loss(*args):
    return sum(jnp.cos(g).sum() for g in first_derivatives(fn)(*args))

  return jax.grad(loss, (0, 1))


def assert_close(actual, expected):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-10),
    actual,
    expected,
  )


@pytest.mark.parametrize('geometry', GEOMETRIES, ids=str)
def test_conv_and_its_derivatives_equal_lax(geometry):
  def all_orders(fn):
    return lambda *args: (
      fn(*args),
      first_derivatives(fn)(*args),
      second_derivatives(fn)(*args),
    )

  conv, reference = map(all_orders, make_functions(geometry))
  args = make_operands(geometry)
  expected = jax.jit(reference)(*args)
  assert_close(jax.jit(conv)(*args), expected)
  with jax.disable_jit():
    assert_close(conv(*args), expected)


@pytest.mark.parametrize('geometry', GEOMETRIES[3:4], ids=str)
def test_conv_derivatives_equal_finite_differences(geometry):
  conv, _ = make_functions(geometry)
  check_grads(conv, make_operands(geometry), order=3, modes=('fwd', 'rev'))


@pytest.mark.parametrize('axes', [(0, 0), (0, None), (None, 0), (2, 1)])
@pytest.mark.parametrize(
  'derivative',
  [lambda fn: fn, second_derivatives],
  ids=['value', 'second derivatives'],
)
def test_conv_under_vmap_equals_lax(axes, derivative):
  geometry = GEOMETRIES[3]
  conv, reference = make_functions(geometry)
  args = [
    x[0] if axis is None else jnp.moveaxis(x, 0, axis)
    for x, axis in zip(make_operands(geometry, (3,)), axes, strict=True)
  ]
  assert_close(
    jax.jit(jax.vmap(derivative(conv), axes))(*args),
    jax.jit(jax.vmap(derivative(reference), axes))(*args),
  )


def test_conv_under_nested_vmap_equals_lax():
  args = make_operands(GEOMETRIES[0], (3,))
  for inner, outer in (((0, None), (None, 0)), ((0, 0), (None, None))):
    conv, reference = (
      jax.vmap(jax.vmap(fn, inner), outer, axis_size=2)
      if outer == (None, None)
      else jax.vmap(jax.vmap(fn, inner), outer)
      for fn in make_functions(GEOMETRIES[0])
    )
    assert_close(conv(*args), reference(*args))


@pytest.mark.parametrize('padding', [0, 1])
def test_grouped_lowerings_equal_separate_convolutions(padding):
  """Runs the lowerings for accelerators on the CPU."""
  image, kernel = make_operands(GEOMETRIES[0], (3,))
  out = ops.conv_grouped(image, kernel, stride=1, padding=padding)
  assert_close(
    out, jax.vmap(lambda x, k: lax_conv(x, k, 1, padding))(image, kernel)
  )
  g = jnp.sin(out)
  separate = [
    ops.kernel_grad_direct(x, y, padding=padding)
    for x, y in zip(image, g, strict=True)
  ]
  assert_close(
    ops.kernel_grad_grouped(image, g, padding=padding), jnp.stack(separate)
  )


def test_bfloat16_convolutions_sum_in_float32():
  """The only rounding is that of the result, by 2^-8 of its value."""
  r = np.random.RandomState(0)
  image, kernel, g = (
    jnp.array(r.rand(*shape), jnp.bfloat16)
    for shape in ((3, 64, 6, 6, 3), (3, 3, 3, 3, 4), (3, 64, 6, 6, 4))
  )

  def value_and_gradients(image, kernel, g):
    out, pull = jax.vjp(jax.vmap(ops.conv), image, kernel)
    return out, *pull(g)

  def grouped(image, kernel, g):
    out = ops.conv_grouped(image, kernel, stride=1, padding=1)
    return out, ops.kernel_grad_grouped(image, g, padding=1)

  args = image, kernel, g
  exact = jax.jit(value_and_gradients)(*(x.astype(jnp.float64) for x in args))
  runs = [jax.jit(value_and_gradients)(*args), value_and_gradients(*args)]
  *_, kernel_grad = exact
  pairs = [
    *zip(runs[0] + runs[1], exact * 2, strict=True),
    *zip(jax.jit(grouped)(*args), (exact[0], kernel_grad), strict=True),
  ]
  for actual, expected in pairs:
    assert actual.dtype == jnp.bfloat16
    np.testing.assert_allclose(
      actual.astype(float), expected, rtol=1.001 * 2**-8
    )


def test_conv_rejects_invalid_shapes_and_padding():
  image, kernel = jnp.zeros((1, 4, 4, 3)), jnp.zeros((3, 3, 3, 2))
  with pytest.raises(ValueError, match='expects an image'):
    ops.conv(image[0], kernel)
  message = 'has 2 channels, but the kernel expects 3'
  with pytest.raises(ValueError, match=message):
    ops.conv(image[..., :2], kernel)
  with pytest.raises(ValueError, match='padding must be in 0..2'):
    ops.conv(image, kernel, padding=3)


@pytest.mark.parametrize('side', [4, 5])
@pytest.mark.parametrize('sign', [1, -1])
def test_max_pool_equals_reduce_window(side, sign):
  x = jnp.array(np.random.RandomState(0).randn(2, side, side + 1, 3))
  scale = jnp.array([0.5, 2.0, 1.0]).reshape(1, 1, 1, 3) * sign

  def pool(x):
    return scale * ops.max_pool(x, scale)

  def reference(x):
    return lax.reduce_window(
      scale * x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID'
    )

  def loss(fn):
    # The product couples all windows in the second derivatives.
    return lambda x: jnp.sin(fn(x)).sum() * jnp.square(fn(x)).mean()

  second_derivative = jax.grad(lambda x: jnp.cos(jax.grad(loss(pool))(x)).sum())
  assert_close(pool(x), reference(x))
  assert_close(jax.grad(loss(pool))(x), jax.grad(loss(reference))(x))
  # JAX has no second derivative of reduce_window; use finite differences.
  check_grads(loss(pool), (x,), order=2, modes=('fwd', 'rev'))
  batch = jnp.stack([x, -x])
  separate = jnp.stack([second_derivative(x), second_derivative(-x)])
  assert_close(jax.jit(jax.vmap(second_derivative))(batch), separate)
  with jax.disable_jit():
    assert_close(second_derivative(x), separate[0])


def test_max_pool_passes_each_gradient_to_one_pixel_on_ties():
  grad = jax.grad(lambda x: ops.max_pool(x).sum())(jnp.zeros((1, 4, 4, 2)))
  windows = grad.reshape(1, 2, 2, 2, 2, 2).sum((2, 4))
  np.testing.assert_array_equal(windows, np.ones((1, 2, 2, 2)))


@pytest.mark.parametrize('platform', ['tpu', 'gpu'])
@pytest.mark.parametrize('tasks', [1, 3])
def test_lowerings_of_accelerators_equal_those_of_cpus(platform, tasks):
  """Compares outer gradients through an inner loop, with odd image sizes."""
  r = np.random.RandomState(0)
  images = jnp.array(r.randn(tasks, 2, 7, 9, 3))
  params = jnp.array(r.randn(3, 3, 3, 4)), jnp.array(r.randn(2, 2, 4, 4))
  scale = jnp.array([1.0, -1, 2, -3]).reshape(1, 1, 1, 4)

  def loss(params, images):
    x = ops.conv(images, params[0], stride=2)
    x = ops.max_pool(jnp.sin(x), scale)
    return jnp.square(ops.conv(x, params[1], padding=0)).mean()

  @jax.checkpoint
  def inner_step(params, images):
    grads = jax.grad(loss)(params, images)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

  def outer_loss(params, images):
    params, _ = lax.scan(
      lambda params, _: (inner_step(params, images), None), params, length=2
    )
    return loss(params, images)

  def outer_gradients(params, images):
    fn = jax.value_and_grad(outer_loss)
    if tasks == 1:
      return fn(params, images[0])
    return jax.vmap(fn, (None, 0))(params, images)

  expected = jax.jit(outer_gradients)(params, images)
  with ops.lowered_as(platform):
    actual = jax.jit(outer_gradients)(params, images)
    text = jax.jit(outer_gradients).lower(params, images).as_text()
  assert ('batch_group_count = 3' in text) == (platform == 'gpu' and tasks == 3)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(
      x, y, rtol=0, atol=1e-12 * np.abs(y).max()
    ),
    actual,
    expected,
  )


def test_max_pool_picks_in_the_dtype_of_its_input():
  x = jnp.array(np.random.RandomState(0).randn(1, 4, 4, 2), jnp.bfloat16)
  scale = -jnp.ones((1, 1, 1, 2), jnp.float32)
  pooled = ops.max_pool(x, scale)
  assert pooled.dtype == jnp.bfloat16
  np.testing.assert_array_equal(
    pooled.astype(jnp.float32),
    ops.max_pool(x.astype(jnp.float32), scale),
  )
