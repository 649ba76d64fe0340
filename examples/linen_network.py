"""Meta-trains a Flax Linen network to classify characters of new scripts.

    python examples/linen_network.py

It shows how to wrap a Linen module as a `Model`. The network is trained on
Latin, Cyrillic and symbols, and evaluated on Georgian and Armenian, from one
example of each of five characters. It prints the test accuracy of the random
and of the meta-learned initialization, each after three inner steps:

    random initialization: accuracy RANDOM ± INTERVAL on new scripts
    learned initialization: accuracy LEARNED ± INTERVAL on new scripts

It takes a minute or two on two CPU cores.
"""

import flax.linen as nn
import jax.numpy as jnp
from on_glyphs import train_and_evaluate

from maml_jax import ops
from maml_jax.learner import Model


class Network(nn.Module):
  """Three convolutions with group norm, and a linear head."""

  ways: int = 5
  width: int = 32

  @nn.compact
  def __call__(self, x):
    for i in range(3):
      shape = 3, 3, x.shape[-1], self.width
      kernel = self.param(f'kernel{i}', nn.initializers.he_normal(), shape)
      # nn.Conv works as well but is slow inside meta-gradients on CPUs.
      x = ops.conv(x, kernel, stride=2)
      x = nn.relu(nn.GroupNorm(num_groups=4)(x))
    # Parameters under 'classifier' use InnerConfig.classifier_lr.
    return nn.Dense(self.ways, name='classifier')(x.reshape(len(x), -1))


def make_model(network):
  """Wraps a Linen module without statistics as a `Model`."""

  def init(key):
    return network.init(key, jnp.zeros((1, 28, 28, 1)))['params'], {}

  def apply(params, stats, inputs, *, train):
    return network.apply({'params': params}, inputs), stats

  return Model(init, apply)


def main(steps=200, width=32):
  """Trains and evaluates; returns the accuracies."""
  _, result = train_and_evaluate(make_model(Network(width=width)), steps)
  return result


if __name__ == '__main__':
  main()
