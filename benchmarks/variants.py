"""Group `variants`: design decisions and their alternatives.

Each row times an iteration (5-way 1-shot, second order) with one decision
changed, in turn with the default program. `ratio` is the time of the variant
divided by that of the default: above 1, the default is faster. Memory is per
device. Variants of the convolution replace its lowering for CPUs.
"""

import contextlib
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import mlir

from benchmarks import workload
from benchmarks.memory import temporary_megabytes
from benchmarks.table import RangeFormat
from benchmarks.timing import (
  Settings,
  median_and_range,
  milliseconds,
  time_interleaved,
)
from benchmarks.with_jax import compile_program, fitting_mesh
from benchmarks.workload import Workload
from maml_jax import inner_loop, ops, platforms
from maml_jax.models import norm
from maml_jax.sharding import make_mesh

COLUMNS = {
  'ms': '.2f',
  'ms_variant': '.2f',
  'ratio': RangeFormat('.2f'),
  'mb': '.1f',
  'mb_variant': '.1f',
  'repeats': 'd',
}


@contextlib.contextmanager
def patched(module, name, value):
  """Replaces an attribute of a module or class within the context."""
  old = getattr(module, name)
  setattr(module, name, value)
  try:
    yield
  finally:
    setattr(module, name, old)


@contextlib.contextmanager
def patched_lowering(prim, single, default):
  """Replaces the CPU lowering of a primitive of `ops` within the context.

  Args:
    prim: the primitive.
    single: its lowering for one task.
    default: the lowering for one task to restore.
  """

  def register(single):
    tasks = ops.map_over_tasks(single)

    def impl(first, second, **kw):
      return (single if first.ndim == 4 else tasks)(first, second, **kw)

    rule = mlir.lower_fun(ops.in_float32(impl), multiple_results=False)
    mlir.register_lowering(prim, rule, platform='cpu')

  register(single)
  try:
    yield
  finally:
    register(default)


def conv_im2col(image, kernel, *, stride, padding):
  """Computes a convolution as one matrix product of patches."""
  assert stride == 1, 'ConvNet4 uses no other stride'
  size, out = kernel.shape[0], kernel.shape[-1]
  pad = ((0, 0), (padding, padding), (padding, padding), (0, 0))
  image = jnp.pad(image, pad)
  height, width = (n - size + 1 for n in image.shape[1:3])
  rows = [
    image[:, i : i + height, j : j + width]
    for i in range(size)
    for j in range(size)
  ]
  return jnp.concatenate(rows, -1) @ kernel.reshape(-1, out)


def kernel_grad_im2col(image, g, *, padding):
  """Computes the kernel gradient as matrix products of patches."""
  size = image.shape[1] + 2 * padding - g.shape[1] + 1
  pad = ((0, 0), (padding, padding), (padding, padding), (0, 0))
  image = jnp.pad(image, pad)
  height, width = g.shape[1:3]
  rows = [
    jnp.einsum('nhwc,nhwo->co', image[:, i : i + height, j : j + width], g)
    for i in range(size)
    for j in range(size)
  ]
  return jnp.stack(rows).reshape(size, size, *rows[0].shape)


def pool_after_scaling(norm_call):
  """Changes batch norm to pool its output instead of its input."""

  def call(self, x, shift=None, *, train, pool=False):
    y = norm_call(self, x, shift, train=train)
    if not pool:
      return y
    a, b, c, d = ops.window_corners(y)
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))

  return call


def bias_at_pixels(norm_call):
  """Changes batch norm to add the bias to every pixel of its input."""

  def call(self, x, shift=None, *, train, pool=False):
    if shift is not None:
      x = x + shift.reshape(1, 1, 1, -1)
    return norm_call(self, x, train=train, pool=pool)

  return call


class UnrolledLax:
  """Replaces `lax` in `inner_loop`; unrolls the scan."""

  stop_gradient = lax.stop_gradient
  scan = partial(lax.scan, unroll=True)


def patched_norm(change):
  """Returns a context in which `change` modifies the call of batch norm."""
  return patched(norm.BatchNorm, '__call__', change(norm.BatchNorm.__call__))


def variants():
  """Returns row name -> context in which the variant is built."""
  conv = partial(patched_lowering, ops.conv_p, default=ops.conv_padded_channels)
  kernel_grad = partial(
    patched_lowering, ops.kernel_grad_p, default=ops.kernel_grad_per_image
  )
  return {
    'unrolled inner loop': patched(inner_loop, 'lax', UnrolledLax),
    'all tasks at once': patched(
      platforms, 'default_tasks_per_chunk', lambda mesh: None
    ),
    'one device, threads': contextlib.nullcontext(),
    'pooling after scaling': patched_norm(pool_after_scaling),
    'bias at every pixel': patched_norm(bias_at_pixels),
    '3 channels': conv(ops.conv_direct),
    'im2col': conv(conv_im2col),
    'kernel gradient at once': kernel_grad(ops.kernel_grad_direct),
    'kernel gradient by im2col': kernel_grad(kernel_grad_im2col),
  }


def cases(settings: Settings):
  """Yields every variant."""
  for name, context in variants().items():
    yield name, partial(measure, name, context, settings)


def measure(name: str, context, settings: Settings) -> dict:
  """Times the default program and the variant in turn."""
  work = workload.tiny(Workload()) if settings.tiny else Workload()
  mesh = fitting_mesh(work.tasks)
  one_device = make_mesh(jax.devices()[:1])
  run, args = compile_program(work, mesh)
  row = {'mb': temporary_megabytes(work, one_device)}
  jax.clear_caches()
  with context:
    variant_mesh = one_device if name == 'one device, threads' else mesh
    run_variant, args_variant = compile_program(work, variant_mesh)
    row['mb_variant'] = temporary_megabytes(work, one_device)
  jax.clear_caches()
  calls = {
    'ms': partial(run, *args),
    'ms_variant': partial(run_variant, *args_variant),
  }
  times = time_interleaved(calls, settings)
  pairs = zip(times['ms'], times['ms_variant'], strict=True)
  return {
    **row,
    **milliseconds('ms', times['ms']),
    **milliseconds('ms_variant', times['ms_variant']),
    **median_and_range('ratio', [variant / base for base, variant in pairs]),
    'repeats': len(times['ms']),
  }
