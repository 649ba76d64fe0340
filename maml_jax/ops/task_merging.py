"""Runs one channelwise network for several tasks, their channels side by side.

A TPU stores the channels of an image in 128 lanes and multiplies matrices of
128 x 128. The 32 channels of one task fill a quarter of the lanes, so the
channels of four tasks are processed in the time of one:

    images     T x [N, H, W, C]  ->  [N, H, W, T * C]
    kernels    T x [k, k, C, O]  ->  [k, k, T * C, T * O], block-diagonal
    vectors    T x [C]           ->  [T * C], such as the factors of batch norm

The code of a network is that of one task. Under `vmap_merged`, `merge_channels`
returns the channels of all tasks, an array without the vmap axis, and
`split_channels` those of each task. Without `vmap_merged`, both are identities.

Both are linear and transposes of each other: the gradient for each task is that
of the sum over tasks of what the tasks return.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching

from maml_jax.types import Array

__all__ = [
  'block_diagonal',
  'merge_channels',
  'num_merged_tasks',
  'split_channels',
  'vmap_merged',
]

_AXIS = 'merged_tasks'


def vmap_merged(fn: Callable, in_axes) -> Callable:
  """Returns `jax.vmap(fn, in_axes)`, in which `merge_channels` has effect."""
  return jax.vmap(fn, in_axes, axis_name=_AXIS)


def num_merged_tasks() -> int:
  """Returns T, the number of tasks of `vmap_merged`; 1 outside of it."""
  try:
    return lax.axis_size(_AXIS)
  except NameError:
    return 1


def merge_channels(x: Array) -> Array:
  """Returns the channels of all tasks, [..., T * C], for `x` [..., C]."""
  if (num_tasks := num_merged_tasks()) == 1:
    return x
  merged = jnp.moveaxis(_stack_p.bind(x, num_tasks=num_tasks), 0, -2)
  return merged.reshape(*x.shape[:-1], -1)


def split_channels(x: Array) -> Array:
  """Returns the channels of one task, [..., C], for `x` [..., T * C]."""
  if (num_tasks := num_merged_tasks()) == 1:
    return x
  separate = x.reshape(*x.shape[:-1], num_tasks, -1)
  return _unstack_p.bind(jnp.moveaxis(separate, -2, 0))


def block_diagonal(kernel: Array) -> Array:
  """Returns the kernel of all tasks, [k, k, T * C, T * O].

  It maps the channels of each task to those of the same task.

  Args:
    kernel: [k, k, C, O], of one task.
  """
  if (num_tasks := num_merged_tasks()) == 1:
    return kernel
  size, _, c, o = kernel.shape
  blocks = _stack_p.bind(kernel, num_tasks=num_tasks)
  blocks = blocks.transpose(1, 2, 0, 3, 4)[:, :, :, :, None]
  on_diagonal = jnp.eye(num_tasks, dtype=bool).reshape(-1, 1, num_tasks, 1)
  blocks = jnp.where(on_diagonal, blocks, jnp.zeros((), kernel.dtype))
  return blocks.reshape(size, size, num_tasks * c, num_tasks * o)


# In the view of one task:
#
#   stack_p    x [...] -> [T, ...], the arrays of all tasks
#   unstack_p  x [T, ...] -> [...], the array of this task
#
# Batching removes both. Other vmap axes, inside of `vmap_merged`, are kept.


def _batch_stack(axis_data, operands, axes, *, num_tasks):
  (x,), (axis,) = operands, axes
  if axis_data.name == _AXIS:
    if axis is None:
      return jnp.broadcast_to(x, (num_tasks, *x.shape)), None
    return jnp.moveaxis(x, axis, 0), None
  stacked = _stack_p.bind(x, num_tasks=num_tasks)
  return stacked, None if axis is None else axis + 1


def _batch_unstack(axis_data, operands, axes):
  (x,), (axis,) = operands, axes
  if axis_data.name != _AXIS:
    if axis is not None:
      x = jnp.moveaxis(x, axis, 1)
    return _unstack_p.bind(x), None if axis is None else 0
  if axis is not None:
    raise ValueError('merged channels were combined with those of one task')
  return x, 0


_stack_p = Primitive('stack_tasks')
_stack_p.def_abstract_eval(
  lambda x, num_tasks: x.update(shape=(num_tasks, *x.shape))
)
ad.deflinear2(_stack_p, lambda g, x, num_tasks: [_unstack_p.bind(g)])
batching.fancy_primitive_batchers[_stack_p] = _batch_stack

_unstack_p = Primitive('unstack_tasks')
_unstack_p.def_abstract_eval(lambda x: x.update(shape=x.shape[1:]))
ad.deflinear2(
  _unstack_p, lambda g, x: [_stack_p.bind(g, num_tasks=x.aval.shape[0])]
)
batching.fancy_primitive_batchers[_unstack_p] = _batch_unstack
