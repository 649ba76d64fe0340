"""Residual networks for few-shot learning: ResNet-10, ResNet-12, ResNet-18.

Convolutions have no bias and are He-normal initialized by their fan-out (He et
al. 2015, arXiv 1502.01852). The features are the global average pool of the
last feature map.
"""

from collections.abc import Callable

import flax.linen as nn
import jax

from maml_jax import ops
from maml_jax.models.layers import Conv

__all__ = [
  'BASE_WIDTHS',
  'WIDE_WIDTHS',
  'ConvNorm',
  'PooledBlock',
  'ResNet12',
  'ResNet18',
  'StridedBlock',
]

BASE_WIDTHS, WIDE_WIDTHS = (64, 128, 256, 512), (64, 160, 320, 640)


class ResNet12(nn.Module):
  """ResNet-12: four blocks of three convolutions and max pooling.

  Maps images [N, H, W, C] to features [N, widths[3]]. Oreshkin et al. 2018,
  arXiv 1805.10123.

  Attributes:
    widths: channels of the four blocks.
    norm: a function from a layer's name to its batch norm constructor.
    init: unused; convolutions are He-normal.
  """

  widths: tuple[int, ...]
  norm: Callable[[str], Callable[..., nn.Module]]
  init: str = 'torch'

  @nn.compact
  def __call__(self, x, *, train):
    for i, width in enumerate(self.widths, 1):
      name = f'layer{i}'
      x = PooledBlock(width, self.norm(name), name=name)(x, train=train)
    return x.mean((1, 2))


class ResNet18(nn.Module):
  """ResNet-18: a 3x3 convolution, then four stages of residual blocks.

  Maps images [N, H, W, C] to features [N, widths[3]]. He et al. 2016, arXiv
  1512.03385, with a 3x3 stem without max pooling for small images. Blocks are
  named layer1 to layer4, or layer1_1, layer1_2, ... if a stage has several.

  # differs from PyTorch-MAML: its "resnet18" has one block per stage, which is
  resnet10 here, and its shortcut lacks the stride of the main path.

  Attributes:
    widths: channels of the four stages.
    blocks: residual blocks per stage.
    norm: a function from a layer's name, layer0 (the stem) to layer4, to its
      batch norm constructor.
    init: unused; convolutions are He-normal.
  """

  widths: tuple[int, ...]
  blocks: int
  norm: Callable[[str], Callable[..., nn.Module]]
  init: str = 'torch'

  @nn.compact
  def __call__(self, x, *, train):
    x = ConvNorm(64, self.norm('layer0'), name='layer0')(x, train=train)
    x = nn.relu(x)
    for i, width in enumerate(self.widths, 1):
      for j in range(1, self.blocks + 1):
        stride = 2 if i > 1 and j == 1 else 1
        name = f'layer{i}' if self.blocks == 1 else f'layer{i}_{j}'
        block = StridedBlock(width, stride, self.norm(f'layer{i}'), name=name)
        x = block(x, train=train)
    return x.mean((1, 2))


class ConvNorm(nn.Module):
  """Convolution and batch norm."""

  width: int
  norm: Callable[..., nn.Module]
  kernel_size: int = 3
  stride: int = 1

  @nn.compact
  def __call__(self, x, *, train):
    conv = Conv(
      self.width,
      'he',
      self.kernel_size,
      self.stride,
      use_bias=False,
      name='conv',
    )
    return self.norm(name='bn')(conv(x), train=train)


class PooledBlock(nn.Module):
  """Residual block of three convolutions, followed by 2x2 max pooling."""

  width: int
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x, *, train):
    shortcut = ConvNorm(self.width, self.norm, 1, name='res_conv')
    out = x
    for i in (1, 2, 3):
      conv = Conv(self.width, 'he', use_bias=False, name=f'conv{i}')
      out = self.norm(name=f'bn{i}')(conv(out), train=train)
      if i < 3:
        out = _leaky_relu(out)
    # Max pooling and the activation commute.
    return _leaky_relu(ops.max_pool(out + shortcut(x, train=train)))


class StridedBlock(nn.Module):
  """Residual block of two convolutions; the shortcut is 1x1 if strided."""

  width: int
  stride: int
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x, *, train):
    conv = Conv(
      self.width, 'he', stride=self.stride, use_bias=False, name='conv1'
    )
    out = nn.relu(self.norm(name='bn1')(conv(x), train=train))
    conv = Conv(self.width, 'he', use_bias=False, name='conv2')
    out = self.norm(name='bn2')(conv(out), train=train)
    if self.stride > 1:
      x = ConvNorm(self.width, self.norm, 1, self.stride, name='res_conv')(
        x, train=train
      )
    return nn.relu(out + x)


def _leaky_relu(x):
  return jax.nn.leaky_relu(x, 0.1)
