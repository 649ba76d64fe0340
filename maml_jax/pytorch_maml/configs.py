"""Converts PyTorch-MAML's YAML files to configs.

Missing keys, 0 and null mean what PyTorch-MAML's `train.py` and `test.py` make
of them. A key without equivalent is an error if it changes results; otherwise,
it is ignored, with a note.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from maml_jax import config as config_lib
from maml_jax import data, default_config
from maml_jax.inner_loop import OUTER_ONLY, path_matches
from maml_jax.pytorch_maml import weights
from maml_jax.pytorch_maml.yaml_section import Section

__all__ = [
  'AUGMENTATIONS',
  'DATASETS',
  'IGNORED_KEYS',
  'SPLITS',
  'convert_config',
]

DATASETS = {
  'meta-mini-imagenet': 'mini_imagenet',
  'meta-tiered-imagenet': 'tiered_imagenet',
  'meta-cifar-fs': 'cifar_fs',
  'meta-fc100': 'fc100',
  'meta-cub200': 'cub',
  'meta-inatural': 'inat2017',
}
SPLITS = {'meta-train': 'train', 'meta-val': 'val', 'meta-test': 'test'}
AUGMENTATIONS = {
  'resize': 'random_resized_crop',
  'crop': 'random_crop',
  'color': 'color_jitter',
  'flip': 'flip',
  'enlarge': 'resize_center_crop',
  None: 'none',
}
TRANSFORMS = [name for name in AUGMENTATIONS if name]
# Keys that do not change results -> the note about them.
IGNORED_KEYS = {
  '_gpu': 'all devices are used',
  '_parallel': 'all devices are used',
  'root_path': 'data sets are prepared with python -m maml_jax.data',
  'save_epoch': 'the best and the latest checkpoint are saved',
  'visdom': 'metrics are written to TensorBoard and metrics.jsonl',
}

Fields = dict[str, Any]


def convert_config(
  content: Mapping,
  test: Mapping | None = None,
  file: str = 'the YAML file',
  test_file: str = 'the test file',
) -> tuple[ConfigDict, list[str]]:
  """Converts the content of YAML files of PyTorch-MAML to a config.

  Args:
    content: the content of a file for `train.py`, or of one for `test.py`.
    test: the content of a file for `test.py` that belongs to a file for
      `train.py`; default none.
    file: the name of the first file, for messages.
    test_file: the name of the second file, for messages.

  Returns:
    A locked, valid config and notes for the user, one line each.

  Raises:
    UserError: a key is missing, is unknown or has no equivalent.
  """
  notes = []
  config = default_config.get_config()
  root = Section(file, content, notes)
  if 'test' in root and 'train' not in root:
    _set(config, _eval_fields(root, config, has_training=False))
    notes.append(f'{file} does not specify the encoder: set config.model')
  else:
    _convert_train_file(root, config)
  if test is not None:
    _set(config, _eval_fields(Section(test_file, test, notes), config))
  config_lib.validate(config)
  return config, notes


def _set(config: ConfigDict, fields: Fields) -> None:
  """Sets fields of a config, given as 'section.name'."""
  config.update_from_flattened_dict(fields)


def _convert_train_file(root: Section, config: ConfigDict) -> None:
  """Sets all sections except `eval` from a file for `train.py`."""
  _set(config, {'data.name': DATASETS[root.get_choice('dataset', DATASETS)]})
  tasks = _tasks(root, 'train', config)
  _set(
    config,
    {
      'data.normalize': tasks['normalize'],
      'data.augment_support': tasks['support'],
      'data.augment_query': tasks['query'],
      'task.ways': tasks['ways'],
      'task.shots': tasks['shots'],
      'task.queries': tasks['queries'],
      'train.num_epochs': root.get('epoch', int),
      'train.steps_per_epoch': tasks['batches'],
      'train.meta_batch_size': tasks['episodes'],
    },
  )
  _convert_validation(root, config)
  _set(config, _model_fields(root, config))
  inner, gradient = _inner_fields(root, config)
  _set(config, {f'inner.{name}': value for name, value in inner.items()})
  _set(config, {'outer.gradient': gradient})
  _set(config, _outer_fields(root))
  if root.get('load', str, None) is not None:
    root.notes.append(
      f'{root.label("load")} is not loaded: convert it with python -m '
      'maml_jax.pytorch_maml checkpoint and resume the run'
    )
  root.check_unread(IGNORED_KEYS)


def _convert_validation(root: Section, config: ConfigDict) -> None:
  """Sets the section `val`."""
  if 'val' not in root:
    root.notes.append(
      f'{root.label("val")} is missing: validation uses the default settings'
    )
    return
  tasks = _tasks(root, 'val', config)
  same = {'ways': config.task.ways, 'shots': config.task.shots}
  same['normalize'] = config.data.normalize
  _require_same(root, 'val', tasks, same)
  _set(
    config,
    {
      'val.num_tasks': tasks['batches'] * tasks['episodes'],
      'val.queries': tasks['queries'],
      'val.augment_support': tasks['support'],
    },
  )


def _eval_fields(
  root: Section, config: ConfigDict, has_training: bool = True
) -> Fields:
  """Returns the fields of `eval` that a file for `test.py` sets.

  Args:
    root: the content of the file.
    config: the config of the training. Without a training, the fields that the
      evaluation shares with it are set.
    has_training: whether there is a file for `train.py`.
  """
  name = DATASETS[root.get_choice('dataset', DATASETS)]
  if not has_training:
    _set(config, {'data.name': name})
  elif name != config.data.name:
    root.raise_error(
      'dataset',
      name,
      f'must be {config.data.name}, the data set of the training',
    )
  tasks, inner = _tasks(root, 'test', config), _inner_fields(root, config)[0]
  steps = inner.pop('num_steps')
  if not has_training:
    _set(
      config,
      {
        'data.normalize': tasks['normalize'],
        'task.ways': tasks['ways'],
        'task.shots': tasks['shots'],
        **{f'inner.{key}': value for key, value in inner.items()},
      },
    )
  _require_same(root, 'test', tasks, {'normalize': config.data.normalize})
  _require_same(root, 'inner_args', inner, dict(config.inner))
  passes = root.get('epoch', int)
  file = root.get('load', str, None) or ''
  root.check_unread(IGNORED_KEYS)
  return {
    'eval.split': tasks['split'],
    'eval.checkpoint': 'latest' if 'epoch-last' in file else 'best',
    'eval.num_tasks': passes * tasks['batches'] * tasks['episodes'],
    'eval.ways': tasks['ways'],
    'eval.shots': tasks['shots'],
    'eval.queries': tasks['queries'],
    'eval.num_steps': steps,
    'eval.augment_support': tasks['support'],
  }


def _require_same(
  root: Section, key: str, values: Fields, trained: Fields
) -> None:
  """Raises UserError if a value differs from the one used in training."""
  for name in values:
    if name in trained and values[name] != trained[name]:
      root.raise_error(
        key,
        values[name],
        f'{name} must be {trained[name]}, as in training',
      )


def _tasks(root: Section, key: str, config: ConfigDict) -> Fields:
  """Returns the settings of the tasks in the section `key`."""
  section = root.get_section(key)
  size = data.spec(config.data.name).image_shape[0]
  image_size = section.get('image_size', int, size)
  if image_size != size:
    section.raise_error(
      'image_size', image_size, f'must be {size} for {config.data.name}'
    )
  split = SPLITS[section.get_choice('split', SPLITS, 'meta-train')]
  if split != key and key != 'test':
    section.raise_error('split', split, f'must be {key}')
  query = section.get_choice('val_transform', TRANSFORMS, None)
  if query and key != 'train':
    section.raise_error(
      'val_transform', query, 'query images are augmented in training only'
    )
  tasks = {
    'split': split,
    'normalize': section.get('normalization', bool, True),
    'support': AUGMENTATIONS[section.get_choice('transform', TRANSFORMS, None)],
    'query': AUGMENTATIONS[query],
    'batches': section.get('n_batch', int, 200),
    'episodes': section.get('n_episode', int, 4),
    'ways': section.get('n_way', int, 5),
    'shots': section.get('n_shot', int, 1),
    'queries': section.get('n_query', int, 15),
  }
  section.check_unread(IGNORED_KEYS)
  return tasks


def _model_fields(root: Section, config: ConfigDict) -> Fields:
  """Returns the fields of `model`; sets `model.encoder`."""
  encoder = weights.ENCODERS[root.get_choice('encoder', weights.ENCODERS)]
  _set(config, {'model.encoder': encoder})
  if encoder.endswith('resnet10'):
    root.notes.append(
      f'{root.label("encoder")} is converted to {encoder}, whose shortcut has '
      'the stride of the main path; without it, PyTorch-MAML fails'
    )
  encoder_args = root.get_section('encoder_args')
  bn = encoder_args.get_section('bn_args')
  encoder_args.check_unread({})
  layers = list(weights.abstract_variables(config)[0]['encoder'])
  root.get_choice('classifier', ('logistic',), 'logistic')
  head = root.get_section('classifier_args')
  fields = {
    'model.norm': _norm_modes(bn, layers),
    'model.norm_eps': bn.get('eps', float, 1e-5),
    'model.temperature': head.get('temp', float, 1.0),
    'model.learn_temperature': head.get('learn_temp', bool, False),
  }
  # PyTorch-MAML adds these keys to its checkpoints.
  bn.check_unread({'n_episode': None})
  head.check_unread({'in_dim': None, 'n_way': None})
  return fields


def _norm_modes(bn: Section, layers: list[str]) -> str | tuple:
  """Returns the `model.norm` that is equivalent to `bn_args`."""
  tracked = bn.get('track_running_stats', bool, True)
  listed = bn.get_or('episodic', [])
  alpha = bn.get('alpha', bool, False)
  momentum = bn.get('momentum', float, None) if 'momentum' in bn else 0.1
  if not bn.get('affine', bool, True):
    bn.raise_error('affine', False, 'scale and bias are always learned')
  if not tracked:
    return 'batch'
  for layer in listed:
    if layer not in layers:
      bn.notes.append(f'{bn.label("episodic")}: there is no layer {layer}')
  episodic = [layer for layer in layers if layer in listed]
  mode = 'tasknorm' if alpha else 'episodic'
  global_mode = 'tasknorm_global' if alpha else 'global'
  if momentum is None and episodic != layers:
    bn.raise_error('episodic', listed, 'momentum=null requires all layers')
  if momentum is None:
    if alpha:
      bn.raise_error('momentum', None, 'cannot be combined with alpha')
    mode = 'cumulative'
  elif momentum != 0.1:
    bn.raise_error('momentum', momentum, 'must be 0.1 or null')
  if episodic == layers:
    return mode
  if not episodic:
    return global_mode
  return (*((name, mode) for name in episodic), ('*', global_mode))


def _inner_fields(root: Section, config: ConfigDict) -> tuple[Fields, str]:
  """Returns the fields of `inner`, without that prefix, and outer.gradient."""
  section = root.get_section('inner_args')
  is_first_order = section.get_or('first_order', False)
  is_zero = section.get_or('reset_classifier', False)
  fields = {
    'num_steps': section.get_or('n_step', 5),
    'encoder_lr': section.get_or('encoder_lr', 0.01),
    'classifier_lr': section.get_or('classifier_lr', 0.01),
    'momentum': section.get_or('momentum', 0.0),
    'weight_decay': section.get_or('weight_decay', 0.0),
    'frozen': _frozen_patterns(section, config),
    'head': 'zero' if is_zero else 'learned',
  }
  section.check_unread({})
  return fields, 'first_order' if is_first_order else 'exact'


def _frozen_patterns(section: Section, config: ConfigDict) -> tuple[str, ...]:
  """Returns patterns equivalent to PyTorch-MAML's `frozen`.

  PyTorch-MAML freezes the parameters whose name contains one of the substrings.

  # differs from PyTorch-MAML: a substring that matches no parameter is omitted,
  with a note, because a pattern without a match is an error in maml_jax.
  """
  paths = weights.flatten(weights.abstract_variables(config)[0])
  names = {
    '/'.join(path): weights.torch_name(path)
    for path in paths
    if path[-1] not in OUTER_ONLY
  }
  patterns = []
  for part in section.get_or('frozen', []):
    if not isinstance(part, str):
      section.raise_error('frozen', part, 'expected str')
    frozen = {path for path, name in names.items() if part in name}
    if not frozen:
      section.notes.append(
        f'{section.label("frozen")}: {part} matches no parameter'
      )
      continue
    glob = part.strip('.').replace('.', '/')
    for pattern in (glob, f'{glob}*', f'*{glob}*'):
      if frozen == {path for path in names if path_matches(pattern, path)}:
        patterns.append(pattern)
        break
    else:
      patterns.extend(sorted(frozen))
  return tuple(dict.fromkeys(patterns))


def _outer_fields(root: Section) -> Fields:
  """Returns the fields of `outer`."""
  optimizer = root.get_choice('optimizer', ('sgd', 'rmsprop', 'adam'))
  args = root.get_section('optimizer_args')
  milestones = args.get('milestones', list, None)
  schedule = args.get_choice('schedule', ('step', 'cosine'), 'step')
  if schedule == 'cosine' and milestones == []:
    args.raise_error('milestones', [], 'cosine requires its last epoch')
  fields = {
    'outer.optimizer': optimizer,
    'outer.lr': args.get('lr', float),
    'outer.weight_decay': args.get('weight_decay', float, 0.0),
    'outer.schedule': schedule if milestones else 'constant',
    'outer.milestones': tuple(milestones or ()),
    'outer.gamma': args.get('gamma', float, 0.1),
  }
  args.check_unread({})
  return fields
