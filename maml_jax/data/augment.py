"""Random image augmentations that run under jit.

Every entry of `AUGMENTATIONS` is a pure function `augment(key, image)`. It
takes a typed random key and one float image [H, W, C] in 0..1, not normalized,
and returns an image of the same shape, dtype and range. The distributions are
those of torchvision.
"""

# differs from PyTorch-MAML: values are not rounded to 8 bits after each step.

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from maml_jax.types import Array, Episode
from maml_jax.utils.errors import UserError

__all__ = [
  'AUGMENTATIONS',
  'adjust_colors',
  'augment_batch',
  'bilinear_weights',
  'draw_crop_box',
  'identity',
  'jitter_colors',
  'random_flip',
  'random_resized_crop',
  'random_shift',
  'resample',
  'resize_center_crop',
  'with_augmentation',
]

CROP_PADDING = 8  # black pixels added at each edge before cropping
JITTER_STRENGTH = 0.4  # color factors are uniform in 1 +- this
GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # weights of red, green, blue
CROP_AREA = (0.08, 1.0)  # of a resized crop, as a fraction of the image area
CROP_RATIO = (3 / 4, 4 / 3)  # aspect ratio of a resized crop: width / height
MAX_CROP_TRIES = 10  # random boxes before falling back to the center crop
RESIZE_RATIO = (256, 224)  # numerator, denominator


def identity(key: Array, image: Array) -> Array:
  """Returns the image unchanged."""
  del key
  return image


def random_flip(key: Array, image: Array) -> Array:
  """Flips the image horizontally with probability 1/2."""
  return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def random_shift(key: Array, image: Array) -> Array:
  """Pads each edge with 8 black pixels and crops a random window."""
  padded = jnp.pad(
    image, ((CROP_PADDING, CROP_PADDING), (CROP_PADDING, CROP_PADDING), (0, 0))
  )
  top, left = _to_integers(jax.random.uniform(key, (2,)), 2 * CROP_PADDING + 1)
  return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)


def jitter_colors(key: Array, image: Array) -> Array:
  """Changes brightness, contrast and saturation, in random order.

  Each one is scaled by a factor uniform in 0.6..1.4. Saturation is omitted for
  images with a single channel.

  Raises:
    UserError: the image has neither 1 nor 3 channels.
  """
  channels = image.shape[-1]
  if channels not in (1, 3):
    raise UserError(
      f'augmentation color_jitter requires 1 or 3 channels, got {channels}'
    )
  num_steps = 3 if channels == 3 else 2
  draws = jax.random.uniform(key, (2, num_steps), image.dtype)
  order = jnp.argsort(draws[0])
  factors = _scale_to(1 - JITTER_STRENGTH, 1 + JITTER_STRENGTH, draws[1])
  return adjust_colors(image, order, factors)


def adjust_colors(image: Array, order: Array, factors: Array) -> Array:
  """Scales brightness (0), contrast (1) and saturation (2) in a given order.

  Each step blends the image with black, with its mean gray level, or with its
  grayscale version, and clips the result to 0..1.

  Args:
    image: [H, W, C] in 0..1; C = 1 or 3.
    order: [N] integers 0, 1 or 2: the steps.
    factors: [N] factor of each step; 1 leaves the image unchanged.

  Returns:
    [H, W, C] in 0..1.
  """
  for step, factor in zip(order, factors, strict=True):
    gray = _to_grayscale(image)
    other = jnp.where(step == 1, gray.mean(), gray)
    other = jnp.where(step == 0, jnp.zeros_like(other), other)
    other = jnp.broadcast_to(other, image.shape)
    image = jnp.clip(factor * image + (1 - factor) * other, 0, 1)
  return image


def _to_grayscale(image):
  """Returns the gray levels of an image [H, W, C]: [H, W, 1]."""
  if image.shape[-1] == 1:
    return image
  # Not a dot product, which accelerators compute in lower precision.
  weights = jnp.array(GRAY_WEIGHTS, image.dtype).reshape(1, 1, 3)
  return jnp.sum(image * weights, axis=-1, keepdims=True)


def random_resized_crop(key: Array, image: Array) -> Array:
  """Resizes a random box to the size of the image; see `draw_crop_box`."""
  top, left, box_height, box_width = draw_crop_box(key, *image.shape[:2])
  height, width, _ = image.shape
  return resample(
    image,
    bilinear_weights(height, top, box_height / height, top, top + box_height),
    bilinear_weights(width, left, box_width / width, left, left + box_width),
  )


def draw_crop_box(key: Array, height: int, width: int) -> tuple[Array, ...]:
  """Draws the box of a resized crop like torchvision's RandomResizedCrop.

  The area is uniform in 8..100 % of the image area, the aspect ratio is
  log-uniform in 3/4..4/3, and the position is uniform. Up to ten boxes are
  drawn and the first one that fits is used. If none fits, the box is the
  largest center crop with an allowed aspect ratio.

  Args:
    key: a typed random key.
    height: height of the image in pixels.
    width: width of the image in pixels.

  Returns:
    int32 top, left, height and width of the box, in pixels.
  """
  # One call draws all numbers, because each call takes long to compile.
  draws = jax.random.uniform(key, (2 * MAX_CROP_TRIES + 2,))
  area = height * width * _scale_to(*CROP_AREA, draws[:MAX_CROP_TRIES])
  narrowest, widest = map(math.log, CROP_RATIO)
  log_ratio = _scale_to(
    narrowest, widest, draws[MAX_CROP_TRIES : 2 * MAX_CROP_TRIES]
  )
  ratio = jnp.exp(log_ratio)
  heights = jnp.round(jnp.sqrt(area / ratio)).astype(jnp.int32)
  widths = jnp.round(jnp.sqrt(area * ratio)).astype(jnp.int32)
  fits = (0 < heights) & (heights <= height) & (0 < widths) & (widths <= width)
  first = jnp.argmax(fits)
  box_height, box_width = heights[first], widths[first]
  box = (
    _to_integers(draws[-2], height - box_height + 1),
    _to_integers(draws[-1], width - box_width + 1),
    box_height,
    box_width,
  )
  fallback = _center_crop_box(height, width)
  return tuple(
    jnp.where(fits.any(), a, b) for a, b in zip(box, fallback, strict=True)
  )


def _scale_to(low, high, draws):
  """Maps numbers uniform in 0..1 to numbers uniform in low..high."""
  return low + (high - low) * draws


def _to_integers(draws, num):
  """Maps numbers uniform in 0..1 to integers uniform in 0, ..., num - 1."""
  return jnp.floor(draws * num).astype(jnp.int32)


def _center_crop_box(height, width):
  """Returns the largest centered box with an allowed aspect ratio."""
  low, high = CROP_RATIO
  box_height = min(height, round(width / low))
  box_width = min(width, round(height * high))
  return (
    (height - box_height) // 2,
    (width - box_width) // 2,
    box_height,
    box_width,
  )


def resize_center_crop(key: Array, image: Array) -> Array:
  """Resizes by 256/224 and crops the center; this is deterministic."""
  del key

  def weights(size):
    large = size * RESIZE_RATIO[0] // RESIZE_RATIO[1]
    scale = size / large
    start = round((large - size) / 2) * scale
    return bilinear_weights(size, start, scale, 0, size)

  height, width, _ = image.shape
  return resample(image, weights(height), weights(width))


def resample(image: Array, rows: Array, columns: Array) -> Array:
  """Returns an image whose rows and columns are weighted sums of the input's.

  Args:
    image: [H, W, C].
    rows: [H', H] weights of the input rows for each output row.
    columns: [W', W] weights of the input columns for each output column.

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


def bilinear_weights(
  size: int,
  start: float | Array,
  scale: float | Array,
  low: float | Array,
  high: float | Array,
) -> Array:
  """Returns the weights of antialiased bilinear resampling along one axis.

  The center of output pixel i is `start + (i + 1/2) * scale`, in input pixels.
  The weights are those of `jax.image.scale_and_translate`, except that input
  pixels outside low..high have weight 0, as if the image were cropped first.

  Args:
    size: the number of input pixels and of output pixels.
    start: position of the left edge of the first output pixel.
    scale: input pixels per output pixel.
    low: the first input pixel to use.
    high: the last input pixel to use, plus 1.

  Returns:
    [size, size] float32, output by input; each row sums to 1.
  """
  index = jnp.arange(size)
  center = start + (index + 0.5) * scale
  distance = jnp.abs((index + 0.5).reshape(1, size) - center.reshape(size, 1))
  weights = jnp.maximum(1 - distance / jnp.maximum(scale, 1.0), 0)
  inside = ((low <= index) & (index < high)).reshape(1, size)
  weights = jnp.where(inside, weights, 0)
  return weights / weights.sum(axis=1, keepdims=True)


def _compose(*steps):
  """Returns an augmentation that applies `steps` in order."""

  def augment(key, image):
    keys = jax.random.split(key, len(steps))
    for step_key, step in zip(keys, steps, strict=True):
      image = step(step_key, image)
    return image

  return augment


AUGMENTATIONS = {
  'none': identity,
  'flip': random_flip,
  'random_crop': _compose(random_shift, random_flip),
  'color_jitter': _compose(random_shift, jitter_colors, random_flip),
  'random_resized_crop': _compose(random_resized_crop, random_flip),
  'resize_center_crop': resize_center_crop,
}


def augment_batch(name: str, key: Array, images: Array) -> Array:
  """Augments each of N images with its own random key.

  Args:
    name: a key of `AUGMENTATIONS`.
    key: a typed random key; image i uses `fold_in(key, i)`, regardless of N.
    images: uint8 [N, H, W, C], 0..255.

  Returns:
    float32 [N, H, W, C], 0..255; for 'none' the unchanged uint8 images.
  """
  if name == 'none':
    return images
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(
    jnp.arange(images.shape[0])
  )
  floats = images.astype(jnp.float32) / 255
  return jax.vmap(AUGMENTATIONS[name])(keys, floats) * 255


def with_augmentation(
  transform: Callable, *, support: str = 'none', query: str = 'none'
) -> Callable:
  """Returns a transform that augments the images before another transform.

  Args:
    transform: `transform(key, episode) -> episode`, see `data.episodes`.
    support: a key of `AUGMENTATIONS`, applied to the support set.
    query: a key of `AUGMENTATIONS`, applied to the query set.

  Returns:
    A transform with the signature of `transform`.
  """

  def augment(name, key, batch):
    return batch._replace(inputs=augment_batch(name, key, batch.inputs))

  def augment_then_transform(key, episode):
    support_key, query_key, rest = jax.random.split(key, 3)
    episode = Episode(
      augment(support, support_key, episode.support),
      augment(query, query_key, episode.query),
    )
    return transform(rest, episode)

  return augment_then_transform
