"""ConvNet4, the network of Vinyals et al. 2016 and of the MAML paper.

Vinyals et al. 2016, arXiv 1606.04080; Finn et al. 2017, arXiv 1703.03400.
"""

from collections.abc import Callable

import flax.linen as nn

from maml_jax.models.layers import Conv

__all__ = ['ConvBlock', 'ConvNet4']


class ConvNet4(nn.Module):
  """Four blocks of 3x3 convolution, batch norm, 2x2 max pooling and ReLU.

  Maps images [N, H, W, C] to features [N, (H // 16) * (W // 16) * width]: 800
  features for 84 x 84 pixels and width 32.

  Attributes:
    width: channels of each block.
    norm: a function from a layer's name to its batch norm constructor.
    init: a key of `layers.INITS`.
  """

  width: int
  norm: Callable[[str], Callable[..., nn.Module]]
  init: str = 'torch'

  @nn.compact
  def __call__(self, x, *, train):
    for i in range(1, 5):
      name = f'conv{i}'
      x = ConvBlock(self.width, self.norm(name), self.init, name=name)(
        x, train=train
      )
    return x.reshape(x.shape[0], -1)


class ConvBlock(nn.Module):
  """Convolution, batch norm, max pooling and ReLU.

  Attributes:
    width: output channels.
    norm: the batch norm constructor.
    init: a key of `layers.INITS`.
  """

  width: int
  norm: Callable[..., nn.Module]
  init: str

  @nn.compact
  def __call__(self, x, *, train):
    x, bias = Conv(self.width, self.init, name='conv')(x)
    # ReLU and max pooling commute; pooling first does a quarter of the work.
    return nn.relu(self.norm(name='bn')(x, bias, train=train, pool=True))
