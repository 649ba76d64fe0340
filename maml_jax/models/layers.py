"""Convolution and linear head, initialised as MAML was run with.

Both multiply in the type of the images that they get; parameters keep theirs.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from maml_jax import ops


def _torch_uniform(fan_in):
  """PyTorch's default for weights and biases: uniform in +-1/sqrt(fan_in)."""

  def init(key, shape, dtype=jnp.float32):
    bound = 1 / math.sqrt(fan_in)
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def _zeros(fan_in):
  del fan_in
  return nn.initializers.zeros


# name -> (kernel initialiser of fan_in, bias initialiser of fan_in)
INITS = {
  'torch': (_torch_uniform, _torch_uniform),
  'xavier': (lambda fan_in: nn.initializers.xavier_uniform(), _zeros),
  'he': (
    lambda fan_in: nn.initializers.variance_scaling(2, 'fan_out', 'normal'),
    _zeros,
  ),
}


class Conv(nn.Module):
  """Convolution of odd kernel size that keeps the image's, but for strides.

  With `use_bias` it returns the bias [features] beside the image, not added:
  the batch norm behind does that to its moments instead of to every pixel.
  """

  features: int
  init: str
  size: int = 3
  stride: int = 1
  use_bias: bool = True

  @nn.compact
  def __call__(self, x):
    shape = (self.size, self.size, x.shape[-1], self.features)
    fan_in = math.prod(shape[:3])
    kernel_init, bias_init = INITS[self.init]
    kernel = self.param('kernel', kernel_init(fan_in), shape, jnp.float32)
    x = ops.conv(x, kernel.astype(x.dtype), stride=self.stride)
    if not self.use_bias:
      return x
    return x, self.param('bias', bias_init(fan_in), shape[3:], jnp.float32)


class Dense(nn.Module):
  """A linear layer."""

  features: int
  init: str

  @nn.compact
  def __call__(self, x):
    kernel_init, bias_init = INITS[self.init]
    shape = (x.shape[-1], self.features)
    kernel = self.param('kernel', kernel_init(shape[0]), shape, jnp.float32)
    bias = self.param('bias', bias_init(shape[0]), shape[1:], jnp.float32)
    return x @ kernel + bias[None]


class Head(nn.Module):
  """Linear classifier, its logits multiplied by a temperature.

  Logits are of the type of the parameters.
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
      start = nn.initializers.constant(self.temperature)
      return logits * self.param('temperature', start, (), jnp.float32)
    return logits * self.temperature
