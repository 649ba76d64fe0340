"""Conversion of arbitrary images to the inputs of a checkpoint's model."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from maml_jax import data
from maml_jax.data import images as image_lib
from maml_jax.experiment import setup
from maml_jax.types import Array, Batch, Episode
from maml_jax.utils.errors import UserError

__all__ = ['prepare_images', 'scale_images']


def prepare_images(config: ConfigDict, images) -> np.ndarray:
  """Converts images to the size and channels of the checkpoint's data set.

  Args:
    config: the config of the checkpoint.
    images: see `FewShotLearner.fit`.

  Returns:
    uint8 [N, H, W, C].

  Raises:
    UserError: the images are invalid, or the checkpoint is a regression.
  """
  name = config.data.name
  if name in data.REGRESSIONS:
    raise UserError(
      f'the checkpoint was trained on {name}: a regression has no images'
    )
  spec = data.spec(name)
  if not isinstance(images, Sequence):
    images = np.asarray(images)
    if images.ndim not in (3, 4):
      raise UserError(
        'expected images [N, H, W, C] or [N, H, W], got an array of shape '
        f'{images.shape}'
      )
  prepared = np.empty((len(images), *spec.image_shape), np.uint8)
  for i, image in enumerate(images):
    prepared[i] = image_lib.from_array(image, spec)
  return prepared


def scale_images(config: ConfigDict, images) -> Array:
  """Converts uint8 [N, H, W, C] to the float32 inputs of the model."""
  phase = setup.eval_phase(config)
  batch = Batch(jnp.asarray(images), ())
  transform = setup.phase_transform(config, phase)
  return transform(jax.random.key(0), Episode(batch, batch)).query.inputs
