"""Group `variants`: what was chosen, against what was not.

Each row is an iteration (5-way 1-shot, second order) with one decision taken
otherwise, in turn with the shipped one: `ratio` above 1 means that the shipped
one is faster. Memory is that of one device. Variants of the convolution are
those of its CPU lowering.
"""

import contextlib
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import mlir

from benchmarks import workload
from benchmarks.measure import Settings, in_turn, milliseconds, spread
from benchmarks.table import Ranged
from benchmarks.with_jax import compiled, fitting_mesh
from benchmarks.workload import Workload
from maml_jax import inner_loop, ops, sharding
from maml_jax.models import norm
from maml_jax.sharding import make_mesh

COLUMNS = {
  'ms': '.2f',
  'ms_variant': '.2f',
  'ratio': Ranged('.2f'),
  'mb': '.1f',
  'mb_variant': '.1f',
  'repeats': 'd',
}


@contextlib.contextmanager
def replaced(module, name, value):
  """A name of a module, otherwise."""
  old = getattr(module, name)
  setattr(module, name, value)
  try:
    yield
  finally:
    setattr(module, name, old)


@contextlib.contextmanager
def lowered(prim, single, shipped):
  """A primitive of `ops`, otherwise on a CPU."""

  def register(single):
    tasks = ops._one_by_one(single)

    def impl(first, second, **kw):
      return (single if first.ndim == 4 else tasks)(first, second, **kw)

    rule = mlir.lower_fun(ops._widened(impl), multiple_results=False)
    mlir.register_lowering(prim, rule, platform='cpu')

  register(single)
  try:
    yield
  finally:
    register(shipped)


def patches(image, kernel, *, stride, padding):
  """Convolution as one matrix product of patches."""
  assert stride == 1, 'as everywhere in ConvNet4'
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


def patches_kernel_grad(image, g, *, padding):
  """The gradient of the kernel as one matrix product of patches."""
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
  """Batch norm whose maxima are taken of its result, pair by pair."""

  def call(self, x, shift=None, *, train, pool=False):
    y = norm_call(self, x, shift, train=train)
    if not pool:
      return y
    a, b, c, d = ops._corners(y)
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))

  return call


def shift_at_pixels(norm_call):
  """Batch norm of an image to which the bias has been added."""

  def call(self, x, shift=None, *, train, pool=False):
    if shift is not None:
      x = x + shift.reshape(1, 1, 1, -1)
    return norm_call(self, x, train=train, pool=pool)

  return call


class Unrolled:
  """Stands in for `lax` in `inner`."""

  stop_gradient = lax.stop_gradient
  scan = partial(lax.scan, unroll=True)


def patched_norm(change):
  """Batch norm, otherwise."""
  return replaced(norm.BatchNorm, '__call__', change(norm.BatchNorm.__call__))


def variants():
  """Row name -> a context in which a program is built otherwise."""
  conv = partial(lowered, ops._conv_p, shipped=ops._conv_in_fours)
  grad = partial(lowered, ops._kernel_grad_p, shipped=ops._kernel_grad_by_image)
  return {
    'unrolled inner loop': replaced(inner_loop, 'lax', Unrolled),
    'all tasks at once': replaced(
      sharding, 'default_tasks_per_chunk', lambda: None
    ),
    'threads, one device': contextlib.nullcontext(),
    'maxima after scaling': patched_norm(pool_after_scaling),
    'bias at every pixel': patched_norm(shift_at_pixels),
    '3 channels': conv(ops._conv_single),
    'patches': conv(patches),
    'kernel gradient at once': grad(ops._kernel_grad_single),
    'kernel gradient by patches': grad(patches_kernel_grad),
  }


def cases(settings: Settings):
  """Every variant."""
  for name, context in variants().items():
    yield name, partial(measure, name, context, settings)


def measure(name: str, context, settings: Settings) -> dict:
  """Times the shipped iteration and the variant in turn."""
  work = workload.tiny(Workload()) if settings.tiny else Workload()
  mesh = fitting_mesh(work.tasks)
  one = make_mesh(jax.devices()[:1])
  run, args = compiled(work, mesh)
  row = {'mb': megabytes(work, one)}
  jax.clear_caches()
  with context:
    other = one if name.startswith('threads') else mesh
    run_variant, args_variant = compiled(work, other)
    row['mb_variant'] = megabytes(work, one)
  jax.clear_caches()
  calls = {
    'ms': partial(run, *args),
    'ms_variant': partial(run_variant, *args_variant),
  }
  times = in_turn(calls, settings)
  pairs = zip(times['ms'], times['ms_variant'], strict=True)
  return {
    **row,
    **milliseconds('ms', times['ms']),
    **milliseconds('ms_variant', times['ms_variant']),
    **spread('ratio', [variant / shipped for shipped, variant in pairs]),
    'repeats': len(times['ms']),
  }


def megabytes(work: Workload, mesh) -> float:
  """Temporary memory of one iteration on one device."""
  run, _ = compiled(work, mesh)
  return run.memory_analysis().temp_size_in_bytes / 1e6
