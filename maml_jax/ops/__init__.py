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
