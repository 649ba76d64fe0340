"""How the images of a data set are stored on a device."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from maml_jax.types import Array

__all__ = ['ImageStorage', 'image_storage']

# TPUs store the last two axes of uint8 arrays in tiles of this size.
TPU_TILE = (8, 128)


class ImageStorage(NamedTuple):
  """The format of stored images.

  A TPU pads [M, 84, 84, 3], and moves the axis M to the lanes of its tiles. A
  program that draws images at random then copies all of them to another layout
  first, in each call. Images that fill whole tiles need no such copy.

  Attributes:
    image_shape: (H, W, C).
    tile: (rows, columns) of bytes that the images are padded to; None stores
      them as they are.
  """

  image_shape: tuple[int, int, int]
  tile: tuple[int, int] | None = None

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape of a stored image: (H, W, C), or (rows, columns)."""
    if self.tile is None:
      return self.image_shape
    rows, columns = self.tile
    tiles = -(-math.prod(self.image_shape) // (rows * columns))
    return tiles * rows, columns

  def nbytes(self, num_images: int) -> int:
    """Returns the memory of stored images in bytes, including padding."""
    return num_images * math.prod(self.shape)

  def pack(self, images: np.ndarray | Array) -> np.ndarray | Array:
    """Converts images on the host, uint8 [M, H, W, C] -> [M, *shape]."""
    if self.tile is None:
      return images
    packed = np.zeros((len(images), math.prod(self.shape)), np.uint8)
    packed[:, : math.prod(self.image_shape)] = images.reshape(len(images), -1)
    return packed.reshape(-1, *self.shape)

  def take(self, stored: Array, positions: Array) -> Array:
    """Returns images, uint8 [..., H, W, C]; called under jit.

    Args:
      stored: uint8 [M, *shape], from `pack`.
      positions: int [...], in 0..M-1.
    """
    images = jnp.take(stored, positions, axis=0, mode='clip')
    if self.tile is None:
      return images
    images = images.reshape(*positions.shape, -1)
    images = images[..., : math.prod(self.image_shape)]
    return images.reshape(*positions.shape, *self.image_shape)


def image_storage(image_shape: tuple[int, ...], platform: str) -> ImageStorage:
  """Returns the format in which devices of a platform store images.

  Args:
    image_shape: (H, W, C).
    platform: 'cpu', 'gpu', 'tpu' or another platform of JAX.
  """
  tile = TPU_TILE if platform == 'tpu' else None
  height, width, channels = image_shape
  return ImageStorage((height, width, channels), tile)
