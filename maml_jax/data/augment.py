"""Random changes to images, under jit, each image on its own.

Every entry of `AUGMENTATIONS` is a pure function `augment(key, image)`: a
typed random key and one float image [H, W, C], 0..1 and not normalised, to an
image of that shape, dtype and range. The distributions are torchvision's.
"""

# differs from PyTorch-MAML: there every step ends in a rounding to 8 bits.

import math

import jax
import jax.numpy as jnp

from maml_jax.types import Episode
from maml_jax.utils.errors import UserError

CROP_PADDING = 8  # black pixels at each edge before a crop
JITTER_STRENGTH = 0.4  # factors of brightness, contrast, saturation: 1 +- this
GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # of red, green, blue
CROP_AREA = (0.08, 1.0)  # of a resized crop, as a part of the image's
CROP_RATIO = (3 / 4, 4 / 3)  # of a resized crop: width / height
MAX_CROP_TRIES = 10  # to find a resized crop inside the image
RESIZE_RATIO = (256, 224)  # by 256/224


def identity(key, image):
  """Leaves the image as it is."""
  del key
  return image


def random_flip(key, image):
  """Mirrors the image left to right with probability 1/2."""
  return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def random_shift(key, image):
  """Pads each edge with 8 black pixels and crops to the old size anywhere."""
  padded = jnp.pad(
    image, ((CROP_PADDING, CROP_PADDING), (CROP_PADDING, CROP_PADDING), (0, 0))
  )
  top, left = _whole(jax.random.uniform(key, (2,)), 2 * CROP_PADDING + 1)
  return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)


def jitter_colors(key, image):
  """Changes brightness, contrast and saturation, in random order.

  Each is multiplied by a factor uniform in 0.6..1.4. An image of one channel
  has no saturation: the other two remain.

  Raises:
    UserError: the image has neither 1 nor 3 channels.
  """
  channels = image.shape[-1]
  if channels not in (1, 3):
    raise UserError(
      f'the augmentation color is for 1 or 3 channels; here are {channels}'
    )
  num = 3 if channels == 3 else 2
  draws = jax.random.uniform(key, (2, num), image.dtype)
  order = jnp.argsort(draws[0])
  factor = _between(1 - JITTER_STRENGTH, 1 + JITTER_STRENGTH, draws[1])
  return adjust_colors(image, order, factor)


def adjust_colors(image, order, factor):
  """Multiplies brightness (0), contrast (1), saturation (2), one by one.

  Each is a blend of the image with another one: black, its mean grey, or its
  own grey version. Values are cut to 0..1 after every step.

  Args:
    image: [H, W, C] in 0..1; C = 1 or 3.
    order: [N] integers 0, 1, 2: the steps.
    factor: [N] of the steps; 1 leaves the image alone.

  Returns:
    [H, W, C] in 0..1.
  """
  for kind, ratio in zip(order, factor, strict=True):
    grey = _grey(image)
    other = jnp.where(kind == 1, grey.mean(), grey)
    other = jnp.where(kind == 0, jnp.zeros_like(other), other)
    other = jnp.broadcast_to(other, image.shape)
    image = jnp.clip(ratio * image + (1 - ratio) * other, 0, 1)
  return image


def _grey(image):
  """[H, W, 1]."""
  if image.shape[-1] == 1:
    return image
  # No dot product: accelerators would take it in a lower precision.
  weights = jnp.array(GRAY_WEIGHTS, image.dtype).reshape(1, 1, 3)
  return jnp.sum(image * weights, axis=-1, keepdims=True)


def random_resized_crop(key, image):
  """Stretches a random box to the size of the image; see `draw_box`."""
  top, left, box_height, box_width = draw_crop_box(key, *image.shape[:2])
  height, width, _ = image.shape
  return resample(
    image,
    _weights(height, top, box_height / height, top, top + box_height),
    _weights(width, left, box_width / width, left, left + box_width),
  )


def draw_crop_box(key, height, width):
  """Draws the box of a resized crop, as torchvision's RandomResizedCrop does.

  Its area is uniform in 8..100 % of the image's, its aspect ratio log-uniform
  in 3/4..4/3, its place uniform. The first of ten such boxes that fits is
  taken; if none does, the largest central one of an allowed ratio.

  Args:
    key: a typed random key.
    height: of the image, in pixels.
    width: likewise.

  Returns:
    int32 top, left, height and width of the box, in pixels.
  """
  # All numbers from one call: random bits take long to compile.
  draws = jax.random.uniform(key, (2 * MAX_CROP_TRIES + 2,))
  area = height * width * _between(*CROP_AREA, draws[:MAX_CROP_TRIES])
  log_ratio = _between(
    *map(math.log, CROP_RATIO), draws[MAX_CROP_TRIES : 2 * MAX_CROP_TRIES]
  )
  ratio = jnp.exp(log_ratio)
  heights = jnp.round(jnp.sqrt(area / ratio)).astype(jnp.int32)
  widths = jnp.round(jnp.sqrt(area * ratio)).astype(jnp.int32)
  fits = (0 < heights) & (heights <= height) & (0 < widths) & (widths <= width)
  first = jnp.argmax(fits)
  box_height, box_width = heights[first], widths[first]
  box = (
    _whole(draws[-2], height - box_height + 1),
    _whole(draws[-1], width - box_width + 1),
    box_height,
    box_width,
  )
  central = _central_box(height, width)
  return tuple(
    jnp.where(fits.any(), a, b) for a, b in zip(box, central, strict=True)
  )


def _between(low, high, draws):
  """Numbers uniform in 0..1 -> in low..high."""
  return low + (high - low) * draws


def _whole(draws, num):
  """Numbers uniform in 0..1 -> uniform among 0, ..., num - 1."""
  return jnp.floor(draws * num).astype(jnp.int32)


def _central_box(height, width):
  low, high = CROP_RATIO
  box_height = min(height, round(width / low))
  box_width = min(width, round(height * high))
  return (
    (height - box_height) // 2,
    (width - box_width) // 2,
    box_height,
    box_width,
  )


def resize_center_crop(key, image):
  """Enlarges by 256/224, then takes the centre; nothing here is random."""
  del key

  def weights(size):
    large = size * RESIZE_RATIO[0] // RESIZE_RATIO[1]
    scale = size / large
    return _weights(size, round((large - size) / 2) * scale, scale, 0, size)

  height, width, _ = image.shape
  return resample(image, weights(height), weights(width))


def resample(image, rows, columns):
  """Mixes the rows, then the columns of an image.

  Args:
    image: [H, W, C].
    rows: [H', H] weights.
    columns: [W', W] weights.

  Returns:
    [H', W', C].
  """
  return jnp.einsum(
    'oh,hwc,pw->opc',
    rows.astype(image.dtype),
    image,
    columns.astype(image.dtype),
    precision=jax.lax.Precision.HIGHEST,
  )


def _weights(size, start, scale, low, high):
  """How much of each old pixel is in each new one: bilinear, antialiased.

  New pixel i is centred at `start + (i + 1/2) scale`, in old pixels. These are
  the weights of `jax.image.scale_and_translate`, but that pixels outside of
  low..high take no part, as if the image had been cropped before.

  Args:
    size: the number of old pixels and of new ones.
    start: where the first new pixel begins.
    scale: old pixels per new pixel.
    low: the first old pixel that takes part.
    high: the one after the last.

  Returns:
    [size, size] float32, new by old; each row sums to 1.
  """
  index = jnp.arange(size)
  centre = start + (index + 0.5) * scale
  distance = jnp.abs((index + 0.5).reshape(1, size) - centre.reshape(size, 1))
  weights = jnp.maximum(1 - distance / jnp.maximum(scale, 1.0), 0)
  inside = ((low <= index) & (index < high)).reshape(1, size)
  weights = jnp.where(inside, weights, 0)
  return weights / weights.sum(axis=1, keepdims=True)


def _one_by_one(*steps):
  """The augmentation that takes several steps, each with its own key."""

  def augment(key, image):
    keys = jax.random.split(key, len(steps))
    for step_key, step in zip(keys, steps, strict=True):
      image = step(step_key, image)
    return image

  return augment


AUGMENTATIONS = {
  'none': identity,
  'flip': random_flip,
  'random_crop': _one_by_one(random_shift, random_flip),
  'color_jitter': _one_by_one(random_shift, jitter_colors, random_flip),
  'random_resized_crop': _one_by_one(random_resized_crop, random_flip),
  'resize_center_crop': resize_center_crop,
}


def augment_batch(name, key, image):
  """Changes each of N images by a key of its own.

  Args:
    name: a key of `AUGMENTATIONS`.
    key: a typed random key; the i-th image is changed by `fold_in(key, i)`,
      whatever N.
    image: uint8 [N, H, W, C], 0..255.

  Returns:
    [N, H, W, C], 0..255, float32; for `none` the images themselves.
  """
  if name == 'none':
    return image
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(
    jnp.arange(image.shape[0])
  )
  changed = jax.vmap(AUGMENTATIONS[name])(keys, image.astype(jnp.float32) / 255)
  return changed * 255


def with_augmentation(transform, *, support='none', query='none'):
  """A transform that augments the images of a task before `transform`.

  Args:
    transform: `transform(key, episode) -> episode`, see `data.episodes`.
    support: a key of `AUGMENTATIONS`, for the support set.
    query: likewise for the query set.

  Returns:
    Another such transform.
  """

  def change(name, key, batch):
    return batch._replace(inputs=augment_batch(name, key, batch.inputs))

  def augment_then_transform(key, episode):
    support_key, query_key, rest = jax.random.split(key, 3)
    episode = Episode(
      change(support, support_key, episode.support),
      change(query, query_key, episode.query),
    )
    return transform(rest, episode)

  return augment_then_transform
