"""Residual networks of few-shot learning: ResNet-12, ResNet-10 and ResNet-18.

Convolutions have no bias and start He-normal over the fan-out (He et al. 2015,
arXiv 1502.01852); the features are the global average of the last map.
"""

from collections.abc import Callable

import flax.linen as nn
import jax

from maml_jax import ops
from maml_jax.models.layers import Conv

NARROW, WIDE = (64, 128, 256, 512), (64, 160, 320, 640)


class ResNet12(nn.Module):
  """Four blocks of three convolutions, each halving the image.

  [N, H, W, C] -> [N, widths[3]]. As in Oreshkin et al. 2018, arXiv 1805.10123.

  Attributes:
    widths: channels of the four blocks.
    norm: layer name -> constructor of its batch norm.
    init: of the head, not of the encoder.
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
  """A convolution, then four stages of residual blocks at full image size.

  [N, H, W, C] -> [N, widths[3]]. He et al. 2016, arXiv 1512.03385, with a 3x3
  stem for small images. Blocks are called layer1 to layer4, or layer1_1,
  layer1_2, ... where a stage has several.

  # differs from PyTorch-MAML: its "resnet18" has one block per stage, which is
  # resnet10 here, and a shortcut without the stride of the main path.

  Attributes:
    widths: channels of the four stages.
    blocks: residual blocks per stage.
    norm: layer name, layer0 (the stem) to layer4 -> constructor of batch norm.
    init: of the head, not of the encoder.
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
  size: int = 3
  stride: int = 1

  @nn.compact
  def __call__(self, x, *, train):
    conv = Conv(
      self.width, 'he', self.size, self.stride, use_bias=False, name='conv'
    )
    return self.norm(name='bn')(conv(x), train=train)


class PooledBlock(nn.Module):
  """Three convolutions beside a 1x1 shortcut, then 2x2 max pooling."""

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
    # Pooling commutes with the activation.
    return _leaky_relu(ops.max_pool(out + shortcut(x, train=train)))


class StridedBlock(nn.Module):
  """Two convolutions beside a shortcut, 1x1 where the stride is not 1."""

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
