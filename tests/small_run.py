"""A config, a data set and a run small enough to be tested many times."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from maml_jax import config as config_lib
from maml_jax import data
from maml_jax.experiment import setup
from maml_jax.types import Dataset, Model

PRESET = pathlib.Path(__file__).parent.parent / 'configs' / 'glyphs_5w1s.py'
OVERRIDES = {
  'task.ways': 3,
  'task.queries': 2,
  'model.width': 4,
  'inner.encoder_lr': 0.1,
  'inner.frozen': '',
  'outer.optimizer': 'sgd',
  'outer.lr': 0.03,
  'train.num_epochs': 2,
  'train.steps_per_epoch': 5,
  'train.meta_batch_size': 8,
  'train.steps_per_call': 3,
  'val.num_tasks': 10,
  'val.queries': 2,
  'eval.num_tasks': 10,
  'eval.queries': 2,
  'eval.num_steps': 1,
}


def flags(**overrides) -> list[str]:
  """Command-line overrides; dots of a field are written as '__'."""
  fields = OVERRIDES | {k.replace('__', '.'): v for k, v in overrides.items()}
  return [f'--config.{field}={value}' for field, value in fields.items()]


def config(**overrides):
  return config_lib.load(str(PRESET), flags(**overrides))


def dataset(split='train', num_classes=8, most=7) -> Dataset:
  """Noise around a pattern of each class; classes differ in size."""
  rng = np.random.default_rng(data.SPLITS.index(split))
  size = rng.integers(5, most + 1, num_classes).astype(np.int32)
  pattern = rng.normal(128, 50, (num_classes, 28, 28, 1)).repeat(size, axis=0)
  image = np.clip(pattern + rng.normal(0, 20, pattern.shape), 0, 255)
  index = np.zeros((num_classes, most), np.int32)
  for c, (start, n) in enumerate(zip(size.cumsum() - size, size, strict=True)):
    index[c, :n] = start + np.arange(n)
  return Dataset(image.astype(np.uint8), index, size)


def model(encoder, num_ways, image_shape, *, meta_test, **_) -> Model:
  """Stands in for `make_model`: one hidden layer, compiled in a second.

  It keeps running moments, of which nothing but `stats` knows. Without ways it
  gives the hidden layer.
  """
  del encoder

  def init(key):
    keys = jax.random.split(key)
    shapes = (math.prod(image_shape), 8), (8, num_ways or 1)
    first, last = (
      jax.random.normal(k, shape) * shape[0] ** -0.5
      for k, shape in zip(keys, shapes, strict=True)
    )
    params = {'encoder': {'kernel': first}, 'classifier': {'kernel': last}}
    return params, {'global': {'mean': jnp.zeros(8)}}

  def apply(params, stats, image, *, train):
    hidden = image.reshape(len(image), -1) @ params['encoder']['kernel']
    mean = stats['global']['mean']
    logits = jnp.tanh(hidden - mean[None])
    if num_ways:
      logits = logits @ params['classifier']['kernel']
    if train and not meta_test:
      mean = 0.9 * mean + 0.1 * jax.lax.stop_gradient(hidden.mean(0))
    return logits, {'global': {'mean': mean}}

  return Model(init, apply)


def use(monkeypatch, cache) -> None:
  """Lets all data sets and models be those here, and programs go to `cache`."""
  monkeypatch.setenv('MAML_JAX_CACHE', str(cache))
  monkeypatch.setattr(
    data, 'load_dataset', lambda name, split, data_dir: dataset(split)
  )
  monkeypatch.setattr(setup, 'make_model', model)


def on_device(dataset: Dataset) -> Dataset:
  return Dataset(*map(jnp.asarray, dataset))
