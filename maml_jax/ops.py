"""Convolution and max pooling that stay fast and right inside meta-gradients.

Legend: N images, H x W pixels, C channels in, O channels out, k kernel size,
T tasks.

**Convolution** is bilinear, so two operations are closed under
differentiation: the convolution and the gradient of its kernel. A derivative
of either, of any order, in forward or reverse mode, is again one of the two,
and each is written as *one* convolution in the layout that every compiler
knows best (image NHWC, kernel HWIO, result NHWC). Plain automatic
differentiation of `lax.conv_general_dilated` writes kernel gradients in other
layouts, which XLA runs 15 to 30 times slower on a CPU inside a loop.

**Max pooling** finds the winner of each window once and remembers *where* it
was. Picking the winners out and placing gradients back are linear and each the
other's transpose. The gradient of `max` over a reshaped window looks for the
maximum again *by equality* instead, which fails without any error when the
compiler recomputes its input with other rounding.

This module alone decides what a backend lowers to (the two calls of
`_convolution`) and whether tasks are mapped or vectorised (`default_chunk`).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def conv(image, kernel, *, stride=1, padding=None):
  """2-D cross-correlation, as every deep-learning library calls convolution.

  Args:
    image: [N, H, W, C] float; products of bfloat16 are summed in float32.
    kernel: [k, k, C, O], the same float type.
    stride: step between output pixels, in both directions.
    padding: zeros added on each side; default k // 2, which keeps the size of
      the image at stride 1.

  Returns:
    [N, H', W', O] with H' = (H + 2 padding - k) // stride + 1.

  Raises:
    ValueError: the shapes do not fit, or padding is not in 0..k-1.
  """
  size = kernel.shape[0]
  padding = size // 2 if padding is None else padding
  if image.ndim != 4 or kernel.ndim != 4 or kernel.shape[1] != size:
    raise ValueError(
      'conv takes an image [N, H, W, C] and a kernel [k, k, C, O], got '
      f'{image.shape} and {kernel.shape}'
    )
  if image.shape[-1] != kernel.shape[2]:
    raise ValueError(
      f'the image has {image.shape[-1]} channels, the kernel takes '
      f'{kernel.shape[2]}'
    )
  if not 0 <= padding < size:
    raise ValueError(f'padding must be in 0..{size - 1}, got {padding}')
  if size == 1 and stride > 1:
    image, stride = image[:, ::stride, ::stride], 1
  return _bind(_conv_p, image, kernel, stride=stride, padding=padding)


def max_pool(x, scale=None):
  """The pixel of each 2 x 2 window at which `scale * x` is largest.

  So `scale * max_pool(x, scale) + bias` is the maximum of `scale * x + bias`,
  for a quarter of the arithmetic. The winner of equals is the first of them.

  Args:
    x: [N, H, W, C]; an odd last row or column is dropped.
    scale: [1 or N, 1, 1, C], of which only the sign matters; default 1.

  Returns:
    [N, H // 2, W // 2, C], values of `x`.
  """
  compared = lax.stop_gradient(x)
  if scale is not None:
    compared = compared * jnp.sign(lax.stop_gradient(scale))
  return _bind(_pick_p, x, _winner(compared), size=x.shape[1:3])


def default_chunk():
  """Tasks vectorised at a time on one device; None: all of them.

  A CPU runs the kernels of several tasks one after another anyway, and faster
  from a small memory; an accelerator needs the work of all at once.
  """
  return 1 if jax.default_backend() == 'cpu' else None


def _varying(x):
  """The axes of a `jax.shard_map` over which `x` varies."""
  return jax.typeof(x).manual_axis_type.varying


def _vary(x, axes):
  """Lets `x` vary over all of `axes`."""
  missing = tuple(axes - _varying(x))
  return lax.pcast(x, missing, to='varying') if missing else x


def _bind(prim, *operands, **kw):
  """Binds operands that vary over the same axes."""
  axes = frozenset().union(*map(_varying, operands))
  return prim.bind(*(_vary(x, axes) for x in operands), **kw)


def _primitive(name, default, cpu):
  """A primitive of two operands from its lowerings, not yet differentiable."""

  def abstract_eval(first, second, **kw):
    out = jax.eval_shape(partial(default, **kw), first, second)
    return first.update(shape=out.shape, dtype=out.dtype)

  prim = Primitive(name)
  prim.def_impl(default)
  prim.def_abstract_eval(abstract_eval)
  for platform, impl in ((None, default), ('cpu', cpu)):
    rule = mlir.lower_fun(impl, multiple_results=False)
    mlir.register_lowering(prim, rule, platform=platform)
  return prim


def _leading(operands, axes):
  """The length of the axis that vmap adds, and the operands, it in front."""
  pairs = list(zip(operands, axes, strict=True))
  count = next(x.shape[axis] for x, axis in pairs if axis is not None)
  return count, [
    jnp.broadcast_to(x, (count, *x.shape))
    if axis is None
    else jnp.moveaxis(x, axis, 0)
    for x, axis in pairs
  ]


def _merged(prim, count, operands, **kw):
  """Binds operands whose first two axes are made one, and parts them again."""
  out = _bind(prim, *(x.reshape(-1, *x.shape[2:]) for x in operands), **kw)
  return out.reshape(count, -1, *out.shape[1:]), 0


# Pooling. A winner is one of 0..3: top left, top right, bottom left, bottom
# right. Both primitives are linear in their first operand.
#
#   pick_p   x [N, H, W, C], winner [N, H//2, W//2, C] int8
#            -> [N, H//2, W//2, C]
#   place_p  g [N, H//2, W//2, C], winner -> [N, H, W, C], zero elsewhere


def _corners(x):
  n, h, w, c = x.shape
  x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c)
  return [x[:, :, i, :, j] for i in (0, 1) for j in (0, 1)]


def _winner(x):
  a, b, c, d = _corners(x)
  right_above, right_below = b > a, d > c
  below = jnp.where(right_below, d, c) > jnp.where(right_above, b, a)
  column = jnp.where(below, right_below, right_above)
  return 2 * below.astype(jnp.int8) + column.astype(jnp.int8)


def _pick(x, winner, *, size):
  del size
  a, b, c, d = _corners(x)
  below = jnp.where(winner == 2, c, d)
  return jnp.where(winner < 2, jnp.where(winner == 0, a, b), below)


def _place(g, winner, *, size):
  n, h, w, c = g.shape
  corner = jnp.arange(4, dtype=winner.dtype).reshape(1, 1, 2, 1, 2, 1)
  hit = winner[:, :, None, :, None] == corner
  x = jnp.where(hit, g[:, :, None, :, None], jnp.zeros((), g.dtype))
  x = x.reshape(n, 2 * h, 2 * w, c)
  rest = (size[0] - 2 * h, size[1] - 2 * w)
  return jnp.pad(x, ((0, 0), (0, rest[0]), (0, rest[1]), (0, 0)))


def _pooling(name, impl):
  """A primitive that is linear in its first operand."""

  def jvp(primals, tangents, **kw):
    out = _bind(prim, *primals, **kw)
    if type(tangents[0]) is ad.Zero:
      return out, ad.Zero.from_primal_value(out)
    return out, _bind(prim, tangents[0], primals[1], **kw)

  def batch(operands, axes, **kw):
    return _merged(prim, *_leading(operands, axes), **kw)

  prim = _primitive(name, impl, impl)
  ad.primitive_jvps[prim] = jvp
  batching.primitive_batchers[prim] = batch
  return prim


def _transpose(prim, other):
  """Makes `other` the transpose of `prim` in its first operand."""

  def rule(ct, first, winner, **kw):
    if type(ct) is ad.Zero:
      return ad.Zero(first.aval), None
    return _bind(other, ct, winner, **kw), None

  ad.primitive_transposes[prim] = rule


_pick_p = _pooling('max_pool_pick', _pick)
_place_p = _pooling('max_pool_place', _place)
_transpose(_pick_p, _place_p)
_transpose(_place_p, _pick_p)


# Convolution. Operands may carry a leading axis of T tasks, each task with its
# own kernel; vmap puts it there.
#
#   conv_p         image [(T,) N, H, W, C], kernel [(T,) k, k, C, O]
#                  -> [(T,) N, H', W', O]
#   kernel_grad_p  image [(T,) N, H, W, C], g [(T,) N, H', W', O], stride 1
#                  -> [(T,) k, k, C, O]


def _flip(kernel):
  """The kernel of the transposed convolution: turned around, C <-> O."""
  return jnp.flip(kernel, (-4, -3)).swapaxes(-2, -1)


def _spread(g, image_shape, size, stride, padding):
  """Undoes a stride: zeros between, and behind, the pixels of `g`."""
  if stride == 1:
    return g
  config = [(0, 0, 0)] * g.ndim
  for axis in (-3, -2):
    rest = (image_shape[axis] + 2 * padding - size) % stride
    config[axis] = (0, rest, stride - 1)
  return lax.pad(g, jnp.zeros((), g.dtype), config)


def _conv_wrt_image(g, image, kernel, *, stride, padding):
  size = kernel.shape[-3]
  g = _spread(g, image.aval.shape, size, stride, padding)
  return _bind(_conv_p, g, _flip(kernel), stride=1, padding=size - 1 - padding)


def _conv_wrt_kernel(g, image, kernel, *, stride, padding):
  size = kernel.aval.shape[-3]
  g = _spread(g, image.shape, size, stride, padding)
  return _bind(_kernel_grad_p, image, g, padding=padding)


def _kernel_grad_wrt_image(kernel, image, g, *, padding):
  padding = kernel.shape[-3] - 1 - padding
  return _bind(_conv_p, g, _flip(kernel), stride=1, padding=padding)


def _kernel_grad_wrt_g(kernel, image, g, *, padding):
  return _bind(_conv_p, image, kernel, stride=1, padding=padding)


def _canonical(image, kernel, stride, padding, groups=1):
  return lax.conv_general_dilated(
    image,
    kernel,
    (stride, stride),
    [(padding, padding)] * 2,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=groups,
  )


def _conv_single(image, kernel, *, stride, padding):
  return _canonical(image, kernel, stride, padding)


def _conv_in_fours(image, kernel, *, stride, padding):
  """With colours filled up to 4 channels: up to 3 times faster on a CPU."""
  channels = image.shape[-1]
  rest = -channels % 4 if channels > 1 else 0
  image = jnp.pad(image, ((0, 0),) * 3 + ((0, rest),))
  kernel = jnp.pad(kernel, ((0, 0),) * 2 + ((0, rest), (0, 0)))
  return _canonical(image, kernel, stride, padding)


def _kernel_grad_single(image, g, *, padding):
  # Channels take the part of the images, and images that of the channels.
  return _canonical(
    image.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3), 1, padding
  ).transpose(1, 2, 0, 3)


def _conv_grouped(image, kernel, *, stride, padding):
  t, n, h, w, c = image.shape
  image = jnp.moveaxis(image, 0, 3).reshape(n, h, w, t * c)
  kernel = jnp.moveaxis(kernel, 0, 3).reshape(*kernel.shape[1:4], -1)
  out = _canonical(image, kernel, stride, padding, groups=t)
  return jnp.moveaxis(out.reshape(*out.shape[:3], t, -1), 3, 0)


def _kernel_grad_grouped(image, g, *, padding):
  t, n, h, w, c = image.shape
  image = image.transpose(4, 2, 3, 0, 1).reshape(c, h, w, t * n)
  g = g.transpose(2, 3, 1, 0, 4).reshape(*g.shape[2:4], n, -1)
  out = _canonical(image, g, 1, padding, groups=t)
  return out.reshape(*out.shape[:3], t, -1).transpose(3, 1, 2, 0, 4)


def _kernel_grad_by_image(image, g, *, padding):
  """One image at a time: faster on a CPU, which else transposes all of them."""

  def add(total, pair):
    one, g_one = (x[None] for x in pair)
    return total + _kernel_grad_single(one, g_one, padding=padding), None

  size = image.shape[1] + 2 * padding - g.shape[1] + 1
  zero = jnp.zeros((size, size, image.shape[-1], g.shape[-1]), image.dtype)
  return lax.scan(add, _vary(zero, _varying(image)), (image, g))[0]


def _one_by_one(single):
  """XLA:CPU runs grouped convolutions three times slower than separate ones."""

  def impl(*operands, **kw):
    return lax.map(lambda pair: single(*pair, **kw), operands)

  return impl


def _widened(impl):
  """In float32 what is narrower: a CPU convolves nothing else fast.

  Operands and result are rounded in so many words: XLA leaves the rounding out
  where it widens a number again.
  """

  def run(*operands, **kw):
    dtype = operands[0].dtype
    info = jnp.finfo(dtype)
    if info.bits >= 32:
      return impl(*operands, **kw)

    def rounded(x):
      wide = x.astype(jnp.float32)
      return lax.reduce_precision(wide, info.nexp, info.nmant)

    return rounded(impl(*map(rounded, operands), **kw)).astype(dtype)

  return run


def _convolution(name, default, cpu, wrt_first, wrt_second):
  """A bilinear primitive from its lowerings and its two transposes.

  `default` and `cpu` are each a pair: what runs without and with the axis T.
  """

  def by_rank(single, tasks):
    return lambda first, second, **kw: (single if first.ndim == 4 else tasks)(
      first, second, **kw
    )

  def batch(operands, axes, **kw):
    count, operands = _leading(operands, axes)
    if operands[0].ndim == 5:
      return _bind(prim, *operands, **kw), 0
    return _merged(prim, count, operands, **kw)

  prim = _primitive(name, by_rank(*default), _widened(by_rank(*cpu)))
  ad.defbilinear(prim, wrt_first, wrt_second)
  batching.primitive_batchers[prim] = batch
  return prim


_conv_p = _convolution(
  'conv',
  (_conv_single, _conv_grouped),
  (_conv_in_fours, _one_by_one(_conv_in_fours)),
  _conv_wrt_image,
  _conv_wrt_kernel,
)
_kernel_grad_p = _convolution(
  'conv_kernel_grad',
  (_kernel_grad_single, _kernel_grad_grouped),
  (_kernel_grad_by_image, _one_by_one(_kernel_grad_by_image)),
  _kernel_grad_wrt_image,
  _kernel_grad_wrt_g,
)
