"""A config, a data set and a model that train within seconds."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from maml_jax import config as config_lib
from maml_jax import data
from maml_jax.experiment import setup
from maml_jax.types import Dataset, Model
from maml_jax.utils.compilation_cache import enable_compilation_cache

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
  """Returns command-line flags of a small run.

  Args:
    **overrides: more fields, such as `train__num_epochs=1`.
  """
  fields = OVERRIDES | {k.replace('__', '.'): v for k, v in overrides.items()}
  return [f'--config.{field}={value}' for field, value in fields.items()]


def config(**overrides):
  """Returns the config of a small run; see `flags`."""
  return config_lib.load(str(PRESET), flags(**overrides))


def dataset(split='train', num_classes=8, max_images=7) -> Dataset:
  """Returns a data set of one noisy pattern per class.

  Args:
    split: seeds the random numbers.
    num_classes: number of classes.
    max_images: maximum number of images per class; the minimum is 5.
  """
  rng = np.random.default_rng(data.SPLITS.index(split))
  size = rng.integers(5, max_images + 1, num_classes).astype(np.int32)
  pattern = rng.normal(128, 50, (num_classes, 28, 28, 1)).repeat(size, axis=0)
  images = np.clip(pattern + rng.normal(0, 20, pattern.shape), 0, 255)
  index = np.zeros((num_classes, max_images), np.int32)
  for c, (start, n) in enumerate(zip(size.cumsum() - size, size, strict=True)):
    index[c, :n] = start + np.arange(n)
  return Dataset(images.astype(np.uint8), index, size)


def model(encoder, num_ways, image_shape, *, meta_test, **_) -> Model:
  """Replaces `make_model`: one hidden layer, which compiles in a second.

  Its running mean is stored in `stats` only.
  """
  del encoder

  def init(key):
    keys = jax.random.split(key)
    shapes = (math.prod(image_shape), 8), (8, num_ways)
    first, last = (
      jax.random.normal(k, shape) * shape[0] ** -0.5
      for k, shape in zip(keys, shapes, strict=True)
    )
    head = {'kernel': last, 'bias': jnp.zeros(num_ways)}
    params = {'encoder': {'kernel': first}, 'classifier': head}
    return params, {'global': {'mean': jnp.zeros(8)}}

  def features(params, stats, inputs, *, train):
    hidden = inputs.reshape(len(inputs), -1) @ params['encoder']['kernel']
    mean = stats['global']['mean']
    outputs = jnp.tanh(hidden - mean[None])
    if train and not meta_test:
      mean = 0.9 * mean + 0.1 * jax.lax.stop_gradient(hidden.mean(0))
    return outputs, {'global': {'mean': mean}}

  def apply(params, stats, inputs, *, train):
    outputs, stats = features(params, stats, inputs, train=train)
    head = params['classifier']
    return outputs @ head['kernel'] + head['bias'][None], stats

  return Model(init, apply, features)


def use(monkeypatch, cache) -> None:
  """Replaces all data sets and models by those of this module.

  Args:
    monkeypatch: a `pytest.MonkeyPatch`.
    cache: the directory of compiled programs.
  """
  monkeypatch.setenv('MAML_JAX_CACHE', str(cache))
  enable_compilation_cache()
  monkeypatch.setattr(
    data, 'load_dataset', lambda name, split, data_dir: dataset(split)
  )
  monkeypatch.setattr(setup, 'make_model', model)


def on_device(dataset: Dataset) -> Dataset:
  """Returns a data set with its arrays on the default device."""
  return Dataset(*map(jnp.asarray, dataset))
