"""Convolution and max pooling with fast and correct higher-order derivatives.

Legend: N images, H x W pixels, C input channels, O output channels, k kernel
size, T tasks.

**Convolution** is bilinear, so two operations are closed under
differentiation: the convolution and the gradient of its kernel. Every
derivative of either, of any order, in forward or reverse mode, is again one of
the two. Each is lowered to one convolution (on CPUs, a loop of convolutions)
in the layout that compilers optimize best (image NHWC, kernel HWIO, result
NHWC). Automatic
differentiation of `lax.conv_general_dilated` writes kernel gradients in other
layouts, which XLA runs 15 to 30 times slower on a CPU inside a loop.

**Max pooling** finds the winner of each window once and stores its position.
Picking the winners and placing gradients at their positions are linear
operations and transposes of each other. The gradient of `max` over a reshaped
window finds the maximum a second time, by equality, which fails silently if
the compiler recomputes the input with different rounding.

Each primitive has a default lowering and others for single platforms, chosen
where the primitive is defined. `lowered_as` runs those of another platform.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from maml_jax.types import Array

__all__ = [
  'conv',
  'conv_direct',
  'conv_grouped',
  'conv_p',
  'conv_padded_channels',
  'in_float32',
  'kernel_grad_batch_grouped',
  'kernel_grad_direct',
  'kernel_grad_grouped',
  'kernel_grad_p',
  'kernel_grad_per_image',
  'lowered_as',
  'map_over_tasks',
  'max_pool',
  'window_corners',
]


def conv(
  image: Array, kernel: Array, *, stride: int = 1, padding: int | None = None
) -> Array:
  """Returns the 2-D convolution (cross-correlation) of images and a kernel.

  Args:
    image: [N, H, W, C] float; products of bfloat16 are summed in float32.
    kernel: [k, k, C, O] of the same dtype.
    stride: the stride in both directions.
    padding: zeros added on each side; default k // 2, which preserves height
      and width at stride 1 if k is odd.

  Returns:
    [N, H', W', O] with H' = (H + 2 padding - k) // stride + 1.

  Raises:
    ValueError: the shapes do not match, or padding is not in 0..k-1.
  """
  size = kernel.shape[0]
  padding = size // 2 if padding is None else padding
  if image.ndim != 4 or kernel.ndim != 4 or kernel.shape[1] != size:
    raise ValueError(
      'conv expects an image [N, H, W, C] and a kernel [k, k, C, O], got '
      f'shapes {image.shape} and {kernel.shape}'
    )
  if image.shape[-1] != kernel.shape[2]:
    raise ValueError(
      f'the image has {image.shape[-1]} channels, but the kernel expects '
      f'{kernel.shape[2]}'
    )
  if not 0 <= padding < size:
    raise ValueError(f'padding must be in 0..{size - 1}, got {padding}')
  if size == 1 and stride > 1:
    image, stride = image[:, ::stride, ::stride], 1
  return _bind(conv_p, image, kernel, stride=stride, padding=padding)


def max_pool(x: Array, scale: Array | None = None) -> Array:
  """Returns the pixel of each 2 x 2 window at which `scale * x` is largest.

  `scale * max_pool(x, scale) + bias` is the maximum of `scale * x + bias`, for
  a quarter of the arithmetic. Ties are resolved in favor of the first pixel.

  Args:
    x: [N, H, W, C]; an odd last row or column is dropped.
    scale: [1 or N, 1, 1, C]; only its sign matters; default 1.

  Returns:
    [N, H // 2, W // 2, C], values of `x`.
  """
  compared = lax.stop_gradient(x)
  if scale is not None:
    sign = jnp.sign(lax.stop_gradient(scale))
    compared = compared * sign.astype(x.dtype)
  return _bind(_pick_p, x, _bind(_winner_p, compared), size=x.shape[1:3])


def _varying_axes(x):
  """Returns the mesh axes of `jax.shard_map` over which `x` varies."""
  return jax.typeof(x).manual_axis_type.varying


def _make_varying(x, axes):
  """Casts `x` so that it varies over all of `axes`."""
  missing = tuple(axes - _varying_axes(x))
  return lax.pcast(x, missing, to='varying') if missing else x


def _bind(prim, *operands, **kw):
  """Binds a primitive after making its operands vary over the same axes."""
  axes = frozenset().union(*map(_varying_axes, operands))
  return prim.bind(*(_make_varying(x, axes) for x in operands), **kw)


# The lowerings of each primitive: platform -> implementation; None: default.
_LOWERINGS: dict[Primitive, dict] = {}


def _make_primitive(name, default, **platforms):
  """Returns a primitive without derivatives.

  Args:
    name: the name of the primitive, also a scope in profiles.
    default: the lowering for all platforms that are not named.
    **platforms: other lowerings, by platform: cpu, gpu or tpu.
  """

  def abstract_eval(*operands, **kw):
    out = jax.eval_shape(partial(default, **kw), *operands)
    return operands[0].update(shape=out.shape, dtype=out.dtype)

  prim = Primitive(name)
  prim.def_impl(default)
  prim.def_abstract_eval(abstract_eval)
  _LOWERINGS[prim] = {None: default, **platforms}
  for platform, impl in _LOWERINGS[prim].items():
    _register_lowering(prim, impl, platform)
  return prim


def _register_lowering(prim, impl, platform):
  impl = jax.named_scope(prim.name)(impl)
  rule = mlir.lower_fun(impl, multiple_results=False)
  mlir.register_lowering(prim, rule, platform=platform)


@contextlib.contextmanager
def lowered_as(platform: str) -> Iterator[None]:
  """Compiles convolution and pooling on CPUs as for another platform.

  This is for tests and benchmarks: the results are the same up to rounding.

  Args:
    platform: cpu, gpu or tpu.
  """
  for prim, lowerings in _LOWERINGS.items():
    impl = lowerings.get(platform, lowerings[None])
    _register_lowering(prim, impl, 'cpu')
  jax.clear_caches()
  try:
    yield
  finally:
    for prim, lowerings in _LOWERINGS.items():
      _register_lowering(prim, lowerings.get('cpu', lowerings[None]), 'cpu')
    jax.clear_caches()


def _move_axes_to_front(operands, axes):
  """Returns the size of the vmap axis, and the operands with it in front."""
  pairs = list(zip(operands, axes, strict=True))
  count = next(x.shape[axis] for x, axis in pairs if axis is not None)
  return count, [
    jnp.broadcast_to(x, (count, *x.shape))
    if axis is None
    else jnp.moveaxis(x, axis, 0)
    for x, axis in pairs
  ]


def _bind_merged(prim, count, operands, **kw):
  """Binds a primitive with the vmap axis merged into the next axis.

  Returns:
    The result with the two axes separated again, and the index of the vmap
    axis, 0, as batching rules do.
  """
  out = _bind(prim, *(x.reshape(-1, *x.shape[2:]) for x in operands), **kw)
  return out.reshape(count, -1, *out.shape[1:]), 0


# Pooling. A winner is 0 (top left), 1 (top right), 2 (bottom left) or 3 (bottom
# right). pick_p and place_p are linear in their first operand.
#
#   winner_p  x [N, H, W, C] -> [N, H//2, W//2, C] int8
#   pick_p    x [N, H, W, C], winner -> [N, H//2, W//2, C]
#   place_p   g [N, H//2, W//2, C], winner -> [N, H, W, C], zero elsewhere
#
# CPUs and GPUs reshape images to windows. On TPUs, where the last two axes are
# stored in tiles, strided slices and interior padding are much faster.


def window_corners(x: Array) -> list[Array]:
  """Returns the pixels of each 2 x 2 window of `x` [N, H, W, C].

  Returns:
    Four arrays [N, H // 2, W // 2, C]: top left, top right, bottom left and
    bottom right. An odd last row or column is dropped.
  """
  n, h, w, c = x.shape
  x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c)
  return [x[:, :, i, :, j] for i in (0, 1) for j in (0, 1)]


def _strided_corners(x):
  """Returns `window_corners(x)`, by strided slices."""
  n, h, w, c = x.shape
  return [
    lax.slice(x, (0, i, j, 0), (n, h // 2 * 2, w // 2 * 2, c), (1, 2, 2, 1))
    for i in (0, 1)
    for j in (0, 1)
  ]


def _find_winner(x, *, corners=window_corners):
  """Returns the position of the maximum of each window: int8, 0..3."""
  a, b, c, d = corners(x)
  top_column, bottom_column = b > a, d > c
  row = jnp.where(bottom_column, d, c) > jnp.where(top_column, b, a)
  column = jnp.where(row, bottom_column, top_column)
  return 2 * row.astype(jnp.int8) + column.astype(jnp.int8)


def _pick(x, winner, *, size, corners=window_corners):
  """Returns the pixels at the positions `winner`; `size` is unused."""
  del size
  a, b, c, d = corners(x)
  bottom = jnp.where(winner == 2, c, d)
  return jnp.where(winner < 2, jnp.where(winner == 0, a, b), bottom)


def _place(g, winner, *, size):
  """Returns an image of height and width `size` with `g` at the winners."""
  n, h, w, c = g.shape
  position = jnp.arange(4, dtype=winner.dtype).reshape(1, 1, 2, 1, 2, 1)
  is_winner = winner[:, :, None, :, None] == position
  x = jnp.where(is_winner, g[:, :, None, :, None], jnp.zeros((), g.dtype))
  x = x.reshape(n, 2 * h, 2 * w, c)
  rows, columns = size[0] - 2 * h, size[1] - 2 * w
  return jnp.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0)))


def _place_by_padding(g, winner, *, size):
  """Returns `_place(g, winner, size=size)`, by interior padding."""
  zero = jnp.zeros((), g.dtype)

  def place_corner(i, j):
    padding = [
      (offset, n - offset - (2 * m - 1), 1)
      for offset, n, m in zip((i, j), size, g.shape[1:3], strict=True)
    ]
    part = jnp.where(winner == 2 * i + j, g, zero)
    return lax.pad(part, zero, [(0, 0, 0), *padding, (0, 0, 0)])

  top = place_corner(0, 0) + place_corner(0, 1)
  return top + (place_corner(1, 0) + place_corner(1, 1))


def _make_pooling_primitive(name, impl, tpu):
  """Returns a primitive that is linear in its first operand, if it has two."""

  def jvp(primals, tangents, **kw):
    out = _bind(prim, *primals, **kw)
    if len(primals) == 1 or type(tangents[0]) is ad.Zero:
      zero: Any = ad.Zero  # whose type lacks the method
      return out, zero.from_primal_value(out)
    return out, _bind(prim, tangents[0], primals[1], **kw)

  def batch(operands, axes, **kw):
    return _bind_merged(prim, *_move_axes_to_front(operands, axes), **kw)

  prim = _make_primitive(name, impl, tpu=tpu)
  ad.primitive_jvps[prim] = jvp
  batching.primitive_batchers[prim] = batch
  return prim


def _set_transpose(prim, other):
  """Registers `other` as the transpose of `prim` in its first operand."""

  def rule(ct, first, winner, **kw):
    if type(ct) is ad.Zero:
      return ad.Zero(first.aval), None
    return _bind(other, ct, winner, **kw), None

  ad.primitive_transposes[prim] = rule


_winner_p = _make_pooling_primitive(
  'max_pool_winner',
  _find_winner,
  tpu=partial(_find_winner, corners=_strided_corners),
)
_pick_p = _make_pooling_primitive(
  'max_pool_pick', _pick, tpu=partial(_pick, corners=_strided_corners)
)
_place_p = _make_pooling_primitive(
  'max_pool_place', _place, tpu=_place_by_padding
)
_set_transpose(_pick_p, _place_p)
_set_transpose(_place_p, _pick_p)


# Convolution. Operands may have a leading axis of T tasks with one kernel per
# task; it is added by vmap.
#
#   conv_p         image [(T,) N, H, W, C], kernel [(T,) k, k, C, O]
#                  -> [(T,) N, H', W', O]
#   kernel_grad_p  image [(T,) N, H, W, C], g [(T,) N, H', W', O], stride 1
#                  -> [(T,) k, k, C, O]


def _flip_kernel(kernel):
  """Returns the kernel of the transposed convolution: rotated, C <-> O."""
  return jnp.flip(kernel, (-4, -3)).swapaxes(-2, -1)


def _undo_stride(g, image_shape, size, stride, padding):
  """Inserts zeros between and after the pixels of `g`, as for stride 1.

  Args:
    g: the gradient of the result of a strided convolution.
    image_shape: the shape of the image that was convolved.
    size: k.
    stride: the stride of the convolution.
    padding: the padding of the convolution.
  """
  if stride == 1:
    return g
  padding_config = [(0, 0, 0)] * g.ndim
  for axis in (-3, -2):
    unused_pixels = (image_shape[axis] + 2 * padding - size) % stride
    padding_config[axis] = (0, unused_pixels, stride - 1)
  return lax.pad(g, jnp.zeros((), g.dtype), padding_config)


# The transposes of both primitives with respect to each operand.


def _conv_wrt_image(g, image, kernel, *, stride, padding):
  size = kernel.shape[-3]
  g = _undo_stride(g, image.aval.shape, size, stride, padding)
  return _bind(
    conv_p, g, _flip_kernel(kernel), stride=1, padding=size - 1 - padding
  )


def _conv_wrt_kernel(g, image, kernel, *, stride, padding):
  size = kernel.aval.shape[-3]
  g = _undo_stride(g, image.shape, size, stride, padding)
  return _bind(kernel_grad_p, image, g, padding=padding)


def _kernel_grad_wrt_image(kernel, image, g, *, padding):
  padding = kernel.shape[-3] - 1 - padding
  return _bind(conv_p, g, _flip_kernel(kernel), stride=1, padding=padding)


def _kernel_grad_wrt_g(kernel, image, g, *, padding):
  return _bind(conv_p, image, kernel, stride=1, padding=padding)


def _conv_nhwc(image, kernel, stride, padding, groups=1, batch_groups=1):
  return lax.conv_general_dilated(
    image,
    kernel,
    (stride, stride),
    [(padding, padding)] * 2,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=groups,
    batch_group_count=batch_groups,
  )


def conv_direct(
  image: Array, kernel: Array, *, stride: int, padding: int
) -> Array:
  """Lowers `conv_p` for one task to `lax.conv_general_dilated`."""
  return _conv_nhwc(image, kernel, stride, padding)


def conv_padded_channels(
  image: Array, kernel: Array, *, stride: int, padding: int
) -> Array:
  """Lowers `conv_p` for one task, with C padded to a multiple of 4.

  This is up to 3 times faster on CPUs for images with 3 channels.
  """
  channels = image.shape[-1]
  missing = -channels % 4 if channels > 1 else 0
  image = jnp.pad(image, ((0, 0),) * 3 + ((0, missing),))
  kernel = jnp.pad(kernel, ((0, 0),) * 2 + ((0, missing), (0, 0)))
  return _conv_nhwc(image, kernel, stride, padding)


def kernel_grad_direct(image: Array, g: Array, *, padding: int) -> Array:
  """Lowers `kernel_grad_p` for one task to one convolution.

  Its batch axis is C and its channel axis is N.
  """
  return _conv_nhwc(
    image.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3), 1, padding
  ).transpose(1, 2, 0, 3)


def conv_grouped(
  image: Array, kernel: Array, *, stride: int, padding: int
) -> Array:
  """Lowers `conv_p` for T tasks to one convolution with T groups."""
  t, n, h, w, c = image.shape
  image = jnp.moveaxis(image, 0, 3).reshape(n, h, w, t * c)
  kernel = jnp.moveaxis(kernel, 0, 3).reshape(*kernel.shape[1:4], -1)
  out = _conv_nhwc(image, kernel, stride, padding, groups=t)
  return jnp.moveaxis(out.reshape(*out.shape[:3], t, -1), 3, 0)


def kernel_grad_grouped(image: Array, g: Array, *, padding: int) -> Array:
  """Lowers `kernel_grad_p` for T tasks to one convolution with T groups."""
  t, n, h, w, c = image.shape
  image = image.transpose(4, 2, 3, 0, 1).reshape(c, h, w, t * n)
  g = g.transpose(2, 3, 1, 0, 4).reshape(*g.shape[2:4], n, -1)
  out = _conv_nhwc(image, g, 1, padding, groups=t)
  return out.reshape(*out.shape[:3], t, -1).transpose(3, 1, 2, 0, 4)


def kernel_grad_batch_grouped(image: Array, g: Array, *, padding: int) -> Array:
  """Lowers `kernel_grad_p` for T tasks to one convolution of T batch groups.

  XLA runs this as the backward-filter function of cuDNN, which it does not for
  a convolution with feature groups.
  """
  t, n, h, w, c = image.shape
  image = image.transpose(0, 4, 2, 3, 1).reshape(t * c, h, w, n)
  g = g.transpose(2, 3, 1, 0, 4).reshape(*g.shape[2:4], n, -1)
  out = _conv_nhwc(image, g, 1, padding, batch_groups=t)
  return out.reshape(*out.shape[:3], t, -1).transpose(3, 1, 2, 0, 4)


def kernel_grad_per_image(image: Array, g: Array, *, padding: int) -> Array:
  """Lowers `kernel_grad_p` for one task to a loop over the images.

  This is faster on CPUs because the images are not transposed.
  """

  def add(total, pair):
    image, g = (x[None] for x in pair)
    return total + kernel_grad_direct(image, g, padding=padding), None

  size = image.shape[1] + 2 * padding - g.shape[1] + 1
  zero = jnp.zeros((size, size, image.shape[-1], g.shape[-1]), image.dtype)
  return lax.scan(add, _make_varying(zero, _varying_axes(image)), (image, g))[0]


def map_over_tasks(lowering: Callable) -> Callable:
  """Returns the lowering for T tasks that runs `lowering` on each in turn.

  XLA runs grouped convolutions on CPUs 3 times slower than separate ones.
  """

  def run(*operands, **kw):
    return lax.map(lambda pair: lowering(*pair, **kw), operands)

  return run


def in_float32(lowering: Callable) -> Callable:
  """Returns a lowering that computes narrower dtypes in float32.

  CPUs are slow at convolving narrower dtypes. Operands and result are rounded
  explicitly because XLA omits a conversion to a narrower dtype and back.
  """

  def run(*operands, **kw):
    dtype = operands[0].dtype
    info = jnp.finfo(dtype)
    if info.bits >= 32:
      return lowering(*operands, **kw)

    def round_in_float32(x):
      x = x.astype(jnp.float32)
      return lax.reduce_precision(x, info.nexp, info.nmant)

    out = lowering(*map(round_in_float32, operands), **kw)
    return round_in_float32(out).astype(dtype)

  return run


def _make_conv_primitive(name, wrt_first, wrt_second, default, **platforms):
  """Returns a bilinear primitive.

  Args:
    name: the name of the primitive.
    wrt_first: the transpose with respect to the first operand.
    wrt_second: the transpose with respect to the second operand.
    default: the lowerings without and with the axis T, for all platforms that
      are not named.
    **platforms: other such pairs, by platform.
  """

  def select_by_rank(lowerings):
    one_task, tasks = lowerings

    def run(first, second, **kw):
      lowering = one_task if first.ndim == 4 else tasks
      return lowering(first, second, **kw)

    return run

  def batch(operands, axes, **kw):
    count, operands = _move_axes_to_front(operands, axes)
    if operands[0].ndim == 5:
      return _bind(prim, *operands, **kw), 0
    return _bind_merged(prim, count, operands, **kw)

  prim = _make_primitive(
    name,
    select_by_rank(default),
    **{key: select_by_rank(pair) for key, pair in platforms.items()},
  )
  ad.defbilinear(prim, wrt_first, wrt_second)
  batching.primitive_batchers[prim] = batch
  return prim


def _for_cpu(lowering):
  """Returns the CPU lowerings of a primitive without and with the axis T."""
  return in_float32(lowering), in_float32(map_over_tasks(lowering))


conv_p = _make_conv_primitive(
  'conv',
  _conv_wrt_image,
  _conv_wrt_kernel,
  default=(conv_direct, conv_grouped),
  cpu=_for_cpu(conv_padded_channels),
)
kernel_grad_p = _make_conv_primitive(
  'conv_kernel_grad',
  _kernel_grad_wrt_image,
  _kernel_grad_wrt_g,
  default=(kernel_grad_direct, kernel_grad_grouped),
  cpu=_for_cpu(kernel_grad_per_image),
  gpu=(kernel_grad_direct, kernel_grad_batch_grouped),
)
