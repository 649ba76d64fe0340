"""A network of your own in Flax Linen, which learns to read new scripts.

    python examples/linen_network.py

Twenty lines of network, wrapped as `Model(init, apply)`. It is trained on
Latin, Cyrillic and symbols and measured on Georgian and Armenian, from one
example of each of five characters. A minute or two on two CPU cores.
"""

import flax.linen as nn
import jax.numpy as jnp
from on_glyphs import learn

from maml_jax import ops
from maml_jax.learner import Model


class Network(nn.Module):
  """Three convolutions with group norm, and a head."""

  ways: int = 5
  width: int = 32

  @nn.compact
  def __call__(self, x):
    for i in range(3):
      shape = 3, 3, x.shape[-1], self.width
      kernel = self.param(f'kernel{i}', nn.initializers.he_normal(), shape)
      x = ops.conv(x, kernel, stride=2)  # nn.Conv works too, but slowly on CPUs
      x = nn.relu(nn.GroupNorm(num_groups=4)(x))
    # What lies below 'classifier' is adapted at InnerConfig.classifier_lr.
    return nn.Dense(self.ways, name='classifier')(x.reshape(len(x), -1))


def make_model(network):
  def init(key):
    return network.init(key, jnp.zeros((1, 28, 28, 1)))['params'], {}

  def apply(params, stats, image, *, train):
    return network.apply({'params': params}, image), stats

  return Model(init, apply)


def main(steps=200, width=32):
  return learn(make_model(Network(width=width)), steps)[1]


if __name__ == '__main__':
  main()
