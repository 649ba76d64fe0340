"""Augmentations match Pillow, NumPy and the documentation of torchvision.

Distributions are compared with Kolmogorov-Smirnov or chi-square tests at fixed
keys; a p-value below 1e-3 is a failure.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy import stats

from maml_jax.data import augment
from maml_jax.data.augment import (
  AUGMENTATIONS,
  augment_batch,
  with_augmentation,
)
from maml_jax.data.episodes import make_transform
from maml_jax.types import Batch, Episode
from maml_jax.utils.errors import UserError


def key(number=0):
  return jax.random.key(number)


def keys(number, num):
  return jax.random.split(key(number), num)


def pixels(shape=(24, 36, 3), seed=0, num=None):
  """Returns random uint8 images."""
  shape = shape if num is None else (num, *shape)
  return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def floats(*args, **kwargs):
  return jnp.array(pixels(*args, **kwargs), jnp.float32) / 255


def with_keys(function, number, num, *args):
  """Calls a function with `num` keys and returns stacked NumPy arrays."""
  call = jax.jit(jax.vmap(lambda one: function(one, *args)))
  return jax.tree.map(np.asarray, call(keys(number, num)))


def same_distribution(one, other):
  """Returns whether two samples pass a Kolmogorov-Smirnov test."""
  return stats.ks_2samp(one, other, method='asymp').pvalue > 1e-3


def apply_pillow(image, function):
  """Applies a function of float Pillow images to each channel."""
  channels = [
    np.asarray(function(Image.fromarray(np.asarray(image[..., c]))))
    for c in range(image.shape[-1])
  ]
  return np.stack(channels, axis=-1)


# All augmentations.

AUGMENT_BATCH = jax.jit(augment_batch, static_argnums=0)


@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_batch_under_jit_equals_single_images_without_jit(name):
  image = pixels(num=3)
  got = AUGMENT_BATCH(name, key(), image)
  for i in range(3):
    one = AUGMENTATIONS[name](
      jax.random.fold_in(key(), i), jnp.array(image[i], jnp.float32) / 255
    )
    np.testing.assert_allclose(got[i] / 255, one, atol=2e-5)


@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_images_of_a_batch_change_differently(name):
  image = np.repeat(pixels(num=1), 8, axis=0)
  out = np.asarray(AUGMENT_BATCH(name, key(), image))
  assert out.shape == image.shape
  assert out.dtype == (np.uint8 if name == 'none' else np.float32)
  assert 0 <= out.min() <= out.max() <= 255 * (1 + 1e-5)
  distinct = len({one.tobytes() for one in out})
  assert distinct == {'none': 1, 'resize_center_crop': 1, 'flip': 2}.get(
    name, 8
  )
  other = np.asarray(AUGMENT_BATCH(name, key(1), image))
  assert (other == out).all() == (name in ('none', 'resize_center_crop'))


# Support and query sets.


def episode(num=8):
  def batch(seed):
    label = jnp.arange(num, dtype=jnp.int32)
    return Batch(jnp.array(pixels(num=num, seed=seed)), label)

  return Episode(batch(1), batch(2))


@pytest.mark.parametrize(
  'names', [('flip', 'none'), ('none', 'resize_center_crop')]
)
def test_support_and_query_use_their_own_augmentation(names):
  plain = make_transform((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
  transform = with_augmentation(plain, support=names[0], query=names[1])
  task = episode()
  augmented = jax.jit(transform)(key(), task)
  original = jax.jit(plain)(key(), task)
  for name, new, old in zip(names, augmented, original, strict=True):
    assert (new.targets == old.targets).all()
    assert new.inputs.dtype == jnp.float32
    change = abs(new.inputs - old.inputs).max(axis=(1, 2, 3))
    if name == 'flip':
      flipped = new.inputs[:, :, ::-1]
      flipped_change = abs(flipped - old.inputs).max(axis=(1, 2, 3))
      assert 0 < (flipped_change < 1e-5).sum() < len(flipped_change)
      assert (jnp.minimum(change, flipped_change) < 1e-5).all()
    else:
      assert (change < 1e-5 if name == 'none' else change > 0.1).all()


def test_black_padding_is_added_before_normalization():
  transform = with_augmentation(
    make_transform((0.5,) * 3, (0.25,) * 3), query='random_crop'
  )
  white = Batch(jnp.full((16, 9, 9, 3), 255, jnp.uint8), None)
  image = jax.jit(transform)(key(), Episode(white, white)).query.inputs
  np.testing.assert_allclose(abs(image), 2, atol=1e-6)
  assert 0 < (image < 0).sum() < image.size


def test_support_and_query_use_different_keys():
  same = Episode(episode().support, episode().support)
  transform = with_augmentation(
    make_transform(), support='random_crop', query='random_crop'
  )
  got = jax.jit(transform)(key(), same)
  assert (got.support.inputs != got.query.inputs).any(axis=(1, 2, 3)).all()


def test_vmapped_tasks_equal_single_tasks():
  transform = with_augmentation(
    make_transform(), support='flip', query='random_crop'
  )
  tasks = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), episode(4))
  got = jax.jit(jax.vmap(transform))(keys(3, 2), tasks)
  alone = jax.jit(transform)
  for i, one in enumerate(keys(3, 2)):
    task = jax.tree.map(lambda x, i=i: x[i], tasks)
    for new, old in zip(got, alone(one, task), strict=True):
      np.testing.assert_allclose(new.inputs[i], old.inputs, atol=2e-6)


# random_flip and random_shift.


def test_flip_has_probability_one_half():
  image = floats()
  out = with_keys(AUGMENTATIONS['flip'], 4, 4000, image)
  mirrored = (out == image[None, :, ::-1]).all(axis=(1, 2, 3))
  assert (mirrored | (out == image[None]).all(axis=(1, 2, 3))).all()
  assert stats.binomtest(int(mirrored.sum()), 4000).pvalue > 1e-3


def test_random_crop_is_a_uniform_window_of_the_padded_image():
  height, width = 11, 9
  number = np.arange(1, height * width + 1, dtype=np.float32)
  image = jnp.array(number.reshape(height, width, 1) / 128)
  padded = np.pad(np.asarray(image), ((8, 8), (8, 8), (0, 0)))
  windows = {}
  for top, left, mirrored in itertools.product(range(17), range(17), (0, 1)):
    window = padded[top : top + height, left : left + width]
    window = window[:, ::-1] if mirrored else window
    windows[window.tobytes()] = top, left, mirrored
  assert len(windows) == 17 * 17 * 2
  out = with_keys(AUGMENTATIONS['random_crop'], 5, 17 * 17 * 2 * 20, image)
  found = [windows[one.tobytes()] for one in out]
  _, counts = np.unique(found, axis=0, return_counts=True)
  assert len(counts) == len(windows)
  assert stats.chisquare(counts).pvalue > 1e-3


# color_jitter.


def brightness(image, factor):
  return np.clip(image * factor, 0, 1)


def gray(image):
  if image.shape[-1] == 1:
    return image[..., 0]
  red, green, blue = np.moveaxis(image, -1, 0)
  return 0.2989 * red + 0.587 * green + 0.114 * blue


def contrast(image, factor):
  return np.clip(image * factor + (1 - factor) * gray(image).mean(), 0, 1)


def saturation(image, factor):
  return np.clip(image * factor + (1 - factor) * gray(image)[..., None], 0, 1)


REFERENCES = [brightness, contrast, saturation]
ADJUST_COLORS = jax.jit(augment.adjust_colors)


@pytest.mark.parametrize('order', list(itertools.permutations(range(3))))
def test_adjust_colors_matches_numpy(order):
  image = floats()
  for factor in ((0.6, 1.4, 0.8), (1.3, 0.7, 1.4), (1.0, 1.0, 1.0)):
    expected = np.asarray(image, np.float64)
    for step, ratio in zip(order, factor, strict=True):
      expected = REFERENCES[step](expected, ratio)
    got = ADJUST_COLORS(image, jnp.array(order), jnp.array(factor))
    np.testing.assert_allclose(got, expected, atol=2e-6)


@pytest.mark.parametrize('factor', [0.6, 0.9, 1.4])
@pytest.mark.parametrize(
  'step, enhance',
  [
    (0, ImageEnhance.Brightness),
    (1, ImageEnhance.Contrast),
    (2, ImageEnhance.Color),
  ],
)
def test_adjust_colors_matches_pillow(step, enhance, factor):
  image = pixels()
  expected = np.asarray(enhance(Image.fromarray(image)).enhance(factor))
  got = ADJUST_COLORS(floats(), jnp.array([step]), jnp.array([factor]))
  # Pillow rounds gray levels, their mean and the blend to 8 bits.
  np.testing.assert_allclose(got * 255, expected, atol=1.6)


def test_grayscale_jitter_is_uniform():
  """Brightness scales the mean; contrast scales the deviation from it."""
  image = jnp.array(0.45 + (floats((9, 7, 1)) - 0.5) * 0.1)
  out = with_keys(augment.jitter_colors, 6, 2000, image)
  mean = out.mean(axis=(1, 2, 3)) / image.mean()
  spread = out.std(axis=(1, 2, 3)) / image.std() / mean
  for factor in (mean, spread):
    assert stats.kstest(factor, stats.uniform(0.6, 0.8).cdf).pvalue > 1e-3


def test_brightness_jitter_is_uniform():
  """In uniformly gray images only brightness has an effect."""
  image = jnp.full((2, 2, 3), 0.5)
  factor = with_keys(augment.jitter_colors, 7, 4000, image)[:, 0, 0, 0] / 0.5
  test = stats.kstest(factor, stats.uniform(0.6, 0.8).cdf)
  assert test.pvalue > 1e-3


@pytest.mark.parametrize('channels', [1, 3])
def test_jitter_orders_and_factors_are_uniform_and_independent(
  channels, monkeypatch
):
  monkeypatch.setattr(augment, 'adjust_colors', lambda _, *drawn: drawn)
  image = jnp.zeros((2, 2, channels))
  order, factor = with_keys(augment.jitter_colors, 8, 6000, image)
  num_steps = {1: 2, 3: 3}[channels]
  assert order.shape == factor.shape == (6000, num_steps)
  orders, order_ids, counts = np.unique(
    order, axis=0, return_inverse=True, return_counts=True
  )
  assert orders.tolist() == list(
    map(list, itertools.permutations(range(num_steps)))
  )
  assert stats.chisquare(counts).pvalue > 1e-3
  for i in range(num_steps):
    assert stats.kstest(factor[:, i], stats.uniform(0.6, 0.8).cdf).pvalue > 1e-3
    groups = [factor[order_ids == j, i] for j in range(len(orders))]
    assert stats.kruskal(*groups).pvalue > 1e-3
    for j in range(i):
      assert stats.spearmanr(factor[:, i], factor[:, j]).pvalue > 1e-3


def test_jitter_keeps_gray_images_gray():
  image = jnp.repeat(floats((9, 7, 1)), 3, axis=-1)
  out = with_keys(augment.jitter_colors, 9, 20, image)
  np.testing.assert_allclose(out, out[..., :1].repeat(3, -1), atol=1e-6)


def test_color_jitter_crops_jitters_and_flips():
  """The center of a gradient always remains visible and is never clipped."""
  gradient = jnp.linspace(0.2, 0.4, 20).reshape(1, 20, 1)
  out = with_keys(
    AUGMENTATIONS['color_jitter'], 10, 400, jnp.tile(gradient, (20, 1, 3))
  )
  # A contrast factor below 1 turns the black padding of the crop gray.
  num_gray = int((out.min(axis=(1, 2, 3)) > 1e-3).sum())
  assert stats.binomtest(num_gray, 400).pvalue > 1e-3
  rise = out[:, 10, 11, 0] - out[:, 10, 9, 0]
  assert (rise != 0).all()
  assert stats.binomtest(int((rise > 0).sum()), 400).pvalue > 1e-3


def test_color_jitter_with_four_channels_raises_error():
  with pytest.raises(UserError, match='requires 1 or 3 channels, got 4'):
    AUGMENTATIONS['color_jitter'](key(), jnp.zeros((4, 4, 4)))


# random_resized_crop and resize_center_crop.


@jax.jit
def resize_box(image, top, left, height, width):
  rows, columns, _ = image.shape
  scale_y, scale_x = height / rows, width / columns
  return augment.resample(
    image,
    augment.bilinear_weights(rows, top, scale_y, top, top + height),
    augment.bilinear_weights(columns, left, scale_x, left, left + width),
  )


@pytest.mark.parametrize(
  'box',
  [(0, 0, 24, 36), (3, 5, 7, 20), (0, 30, 24, 6), (23, 35, 1, 1), (2, 0, 9, 8)],
)
def test_box_resize_matches_pillow(box):
  image = floats()
  top, left, height, width = box
  expected = apply_pillow(
    image,
    lambda one: one.crop((left, top, left + width, top + height)).resize(
      (36, 24), Image.Resampling.BILINEAR
    ),
  )
  np.testing.assert_allclose(resize_box(image, *box), expected, atol=1e-5)


def test_box_of_the_whole_image_is_the_identity():
  image = floats()
  np.testing.assert_allclose(resize_box(image, 0, 0, 24, 36), image, atol=1e-6)


def test_weights_match_jax_image():
  """Also covers downscaling, which no augmentation uses so far."""
  size, start, scale = 20, 1.25, 1.7
  image = floats((size, 7, 3))
  expected = jax.jit(
    lambda image: jax.image.scale_and_translate(
      image,
      (size, 7, 3),
      (0,),
      jnp.array([1 / scale]),
      jnp.array([-start / scale]),
      'linear',
    )
  )(image)
  weights = jax.jit(augment.bilinear_weights, static_argnums=0)(
    size, start, scale, 0, size
  )
  center = start + (np.arange(size) + 0.5) * scale
  inside = center < size  # outside, jax.image fills with zeros
  got = jax.jit(augment.resample)(image, weights, jnp.eye(7))
  np.testing.assert_allclose(got[inside], expected[inside], atol=1e-5)


@pytest.mark.parametrize('shape', [(84, 84, 3), (32, 32, 3), (9, 28, 1)])
def test_resize_center_crop_matches_pillow(shape):
  image = floats(shape)
  height, width, _ = shape
  large_height, large_width = int(height * 256 / 224), int(width * 256 / 224)
  top = int(round((large_height - height) / 2))
  left = int(round((large_width - width) / 2))
  expected = apply_pillow(
    image,
    lambda one: one.resize(
      (large_width, large_height), Image.Resampling.BILINEAR
    ).crop((left, top, left + width, top + height)),
  )
  got = jax.jit(AUGMENTATIONS['resize_center_crop'])(key(), image)
  np.testing.assert_allclose(got, expected, atol=1e-5)


def torchvision_box(rng, height, width):
  """Draws one box as the documentation of RandomResizedCrop specifies."""
  for _ in range(10):
    area = height * width * rng.uniform(0.08, 1.0)
    ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    if 0 < w <= width and 0 < h <= height:
      top = rng.integers(0, height - h + 1)
      return top, rng.integers(0, width - w + 1), h, w
  h, w = height, width
  if width / height < 3 / 4:
    h = round(width / (3 / 4))
  elif width / height > 4 / 3:
    w = round(height * (4 / 3))
  return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(
  'size', [(84, 84), (24, 36), (10, 100), (100, 10), (2, 2)]
)
def test_crop_boxes_match_torchvision_distribution(size):
  num = 5000
  got = np.stack(with_keys(augment.draw_crop_box, 11, num, *size), axis=1)
  rng = np.random.default_rng(0)
  expected = np.array([torchvision_box(rng, *size) for _ in range(num)])
  top, left, height, width = got.T
  assert min(top.min(), left.min(), height.min() - 1, width.min() - 1) >= 0
  assert (top + height).max() <= size[0]
  assert (left + width).max() <= size[1]

  def statistics(boxes):
    top, left, height, width = boxes.T
    margin = size[1] - width
    return {
      'top': top,
      'left': left,
      'height': height,
      'width': width,
      'area': height * width,
      'ratio': width / height,
      'position': np.where(margin > 0, left / np.maximum(margin, 1), 0.5),
    }

  reference = statistics(expected)
  for name, values in statistics(got).items():
    assert same_distribution(values, reference[name]), name


@pytest.mark.parametrize(
  'size, center_box',
  [((10, 100), (0, 43, 10, 13)), ((100, 10), (43, 0, 13, 10))],
)
def test_elongated_images_fall_back_to_the_center_crop(size, center_box):
  """The frequency is the probability that ten boxes in a row do not fit."""
  num = 4000
  boxes = np.stack(with_keys(augment.draw_crop_box, 12, num, *size), axis=1)
  rng = np.random.default_rng(1)
  area = 1000 * rng.uniform(0.08, 1, (200_000, 10))
  ratio = np.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3), area.shape))
  squared_side = area / ratio if size[0] == 10 else area * ratio
  probability = (np.sqrt(squared_side).round() > 10).all(axis=1).mean()
  count = (boxes == center_box).all(axis=1).sum()
  assert probability > 0.3
  # A drawn box is rarely equal to the center crop.
  assert probability - 0.03 < count / num < probability + 0.04


def test_random_resized_crop_boxes_match_torchvision_distribution():
  """The box size is measured by the slopes of a resized linear gradient."""
  height, width = 40, 50
  rows, columns = np.mgrid[:height, :width] / 64
  image = jnp.array(np.stack([rows, columns], axis=-1), jnp.float32)
  num = 2000
  out = with_keys(AUGMENTATIONS['random_resized_crop'], 13, num, image).astype(
    np.float64
  )
  a, b = height // 2 - 1, width // 2 - 1
  across = (out[:, 0, b + 1, 1] - out[:, 0, b, 1]) * 64 * width
  down = (out[:, a + 1, 0, 0] - out[:, a, 0, 0]) * 64 * height
  assert stats.binomtest(int((across < 0).sum()), num).pvalue > 1e-3
  rng = np.random.default_rng(2)
  boxes = np.array([torchvision_box(rng, height, width) for _ in range(num)])
  for got, column in ((down, 2), (abs(across), 3)):
    np.testing.assert_allclose(got, got.round(), atol=0.05)
    assert same_distribution(got.round(), boxes[:, column])
