"""Folders of small images, and an untrained checkpoint."""

import pathlib

import jax
import numpy as np
import small_run
from PIL import Image, ImageDraw

from maml_jax.experiment import checkpoint, setup

CLASSES = ('bar', 'disc', 'frame')
SUFFIXES = ('png', 'jpg', 'webp', 'bmp', 'gif', 'tif')


def draw_picture(
  name: str, seed: int, size=(60, 48), mode='RGB'
) -> Image.Image:
  """Returns a black shape at a random position on white.

  Args:
    name: the shape, one of `CLASSES`.
    seed: determines the position.
    size: width and height.
    mode: of the Pillow image.
  """
  rng = np.random.default_rng(seed)
  width, height = size
  image = Image.new(mode, size, 'white')
  pen = ImageDraw.Draw(image)
  x, y = (int(rng.integers(0, side // 8)) for side in size)
  box = x + width // 8, y + height // 8, x + 5 * width // 8, y + 5 * height // 8
  if name == 'bar':
    pen.rectangle((box[0], height // 2 - 3, box[2], height // 2 + 3), 'black')
  elif name == 'disc':
    pen.ellipse(box, 'black')
  else:
    pen.rectangle(box, outline='black', width=3)
  return image


def write_class_folders(
  path: pathlib.Path, count: int, start: int = 0, classes=CLASSES
) -> pathlib.Path:
  """Writes one folder per class with images of several formats and sizes.

  Args:
    path: the folder of the class folders.
    count: images per class.
    start: number of the first image, which is also its file name.
    classes: names of the shapes.

  Returns:
    `path`.
  """
  for c, name in enumerate(classes):
    folder = path / name
    folder.mkdir(parents=True)
    for i in range(start, start + count):
      size = (60 + 7 * i % 30, 48 + 5 * i % 20)
      image = draw_picture(name, 100 * c + i, size, 'L' if i % 2 else 'RGB')
      image.save(folder / f'{i}.{SUFFIXES[i % len(SUFFIXES)]}')
  return path


def make_checkpoint(path: pathlib.Path, **overrides) -> pathlib.Path:
  """Saves the initial parameters of `small_run.config` as a checkpoint."""
  config = small_run.config(**overrides)
  learner = setup.phase_learner(config, setup.train_phase(config))
  params, stats = jax.jit(learner.init)(jax.random.key(5))
  saved = checkpoint.Checkpoint(path, config, 0, params, stats, [], {})
  return checkpoint.export(saved, path)
