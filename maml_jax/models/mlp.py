"""MLP, the network of the MAML paper's regression experiment."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from maml_jax.models.layers import Dense

__all__ = ['MLP']


class MLP(nn.Module):
  """Two hidden layers with ReLU, [N, ...] -> [N, width].

  A context [C] is appended to each input (CAVIA).

  Attributes:
    width: units of each layer; 40 in the paper.
    norm: unused; there is no batch norm.
    init: a key of `layers.INITS`.
  """

  width: int
  norm: Callable[[str], Callable[..., nn.Module]]
  init: str = 'torch'

  @nn.compact
  def __call__(self, x, *, train, context=None):
    del train
    x = x.reshape(x.shape[0], -1)
    if context is not None:
      x = jnp.concatenate([x, jnp.tile(context[None], (len(x), 1))], axis=1)
    for name in ('dense1', 'dense2'):
      x = nn.relu(Dense(self.width, self.init, name=name)(x))
    return x
