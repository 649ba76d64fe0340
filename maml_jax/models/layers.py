"""Convolution, dense layer and linear head, with their initializers.

`Conv` and `Head` cast their kernels to the dtype of their inputs; parameters
are float32.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from maml_jax import ops
from maml_jax.types import Array

__all__ = ['INITS', 'Conv', 'Dense', 'Film', 'Head', 'normalize']


def normalize(x: Array, axis: int = -1) -> Array:
  """Returns x with norm 1 along an axis; zeros stay zeros."""
  # The derivative of a norm is not defined at 0, where all of ReLU may be.
  squares = jnp.square(x).sum(axis, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))


def _torch_uniform(fan_in):
  """Returns PyTorch's default initializer: uniform in +-1/sqrt(fan_in)."""

  def init(key, shape, dtype=jnp.float32):
    bound = 1 / math.sqrt(fan_in)
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def _zeros(fan_in):
  del fan_in
  return nn.initializers.zeros


# Name -> functions from the fan-in to the initializers of kernel and bias.
INITS = {
  'torch': (_torch_uniform, _torch_uniform),
  'xavier': (lambda fan_in: nn.initializers.xavier_uniform(), _zeros),
  'he': (
    lambda fan_in: nn.initializers.variance_scaling(2, 'fan_out', 'normal'),
    _zeros,
  ),
}


class Conv(nn.Module):
  """2-D convolution with 'same' padding, for an odd kernel size.

  Returns the result [N, H', W', features]; with `use_bias`, returns (result,
  bias [features]) and does not add the bias. Batch norm, which follows, adds it
  to the moments instead of to every pixel.

  Attributes:
    features: output channels.
    init: a key of `INITS`.
    kernel_size: k, odd.
    stride: the stride in both directions.
    use_bias: whether there is a bias.
  """

  features: int
  init: str
  kernel_size: int = 3
  stride: int = 1
  use_bias: bool = True

  @nn.compact
  def __call__(self, x):
    channels = x.shape[-1] // ops.num_merged_tasks()
    shape = (self.kernel_size, self.kernel_size, channels, self.features)
    fan_in = math.prod(shape[:3])
    kernel_init, bias_init = INITS[self.init]
    kernel = self.param('kernel', kernel_init(fan_in), shape, jnp.float32)
    kernel = ops.block_diagonal(kernel.astype(x.dtype))
    x = ops.conv(x, kernel, stride=self.stride)
    if not self.use_bias:
      return x
    return x, self.param('bias', bias_init(fan_in), shape[3:], jnp.float32)


class Dense(nn.Module):
  """A linear layer, [N, D] -> [N, features].

  Attributes:
    features: output units.
    init: a key of `INITS`.
  """

  features: int
  init: str

  @nn.compact
  def __call__(self, x):
    kernel_init, bias_init = INITS[self.init]
    shape = (x.shape[-1], self.features)
    kernel = self.param('kernel', kernel_init(shape[0]), shape, jnp.float32)
    bias = self.param('bias', bias_init(shape[0]), shape[1:], jnp.float32)
    return x @ kernel + bias[None]


class Film(nn.Module):
  """Scales and shifts channels by a linear function of a context.

  x [..., features] and context [C] -> scale * x + shift. Perez et al. 2018,
  arXiv 1709.07871. The scale is 1 and the shift 0 for a context of zeros.

  Attributes:
    features: channels.
    init: a key of `INITS`, for the kernel.
  """

  features: int
  init: str

  @nn.compact
  def __call__(self, x, context):
    kernel_init, _ = INITS[self.init]
    shape = (len(context), 2 * self.features)
    kernel = self.param('kernel', kernel_init(shape[0]), shape, jnp.float32)
    bias = self.param('bias', _ones_and_zeros, shape[1:], jnp.float32)
    factors = (context @ kernel + bias).astype(x.dtype)
    scale, shift = jnp.split(factors.reshape(*[1] * (x.ndim - 1), -1), 2, -1)
    return scale * x + shift


def _ones_and_zeros(key, shape, dtype):
  del key
  ones = jnp.ones(shape[0] // 2, dtype)
  return jnp.concatenate([ones, jnp.zeros_like(ones)])


class Head(nn.Module):
  """A linear classifier with a temperature, [N, D] -> logits [N, num_ways].

  The dtype of the logits is that of the parameters.

  Attributes:
    num_ways: W, the number of classes.
    init: a key of `INITS`.
    temperature: factor on the logits.
    learn_temperature: whether the temperature is a parameter.
  """

  num_ways: int
  init: str
  temperature: float = 1.0
  learn_temperature: bool = False

  @nn.compact
  def __call__(self, x):
    fan_in = x.shape[-1]
    kernel_init, bias_init = INITS[self.init]
    shape = (fan_in, self.num_ways)
    kernel = self.param('kernel', kernel_init(fan_in), shape, jnp.float32)
    bias = self.param('bias', bias_init(fan_in), shape[1:], jnp.float32)
    logits = jnp.matmul(
      x, kernel.astype(x.dtype), preferred_element_type=kernel.dtype
    )
    logits = logits + bias[None]
    if self.learn_temperature:
      init = nn.initializers.constant(self.temperature)
      return logits * self.param('temperature', init, (), jnp.float32)
    return logits * self.temperature
