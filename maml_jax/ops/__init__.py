"""Convolution and max pooling with fast, correct higher-order derivatives."""

from maml_jax.ops.convolution import (
  conv,
  conv_direct,
  conv_grouped,
  conv_p,
  conv_padded_channels,
  in_float32,
  kernel_grad_batch_grouped,
  kernel_grad_direct,
  kernel_grad_grouped,
  kernel_grad_p,
  kernel_grad_per_image,
  map_over_tasks,
)
from maml_jax.ops.pooling import max_pool, window_corners
from maml_jax.ops.primitives import lowered_as
from maml_jax.ops.task_merging import (
  block_diagonal,
  merge_channels,
  num_merged_tasks,
  split_channels,
  vmap_merged,
)

__all__ = [
  'block_diagonal',
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
  'merge_channels',
  'num_merged_tasks',
  'split_channels',
  'vmap_merged',
  'window_corners',
]
