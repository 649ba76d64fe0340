"""ConvNet4, the network of Vinyals et al. 2016 and of the MAML paper.

Vinyals et al. 2016, arXiv 1606.04080; Finn et al. 2017, arXiv 1703.03400.
"""

from collections.abc import Callable

import flax.linen as nn

from maml_jax import ops
from maml_jax.models.layers import Conv, Film

__all__ = ['ConvBlock', 'ConvNet4']


class ConvNet4(nn.Module):
  """Four blocks of 3x3 convolution, batch norm, 2x2 max pooling and ReLU.

  Maps images [N, H, W, C] to features [N, (H // 16) * (W // 16) * width]: 800
  features for 84 x 84 pixels and width 32. A context [C] conditions the third
  block, as in CAVIA, Zintgraf et al. 2019, arXiv 1810.03642, section 3.3.

  Attributes:
    width: channels of each block.
    norm: a function from a layer's name to its batch norm constructor.
    init: a key of `layers.INITS`.
  """

  width: int
  norm: Callable[[str], Callable[..., nn.Module]]
  init: str = 'torch'

  @nn.compact
  def __call__(self, x, *, train, context=None):
    x = ops.merge_channels(x)
    for i in range(1, 5):
      name = f'conv{i}'
      block = ConvBlock(self.width, self.norm(name), self.init, name=name)
      x = block(x, train=train, context=context if i == 3 else None)
    x = ops.split_channels(x)
    return x.reshape(x.shape[0], -1)


class ConvBlock(nn.Module):
  """Convolution, batch norm, max pooling and ReLU.

  A context [C], if given, scales and shifts the channels after batch norm.

  Attributes:
    width: output channels.
    norm: the batch norm constructor.
    init: a key of `layers.INITS`.
  """

  width: int
  norm: Callable[..., nn.Module]
  init: str

  @nn.compact
  def __call__(self, x, *, train, context=None):
    x, bias = Conv(self.width, self.init, name='conv')(x)
    norm = self.norm(name='bn')
    if context is not None:
      film = Film(self.width, self.init, name='film')
      x = film(norm(x, bias, train=train), context)
      return nn.relu(ops.max_pool(x))
    # ReLU and max pooling commute; pooling first does a quarter of the work.
    return nn.relu(norm(x, bias, train=train, pool=True))
