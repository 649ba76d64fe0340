"""JAX primitives with one lowering per platform.

Each primitive has a default lowering and others for single platforms, chosen
where the primitive is defined. `lowered_as` runs those of another platform.

"""

import contextlib
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir

__all__ = [
  'bind',
  'bind_merged',
  'lowered_as',
  'make_primitive',
  'make_varying',
  'move_axes_to_front',
  'varying_axes',
]


def varying_axes(x):
  """Returns the mesh axes of `jax.shard_map` over which `x` varies."""
  return jax.typeof(x).manual_axis_type.varying


def make_varying(x, axes):
  """Casts `x` so that it varies over all of `axes`."""
  missing = tuple(axes - varying_axes(x))
  return lax.pcast(x, missing, to='varying') if missing else x


def bind(prim, *operands, **kw):
  """Binds a primitive after making its operands vary over the same axes."""
  axes = frozenset().union(*map(varying_axes, operands))
  return prim.bind(*(make_varying(x, axes) for x in operands), **kw)


# The lowerings of each primitive: platform -> implementation; None: default.
_LOWERINGS: dict[Primitive, dict] = {}


def make_primitive(name, default, **platforms):
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


def move_axes_to_front(operands, axes):
  """Returns the size of the vmap axis, and the operands with it in front."""
  pairs = list(zip(operands, axes, strict=True))
  count = next(x.shape[axis] for x, axis in pairs if axis is not None)
  return count, [
    jnp.broadcast_to(x, (count, *x.shape))
    if axis is None
    else jnp.moveaxis(x, axis, 0)
    for x, axis in pairs
  ]


def bind_merged(prim, count, operands, **kw):
  """Binds a primitive with the vmap axis merged into the next axis.

  Returns:
    The result with the two axes separated again, and the index of the vmap
    axis, 0, as batching rules do.
  """
  out = bind(prim, *(x.reshape(-1, *x.shape[2:]) for x in operands), **kw)
  return out.reshape(count, -1, *out.shape[1:]), 0
