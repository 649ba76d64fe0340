"""Checks of configs: types, ranges, choices, and fields that must agree.

Every error is a `UserError` of one line that names the field as it is written
on the command line and what would be valid. Types follow from the defaults in
`default_config`; only ranges and choices are listed here.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from maml_jax import default_config
from maml_jax.config_versions import RENAMED_AUGMENTATIONS
from maml_jax.learner_config import (
  INNER_CHOICES,
  OUTER_CHOICES,
  InnerConfig,
  OuterConfig,
  check_settings,
)
from maml_jax.utils.errors import UserError, check_choice, printable

__all__ = [
  'NORMS',
  'TYPE_NAMES',
  'flatten',
  'learner_configs',
  'norm_modes',
  'require_enough_images',
  'to_tuples',
  'validate',
]

NORMS = (
  'batch',
  'global',
  'episodic',
  'cumulative',
  'support',
  'tasknorm',
  'tasknorm_global',
)
AUGMENTATIONS = (
  'none',
  'flip',
  'random_crop',
  'color_jitter',
  'random_resized_crop',
  'resize_center_crop',
)
DATA_SETS = (
  'glyphs',
  'omniglot',
  'mini_imagenet',
  'tiered_imagenet',
  'cifar_fs',
  'fc100',
  'folder',
  'cub',
  'inat2017',
  'sinusoid',
)

CHOICES = {
  'precision': ('float32', 'tf32', 'bfloat16'),
  'data.name': DATA_SETS,
  'data.placement': ('auto', 'device', 'host'),
  'data.augment_support': AUGMENTATIONS,
  'data.augment_query': AUGMENTATIONS,
  'model.encoder': (
    'convnet4',
    'wide_convnet4',
    'resnet10',
    'wide_resnet10',
    'resnet12',
    'wide_resnet12',
    'resnet18',
    'wide_resnet18',
    'mlp',
  ),
  'model.init': ('torch', 'xavier'),
  **{f'inner.{name}': choices for name, choices in INNER_CHOICES.items()},
  **{f'outer.{name}': choices for name, choices in OUTER_CHOICES.items()},
  'outer.optimizer': ('sgd', 'rmsprop', 'adam', 'adamw'),
  'outer.schedule': ('constant', 'step', 'cosine'),
  'train.objective': ('tasks', 'classes'),
  'pretrain.head': ('cosine', 'linear'),
  'val.augment_support': AUGMENTATIONS,
  'eval.data': ('', *DATA_SETS),
  'eval.split': ('train', 'val', 'test'),
  'eval.checkpoint': ('best', 'latest'),
  'eval.augment_support': AUGMENTATIONS,
}

# Smallest and largest valid numbers. Larger integers are mistakes, and would
# take memory or time without end; other numbers only need to be finite.
MAX_INTEGER = 10**6
DEFAULT_RANGE = (0, MAX_INTEGER)
RANGES = {
  'seed': (0, 2**32 - 1),  # JAX drops higher bits
  **{
    f'{section}.{name}': (1, MAX_INTEGER)
    for section in ('task', 'val', 'eval')
    for name in ('ways', 'shots', 'queries')
  },
  'model.width': (0, 4096),
  'model.context_size': (0, 4096),
  'inner.num_steps': (0, 10**4),
  'outer.cg_steps': (1, MAX_INTEGER),
  'outer.warmup_epochs': (0, 10**9),
  'train.num_epochs': (0, 10**9),
  'train.steps_per_epoch': (1, 10**9),
  'train.meta_batch_size': (1, MAX_INTEGER),
  'train.steps_per_call': (1, MAX_INTEGER),
  'pretrain.batch_size': (1, MAX_INTEGER),
  'val.num_tasks': (1, MAX_INTEGER),
  'val.num_steps': (0, 10**4),
  'eval.num_steps': (0, 10**4),
}
POSITIVE = (
  'model.norm_eps',
  'model.temperature',
  'outer.clip_value',
  'outer.temperature',
)
NEEDS_CLASSES = {
  'train.objective': 'classes',
  'inner.head': 'prototype',
  'inner.class_weights': 'balanced',
}
MAX_LENGTH = 4096  # characters of a string, or items of a list
MAX_STEP = 2**31 - 1  # meta-iterations are counted in int32

NORM_FIELDS = ('model.norm', 'eval.norm')  # a mode, or (pattern, mode) pairs
TYPE_NAMES = {
  bool: 'true or false',
  int: 'an integer',
  float: 'a number',
  str: 'a string',
  tuple: 'a list',
}


def validate(config: ConfigDict) -> None:
  """Raises UserError for the first invalid value of a config."""
  fields = flatten(config)
  types = _types()
  missing = {*types, *NORM_FIELDS} - fields.keys()
  if missing:
    raise UserError(
      f'the config lacks {", ".join(sorted(missing))}: start from '
      'maml_jax.default_config.get_config()'
    )
  for field, kind in types.items():
    _check_type(field, fields[field], kind)
  for field, choices in CHOICES.items():
    value = fields[field]
    if choices is AUGMENTATIONS and value in RENAMED_AUGMENTATIONS:
      new = RENAMED_AUGMENTATIONS[value]
      raise UserError(f'config.{field}={value}: it is now {new}')
    check_choice(f'config.{field}', value, choices)
  _check_numbers(fields, types)
  for field in NORM_FIELDS:
    for mode in norm_modes(f'config.{field}', fields[field]):
      check_choice(f'config.{field}', mode, NORMS)
  for field in ('inner.frozen', 'inner.zero', 'inner.per_step'):
    _check_items(field, fields[field], str)
  _check_rates(fields)
  _check_items('outer.milestones', fields['outer.milestones'], int)
  _check_grid(fields)
  _check_network(fields)
  _check_task_kind(fields)
  learner_configs(fields)


def learner_configs(
  fields: dict[str, Any],
) -> tuple[InnerConfig, OuterConfig]:
  """Returns the settings of the learner in a config.

  Args:
    fields: from `flatten`.

  Raises:
    UserError: they exclude each other.
  """

  def section(name, kind):
    names = (field.name for field in dataclasses.fields(kind))
    return kind(**{field: fields[f'{name}.{field}'] for field in names})

  inner, outer = section('inner', InnerConfig), section('outer', OuterConfig)
  check_settings(inner, outer)
  return inner, outer


def require_enough_images(
  name: str, size: Sequence[int], *, ways: int, shots: int, queries: int
) -> None:
  """Raises UserError if a split is too small for a task.

  Args:
    name: the split, for the message, such as 'mini_imagenet train'.
    size: images per class, [classes].
    ways: classes of a task.
    shots: support images per class.
    queries: query images per class.
  """
  if ways > len(size):
    raise UserError(f'{ways} ways, but {name} has {len(size)} classes')
  needed, available = shots + queries, int(min(size))
  if needed > available:
    raise UserError(
      f'{shots} shots and {queries} queries are {needed} images, but a class '
      f'of {name} has {available}: use at most {max(available - shots, 0)} '
      'queries'
    )


def flatten(config: ConfigDict) -> dict[str, Any]:
  """Returns the fields of a config as {'task.ways': 5, ...}."""
  return dict(_leaves(to_tuples(config.to_dict())))


def to_tuples(tree: Any) -> Any:
  """Converts the lists in a tree to tuples, which JSON does not have."""
  if isinstance(tree, dict):
    return {key: to_tuples(value) for key, value in tree.items()}
  return tuple(map(to_tuples, tree)) if isinstance(tree, list) else tree


def norm_modes(field: str, norm: Any) -> list[str]:
  """Returns the modes in a value of `model.norm`.

  Args:
    field: its name, for the message.
    norm: a mode, or a tuple of (pattern, mode) pairs.

  Raises:
    UserError: it is neither.
  """
  if isinstance(norm, str):
    return [norm]
  if not isinstance(norm, tuple) or not all(
    isinstance(pair, tuple) and list(map(type, pair)) == [str, str]
    for pair in norm
  ):
    raise UserError(
      f'{field}={printable(norm)}: neither a mode such as support nor pairs '
      "such as (('conv4', 'support'), ('*', 'global'))"
    )
  return [mode for _, mode in norm]


def _types() -> dict[str, type]:
  """Returns the type of each field except for the norm modes."""
  fields = flatten(default_config.get_config())
  # Fields of val and eval default to others, which errors should name first.
  names = sorted(fields, key=lambda field: field.startswith(('eval.', 'val.')))
  return {f: type(fields[f]) for f in names if f not in NORM_FIELDS}


def _leaves(tree: dict, prefix: str = '') -> Iterator[tuple[str, Any]]:
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from _leaves(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value


def _check_type(field: str, value: Any, kind: type) -> None:
  kinds = (float, int) if kind is float else (kind,)
  if type(value) not in kinds:
    raise UserError(
      f'config.{field}={printable(value)}: not {TYPE_NAMES[kind]}'
    )
  if kind in (str, tuple) and len(value) > MAX_LENGTH:
    raise UserError(f'config.{field}={printable(value)}: too long')
  if kind is str and '\0' in value:
    raise UserError(f'config.{field}={printable(value)}: contains a null byte')


def _check_numbers(fields: dict[str, Any], types: dict[str, type]) -> None:
  """Raises UserError for the first number out of its range."""
  for field, kind in types.items():
    value = fields[field]
    if kind not in (int, float) or field in POSITIVE:
      continue
    minimum, maximum = RANGES.get(field, DEFAULT_RANGE)
    if not minimum <= value < math.inf:
      raise UserError(f'config.{field}={value}: must be at least {minimum}')
    if kind is int and value > maximum:
      raise UserError(
        f'config.{field}={printable(value)}: must be at most {maximum}'
      )
  for field in POSITIVE:
    if not fields[field] > 0:
      raise UserError(f'config.{field}={fields[field]}: must be positive')
    if fields[field] == math.inf and field != 'outer.clip_value':
      raise UserError(f'config.{field}={fields[field]}: must be finite')
  smoothing = fields['pretrain.label_smoothing']
  if smoothing >= 1:
    raise UserError(
      f'config.pretrain.label_smoothing={smoothing}: must be less than 1'
    )
  epochs, length = fields['train.num_epochs'], fields['train.steps_per_epoch']
  if epochs * length > MAX_STEP:
    raise UserError(
      f'config.train.num_epochs={epochs} with {length} meta-iterations per '
      f'epoch: must be at most {MAX_STEP} meta-iterations in total'
    )


def _check_network(fields: dict[str, Any]) -> None:
  """Raises UserError for a width or a number of ways that cannot work."""
  width, encoder = fields['model.width'], fields['model.encoder']
  if width and 'resnet' in encoder:
    raise UserError(
      f'config.model.width={width}: the widths of {encoder} are fixed; use 0'
    )
  for field in ('val.ways', 'eval.ways'):
    ways, trained = fields[field], fields['task.ways']
    if ways != trained and fields['inner.head'] == 'learned':
      raise UserError(
        f'config.{field}={ways}: a learned head has '
        f'config.task.ways={trained} outputs, so use {trained}; other numbers '
        'of ways need config.inner.head=zero or prototype from the start of '
        'the training'
      )


def _check_task_kind(fields: dict[str, Any]) -> None:
  """Raises UserError for what regression or classification cannot have."""
  is_regression = fields['data.name'] == 'sinusoid'
  kind = 'regression' if is_regression else 'classification'
  reason = f'data.name={fields["data.name"]} is {kind}'
  if is_regression and fields['model.encoder'] != 'mlp':
    raise UserError(
      f'config.model.encoder={fields["model.encoder"]}: must be mlp, because '
      f'{reason}'
    )
  other = fields['eval.data'] or fields['data.name']
  if (other == 'sinusoid') != is_regression:
    raise UserError(
      f'config.eval.data={other}: must be {kind}, because {reason}'
    )
  for field in ('task.ways', 'val.ways', 'eval.ways'):
    if (fields[field] == 1) != is_regression:
      valid = '1' if is_regression else 'at least 2'
      raise UserError(
        f'config.{field}={fields[field]}: must be {valid}, because {reason}'
      )
  if other == 'folder' != fields['data.name'] and not fields['eval.data_root']:
    raise UserError(
      'config.eval.data=folder: set config.eval.data_root to the directory of '
      'the images'
    )
  for field, value in NEEDS_CLASSES.items():
    if is_regression and fields[field] == value:
      raise UserError(f'config.{field}={value}: needs classes, but {reason}')
  for field, value in fields.items():
    augments = '.augment' in field and value != 'none'
    if is_regression and (augments or field == 'data.normalize' and value):
      raise UserError(f'config.{field}={value}: {kind} has no images')


def _check_grid(fields: dict[str, Any]) -> None:
  for mode in fields['eval.grid_norms']:
    check_choice('config.eval.grid_norms', mode, NORMS)
  for field, minimum in (('eval.grid_queries', 1), ('eval.grid_steps', 0)):
    _check_items(field, fields[field], int)
    if min(fields[field], default=-1) < minimum:
      raise UserError(
        f'config.{field}={fields[field]}: values must be at least {minimum}'
      )


def _check_rates(fields: dict[str, Any]) -> None:
  bounds, pairs = fields['inner.lr_bounds'], fields['outer.lr_scale']
  if not all(type(x) in (int, float) and abs(x) < math.inf for x in bounds):
    raise UserError(f'config.inner.lr_bounds={printable(bounds)}: not numbers')
  for pair in pairs:
    if not (
      isinstance(pair, tuple)
      and len(pair) == 2
      and isinstance(pair[0], str)
      and type(pair[1]) in (int, float)
      and 0 <= pair[1] < math.inf
    ):
      raise UserError(
        f'config.outer.lr_scale={printable(pairs)}: not pairs of a pattern and '
        "a factor such as (('inner/lr', 0.1),)"
      )
  for field in ('inner.b1', 'inner.b2'):
    if fields[field] >= 1:
      raise UserError(f'config.{field}={fields[field]}: must be less than 1')


def _check_items(field: str, items: tuple, kind: type) -> None:
  for item in items:
    if type(item) is not kind:
      item = printable(repr(item))
      raise UserError(f'config.{field}: {item} is not {TYPE_NAMES[kind]}')
    if kind is int and not 0 <= item <= MAX_INTEGER:
      item = printable(item)
      raise UserError(f'config.{field}: {item} is not within 0..{MAX_INTEGER}')
