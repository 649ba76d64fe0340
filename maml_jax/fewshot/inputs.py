"""Conversion of arbitrary images to the inputs of a checkpoint's model."""

import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence, Set

import numpy as np
from ml_collections import ConfigDict

from maml_jax import data
from maml_jax.data import images as image_lib
from maml_jax.utils.errors import UserError

__all__ = ['encode_labels', 'prepare_images']


# Fully scaled images have larger values; those of 0..1 or 0..16 do not. A model
# that was fitted to images of another range would answer at random.
MIN_PEAK = 17
LABEL_TYPES = {'string': str, 'boolean': bool, 'number': (int, float)}


def prepare_images(
  config: ConfigDict, images: Sequence | np.ndarray
) -> np.ndarray:
  """Converts images to the size and channels of the checkpoint's data set.

  Args:
    config: the config of the checkpoint.
    images: see `FewShotLearner.fit`.

  Returns:
    uint8 [N, H, W, C].

  Raises:
    UserError: the images are invalid, or the checkpoint was trained on
      regression.
  """
  name = config.data.name
  if name in data.REGRESSIONS:
    raise UserError(
      f'the checkpoint was trained on regression, {name}: use a checkpoint '
      'trained on images'
    )
  spec = data.spec(name)
  images = _split(images, spec.image_shape[-1])
  prepared = np.empty((len(images), *spec.image_shape), np.uint8)
  peaks = []
  for i, image in enumerate(images):
    try:
      if isinstance(image, str | os.PathLike):
        prepared[i] = image_lib.read_image(pathlib.Path(image), spec).pixels
      elif _is_pil(image):
        prepared[i] = image_lib.from_pil(image, spec)
      else:
        array = _as_array(image)
        prepared[i] = image_lib.from_array(array, spec)
        peaks.append(int(image_lib.to_uint8(array[..., :3]).max()))
    except (UserError, image_lib.UnreadableImageError) as error:
      source = image if isinstance(image, str | os.PathLike) else f'image {i}'
      raise UserError(f'{source}: {error}') from error
  if peaks and 0 < max(peaks) < MIN_PEAK:
    raise UserError(
      f'the largest value of all images is {max(peaks)} of 255: scale integers '
      'to 0..255, floats to 0..1, or convert masks to booleans'
    )
  return prepared


def _split(images, channels: int) -> Sequence | np.ndarray:
  """Returns the single images of what the user passes as images.

  Args:
    images: see `FewShotLearner.fit`.
    channels: of the model, 1 or 3.
  """
  if isinstance(images, str | os.PathLike) or _is_pil(images):
    return [images]
  if isinstance(images, Mapping | Set | bytes):
    raise UserError(f'expected images, got a {type(images).__name__}')
  if isinstance(images, Iterable) and not hasattr(images, '__array__'):
    images = list(images)
    if not images or not all(isinstance(x, list | tuple) for x in images):
      return images
  images = _as_array(images)
  if images.dtype == object and images.ndim == 1:
    return list(images)
  shape = images.shape
  if images.ndim == 2 or images.ndim == 3 and shape[-1] in image_lib.CHANNELS:
    return [images]
  if images.ndim == 3 and channels == 3 and shape[0] == 3:
    raise UserError(
      f'images of shape {shape} are either 3 gray images or one color image '
      'with the channels first: pass [3, H, W, 1] or [H, W, 3]'
    )
  if images.ndim not in (3, 4):
    raise UserError(
      'expected images [N, H, W, C] or [N, H, W], or one image [H, W, C] or '
      f'[H, W], got an array of shape {shape}'
    )
  return images


def encode_labels(
  labels: Sequence | np.ndarray, num_images: int
) -> tuple[np.ndarray, np.ndarray]:
  """Numbers the classes.

  Args:
    labels: see `FewShotLearner.fit`.
    num_images: N.

  Returns:
    The distinct labels [W], sorted, and the class of each image, [N] int32.

  Raises:
    UserError: the labels are invalid, or there are fewer than two classes.
  """
  if isinstance(labels, Iterable) and not isinstance(labels, str | bytes):
    to_list = getattr(labels, 'tolist', None)
    values = to_list() if to_list else list(labels)
  else:
    raise UserError(f'expected one label per image, got {labels!r}')
  if not isinstance(values, list) or len(values) != num_images:
    raise UserError(
      f'expected one label per image, got {num_images} images and '
      f'{len(values) if isinstance(values, list) else 1} labels'
    )
  values = [v.item() if isinstance(v, np.generic) else v for v in values]
  kinds = {_label_kind(value) for value in values}
  if len(kinds) > 1:
    raise UserError(
      f'labels of different types: {", ".join(sorted(kinds))}; use one type'
    )
  array = np.array(values)
  if array.dtype == object or array.tolist() != values:  # large integers
    raise UserError('NumPy cannot store the labels exactly: use strings')
  classes, class_ids = np.unique(array, return_inverse=True)
  if len(classes) < 2:
    raise UserError(
      f'expected two or more classes, got labels {classes.tolist()}'
    )
  return classes, class_ids.astype(np.int32)


def _label_kind(label) -> str:
  """Returns the kind of a label; raises UserError if it is not supported."""
  for kind, types in LABEL_TYPES.items():
    if isinstance(label, types):
      if isinstance(label, float) and not math.isfinite(label):
        raise UserError(f'label {label} is not finite')
      return kind
  raise UserError(
    f'label {label!r:.80} is a {type(label).__name__}: expected strings, '
    'booleans or finite numbers'
  )


def _as_array(image) -> np.ndarray:
  try:
    return np.asarray(image)
  except Exception as error:  # such as ragged lists and tensors on a GPU
    reason = str(error).partition('\n')[0]
    raise UserError(f'not an array of pixels: {reason}') from error


def _is_pil(image) -> bool:
  from PIL import Image  # saves start-up time

  return isinstance(image, Image.Image)
