"""Convolution and max pooling that stay fast and right inside meta-gradients.

Legend: N images, H x W pixels, C channels in, O channels out, k kernel size,
T tasks.

**Convolution** is bilinear, so two operations are closed under
differentiation: `conv` and the gradient of its kernel. The derivative of
either, of any order and in forward or reverse mode, is again one of the two,
and each is written as *one* convolution in the layout that every compiler
knows best (image NHWC, kernel HWIO, result NHWC). Plain automatic
differentiation of `lax.conv_general_dilated` writes kernel gradients in other
layouts, which XLA runs 15 to 30 times slower on a CPU inside a loop.

**Max pooling** selects between pairs. The gradient of `max` over a reshaped
window looks for the maximum again *by equality*, which fails without any error
when the compiler recomputes its input with other rounding; a select carries
its own mask and passes every gradient on exactly once.

This module alone decides what a backend lowers to (`_lower_each_task`) and
whether tasks are mapped or vmapped (`default_chunk`).
"""

from functools import partial

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
import jax.numpy as jnp


def conv(image, kernel, *, stride=1, padding=None):
  """2-D cross-correlation, as every deep-learning library calls convolution.

  Args:
    image: [N, H, W, C] float.
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
  return _conv_p.bind(image, kernel, stride=stride, padding=padding)


def max_pool(x):
  """The maximum of each 2 x 2 window; an odd last row or column is dropped.

  Args:
    x: [N, H, W, C].

  Returns:
    [N, H // 2, W // 2, C].
  """
  n, h, w, c = x.shape
  x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c)
  top = _larger(x[:, :, 0, :, 0], x[:, :, 0, :, 1])
  bottom = _larger(x[:, :, 1, :, 0], x[:, :, 1, :, 1])
  return _larger(top, bottom)


def _larger(a, b):
  return jnp.where(b > a, b, a)


# Two primitives. Operands may carry a leading axis of T tasks, each task with
# its own kernel; vmap puts it there.
#
#   conv_p         image [(T,) N, H, W, C], kernel [(T,) k, k, C, O]
#                  -> [(T,) N, H', W', O]
#   kernel_grad_p  image [(T,) N, H, W, C], g [(T,) N, H', W', O], stride 1
#                  -> [(T,) k, k, C, O]


def _flip(kernel):
  """The kernel of the transposed convolution: rotated by 180 degrees, C <-> O."""
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
  return _conv_p.bind(g, _flip(kernel), stride=1, padding=size - 1 - padding)


def _conv_wrt_kernel(g, image, kernel, *, stride, padding):
  size = kernel.aval.shape[-3]
  g = _spread(g, image.shape, size, stride, padding)
  return _kernel_grad_p.bind(image, g, padding=padding)


def _kernel_grad_wrt_image(kernel, image, g, *, padding):
  padding = kernel.shape[-3] - 1 - padding
  return _conv_p.bind(g, _flip(kernel), stride=1, padding=padding)


def _kernel_grad_wrt_g(kernel, image, g, *, padding):
  return _conv_p.bind(image, kernel, stride=1, padding=padding)


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


def _one_by_one(single):
  """XLA:CPU runs grouped convolutions three times slower than separate ones."""
  return lambda *operands, **kw: lax.map(
      lambda pair: single(*pair, **kw), operands
  )


def _primitive(name, single, grouped, wrt_first, wrt_second):
  """A bilinear primitive from its lowerings and its two transposes."""

  def lowered(grouped):
    def impl(first, second, **kw):
      return (single if first.ndim == 4 else grouped)(first, second, **kw)

    return impl

  def abstract_eval(*avals, **kw):
    out = jax.eval_shape(partial(lowered(grouped), **kw), *avals)
    return jax.core.ShapedArray(out.shape, out.dtype)

  def batch(operands, axes, **kw):
    size = next(
        x.shape[a] for x, a in zip(operands, axes, strict=True) if a is not None
    )
    first, second = (
        jnp.broadcast_to(x, (size, *x.shape)) if a is None
        else jnp.moveaxis(x, a, 0)
        for x, a in zip(operands, axes, strict=True)
    )
    if first.ndim == 5:
      return prim.bind(first, second, **kw), 0
    merged = (x.reshape(-1, *x.shape[2:]) for x in (first, second))
    out = prim.bind(*merged, **kw)
    return out.reshape(size, -1, *out.shape[1:]), 0

  prim = Primitive(name)
  prim.def_impl(partial(_eagerly, prim))
  prim.def_abstract_eval(abstract_eval)
  ad.defbilinear(prim, wrt_first, wrt_second)
  batching.primitive_batchers[prim] = batch
  for platform, tasks in ((None, grouped), ('cpu', _one_by_one(single))):
    mlir.register_lowering(
        prim,
        mlir.lower_fun(lowered(tasks), multiple_results=False),
        platform=platform,
    )
  return prim


@partial(jax.jit, static_argnums=0, static_argnames=('stride', 'padding'))
def _eagerly(prim, first, second, **kw):
  return prim.bind(first, second, **kw)


_conv_p = _primitive(
    'conv', _conv_single, _conv_grouped, _conv_wrt_image, _conv_wrt_kernel
)
_kernel_grad_p = _primitive(
    'conv_kernel_grad',
    _kernel_grad_single,
    _kernel_grad_grouped,
    _kernel_grad_wrt_image,
    _kernel_grad_wrt_g,
)
