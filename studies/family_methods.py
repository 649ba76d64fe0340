"""The methods that `studies.family` compares, and their configs."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from maml_jax import config as config_lib

__all__ = [
  'DATASETS',
  'METHODS',
  'PRETRAINED',
  'Method',
  'read_config',
  'tuned_rates',
]

DATASETS = ('glyphs', 'omniglot')

# The same encoder, tasks and meta-iterations for every method.
SHARED = {
  'model.encoder': 'convnet4',
  'task.ways': 20,
  'task.queries': 5,
  'train.meta_batch_size': 4,
  'train.steps_per_epoch': 100,
  'train.num_epochs': 5,
  'val.num_tasks': 100,
  'val.queries': 5,
  'eval.num_tasks': 600,
  'eval.queries': 5,
  'eval.curve_tasks': 0,
}
# For `--quick`.
QUICK = {
  'model.width': 4,
  'train.steps_per_epoch': 10,
  'train.num_epochs': 2,
  'val.num_tasks': 8,
  'eval.num_tasks': 16,
}

# Factors on the inner learning rate of every method, for tuning.
RATE_FACTORS = (0.25, 1.0, 4.0)
RATE_FIELDS = ('inner.encoder_lr', 'inner.classifier_lr')


class Method(NamedTuple):
  """A row of the tables.

  Attributes:
    label: its name in the tables.
    preset: name of a preset.
    rate: inner learning rate in the middle of the tuning grid, that of
      preset omniglot_20w1s unless the method has a rate of its own; 0 if it
      is not tuned.
    fields: config fields in addition to `SHARED`.
    datasets: the data sets it is trained on.
    more_steps: whether it is evaluated with more steps than in training:
      methods with a rate per step, and others for comparison.
  """

  label: str
  preset: str = 'mini_5w1s'
  rate: float = 0.1
  fields: Mapping[str, Any] = {}
  datasets: tuple[str, ...] = DATASETS
  more_steps: bool = False


METHODS = {
  'maml': Method('MAML', more_steps=True),
  'first_order': Method(
    'First order', fields={'outer.gradient': 'first_order'}
  ),
  'anil': Method('ANIL', 'anil'),
  'boil': Method('BOIL', 'boil', 0.5),
  'meta_sgd': Method('Meta-SGD', 'meta_sgd', more_steps=True),
  # Its published multi-step loss ends after 15 of 100 epochs.
  'mamlpp': Method(
    'MAML++', 'mamlpp', fields={'outer.loss_epochs': 1}, more_steps=True
  ),
  'alfa': Method('ALFA', 'alfa', more_steps=True),
  'meta_curvature': Method('Meta-Curvature', 'meta_curvature', more_steps=True),
  'proto_net': Method('ProtoNet', 'proto_net', 0.0),
  'proto_maml': Method('ProtoMAML', 'proto_maml'),
  'unicorn': Method('Zero head (UNICORN-MAML)', 'unicorn'),
  'imaml': Method('iMAML', 'imaml'),
  # Without a query loss, it adapts to five of the same six images per class.
  'reptile': Method(
    'Reptile',
    'reptile',
    0.001,
    {
      'task.shots': 5,
      'task.queries': 1,
      'val.num_steps': 20,
    },
  ),
  'cavia': Method('CAVIA', 'cavia', 1.0),
  # Batches of as many images as a task has, not augmented either.
  'pretrain': Method(
    'Pre-training',
    'mini_pretrain',
    0.0,
    {'data.augment_query': 'none', 'pretrain.batch_size': 120},
  ),
  'omniglot_20w1s': Method(
    'Preset omniglot_20w1s, 64 filters',
    'omniglot_20w1s',
    0.0,
    {'model.encoder': 'wide_convnet4'},
    ('omniglot',),
  ),
}

# Classifiers of the features of the pre-trained encoder: baseline -> label.
PRETRAINED = {
  'nearest_centroid': 'Pre-trained, nearest centroid',
  'simple_shot': 'Pre-trained, SimpleShot',
  'linear_head': 'Pre-trained, logistic regression',
  'cosine_head': 'Pre-trained, cosine head',
}


def tuned_rates(method: str, *, quick: bool = False) -> list[float]:
  """Returns the inner learning rates to compare; [] if it is not tuned."""
  rate, factors = METHODS[method].rate, (1.0,) if quick else RATE_FACTORS
  return [rate * factor for factor in factors] if rate else []


def read_config(
  dataset: str,
  method: str,
  seed: int,
  rate: float | None = None,
  *,
  quick: bool = False,
) -> ConfigDict:
  """Returns the config of a training and its evaluation.

  Args:
    dataset: name of the data set.
    method: a key of `METHODS`.
    seed: of the training.
    rate: inner learning rate; default that of the preset.
    quick: use tiny settings.
  """
  changes = SHARED | dict(METHODS[method].fields) | (QUICK if quick else {})
  changes |= {'data.name': dataset, 'seed': seed}
  config = config_lib.load_preset(METHODS[method].preset)
  if rate is not None:
    flat = config_lib.flatten(config)
    # A rate of 0 means that the head is not adapted.
    changes |= {field: rate for field in RATE_FIELDS if flat[field]}
  config.update_from_flattened_dict(changes)
  config.eval.num_steps = config.val.num_steps
  config_lib.validate(config)
  return config
