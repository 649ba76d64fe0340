"""PyTorch-MAML's YAML files -> configs and presets.

What an absent key means, or a 0 or null, is what its `train.py` and `test.py`
make of it. A key without equivalent is an error if it changes results, and a
note if it does not.
"""

import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from maml_jax import config as config_lib
from maml_jax import data, default_config
from maml_jax.inner_loop import OUTER_ONLY, path_matches
from maml_jax.pytorch_maml import weights
from maml_jax.pytorch_maml.yaml_section import Section
from maml_jax.utils.errors import UserError

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
IGNORED_KEYS = {
  '_gpu': 'all devices are used',
  '_parallel': 'all devices are used',
  'root_path': 'data are prepared by python -m maml_jax.data',
  'save_epoch': 'the best and the latest checkpoint are kept',
  'visdom': 'metrics go to TensorBoard and metrics.jsonl',
}
SECTIONS = ('data', 'task', 'model', 'inner', 'outer', 'train', 'val', 'eval')

Fields = dict[str, Any]


def convert_config(
  content: Mapping,
  test: Mapping | None = None,
  file: str = 'the .yaml',
  test_file: str = 'the test file',
) -> tuple[ConfigDict, list[str]]:
  """Makes a config of the content of one or two YAML files.

  Args:
    content: of a file for `train.py`, or of one for `test.py` alone.
    test: of a file for `test.py` that goes with the first.
    file: the name of the first file, for messages.
    test_file: that of the other.

  Returns:
    A locked config, checked, and notes, one line each.

  Raises:
    UserError: a key is missing, unknown or without equivalent.
  """
  notes = []
  config = default_config.get_config()
  root = Section(file, content, notes)
  if 'test' in root and 'train' not in root:
    _set(config, _of_test(root, config, alone=True))
    notes.append(f'{file} says nothing of the encoder: set config.model')
  else:
    _train(root, config)
  if test is not None:
    _set(config, _of_test(Section(test_file, test, notes), config))
  config_lib.validate(config)
  return config, notes


def preset_source(
  config: ConfigDict, path: str | os.PathLike, source: str
) -> str:
  """The text of a preset: the fields that are not those of the default.

  Args:
    config: from `convert`.
    path: where it will be, for the command that it begins with.
    source: what it was made from.
  """
  default = default_config.get_config()
  wanted, fields = config_lib.flatten(config), {}
  for field in sorted(wanted, key=_order):
    # Some follow others: what they are by now counts.
    if config_lib.flatten(default)[field] != wanted[field]:
      fields[field] = wanted[field]
      _set(default, {field: wanted[field]})
  lines = [
    f'"""python main.py --config={_plain(path)}',
    '',
    f'Converted from {_plain(source)} of PyTorch-MAML.',
    'Expected: as there. Hardware: one GPU. Time: not measured."""',
    '',
    'from maml_jax import default_config',
    '',
    '',
    'def get_config():',
    '  config = default_config.get_config()',
    *_assignments(fields),
    '  return config',
  ]
  return '\n'.join(lines) + '\n'


def _order(field: str) -> tuple[int, str]:
  """Orders fields such that one comes after those that it may follow."""
  section = field.partition('.')[0]
  return SECTIONS.index(section) if section in SECTIONS else -1, field


def _assignments(fields: Fields) -> list[str]:
  """Lines that set the fields; the short ones of a section are set together."""
  lines, pending, last = [], {}, ''

  def update(values):
    arguments = ', '.join(f'{name}={text}' for name, text in values.items())
    return f'  {last}.update({arguments})'

  def flush():
    if len(pending) == 1:
      lines.extend(f'  {last}.{name} = {x}' for name, x in pending.items())
    elif pending:
      lines.append(update(pending))
    pending.clear()

  for field, value in fields.items():
    section, _, name = f'config.{field}'.rpartition('.')
    text = "float('inf')" if value == math.inf else repr(value)
    if section != last or len(update({**pending, name: text})) > 80:
      flush()
    last = section
    if isinstance(value, tuple) and len(f'  {section}.{name} = {text}') > 80:
      items = (f'    {item!r},' for item in value)
      lines += [f'  {section}.{name} = (', *items, '  )']
    else:
      pending[name] = text
  flush()
  return lines


def _plain(text: str | os.PathLike) -> str:
  """Text that a docstring can hold."""
  return re.sub(r'[^\w./ -]', '?', str(text))


def _set(config: ConfigDict, fields: Fields) -> None:
  config.update_from_flattened_dict(fields)


def _train(root: Section, config: ConfigDict) -> None:
  """Sets all but `eval` from a file for `train.py`."""
  _set(config, {'data.name': DATASETS[root.choice('dataset', DATASETS)]})
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
  _validation(root, config)
  _set(config, _model(root, config))
  inner = _inner(root, config)
  _set(config, {f'inner.{name}': value for name, value in inner.items()})
  _set(config, _outer(root))
  if root.get('load', str, None) is not None:
    root.notes.append(
      f'{root.name("load")} is not read: python -m maml_jax.compat '
      'checkpoint converts it into a run to go on from'
    )
  root.close(IGNORED_KEYS)


def _validation(root: Section, config: ConfigDict) -> None:
  if 'val' not in root:
    root.notes.append(
      f'{root.name("val")} is missing, but here every run is validated'
    )
    return
  tasks = _tasks(root, 'val', config)
  same = {'ways': config.task.ways, 'shots': config.task.shots}
  _check_same(root, 'val', tasks, same | {'normalize': config.data.normalize})
  _set(
    config,
    {
      'val.num_tasks': tasks['batches'] * tasks['episodes'],
      'val.queries': tasks['queries'],
      'val.augment_support': tasks['support'],
    },
  )


def _of_test(root: Section, config: ConfigDict, alone=False) -> Fields:
  """The fields that a file for `test.py` sets."""
  name = DATASETS[root.choice('dataset', DATASETS)]
  if alone:
    _set(config, {'data.name': name})
  elif name != config.data.name:
    root.refuse(
      'dataset',
      name,
      f'trained on {config.data.name}; '
      'an evaluation takes the data of the training',
    )
  tasks, inner = _tasks(root, 'test', config), _inner(root, config)
  steps = inner.pop('num_steps')
  del inner['first_order']  # without a meaning here
  if alone:
    _set(
      config,
      {
        'data.normalize': tasks['normalize'],
        'task.ways': tasks['ways'],
        'task.shots': tasks['shots'],
        **{f'inner.{key}': value for key, value in inner.items()},
      },
    )
  _check_same(root, 'test', tasks, {'normalize': config.data.normalize})
  _check_same(root, 'inner_args', inner, dict(config.inner))
  passes = root.get('epoch', int)
  file = root.get('load', str, None) or ''
  root.close(IGNORED_KEYS)
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


def _check_same(root: Section, key: str, values: Fields, trained: Fields):
  """Raises UserError if validation or evaluation would differ from training."""
  for name in values:
    if name in trained and values[name] != trained[name]:
      root.refuse(
        key,
        values[name],
        f'{name} is {trained[name]} in training, which decides here',
      )


def _tasks(root: Section, key: str, config: ConfigDict) -> Fields:
  """What the tasks of one section look like."""
  section = root.section(key)
  size = data.spec(config.data.name).image_shape[0]
  given = section.get('image_size', int, size)
  if given != size:
    section.refuse('image_size', given, f'here they are {size} pixels wide')
  split = SPLITS[section.choice('split', SPLITS, 'meta-train')]
  if split != key and key != 'test':
    section.refuse('split', split, f'here it is {key}')
  query = section.choice('val_transform', TRANSFORMS, None)
  if query and key != 'train':
    section.refuse('val_transform', query, 'queries stay as they are here')
  tasks = {
    'split': split,
    'normalize': section.get('normalization', bool, True),
    'support': AUGMENTATIONS[section.choice('transform', TRANSFORMS, None)],
    'query': AUGMENTATIONS[query],
    'batches': section.get('n_batch', int, 200),
    'episodes': section.get('n_episode', int, 4),
    'ways': section.get('n_way', int, 5),
    'shots': section.get('n_shot', int, 1),
    'queries': section.get('n_query', int, 15),
  }
  section.close(IGNORED_KEYS)
  return tasks


def _model(root: Section, config: ConfigDict) -> Fields:
  encoder = weights.ENCODERS[root.choice('encoder', weights.ENCODERS)]
  _set(config, {'model.encoder': encoder})
  if encoder.endswith('resnet10'):
    root.notes.append(
      f'{root.name("encoder")}: {encoder} here, with a shortcut that takes '
      "the stride of the main path; PyTorch-MAML's cannot run"
    )
  encoder_args = root.section('encoder_args')
  bn = encoder_args.section('bn_args')
  encoder_args.close({})
  layers = list(weights.abstract_variables(config)[0]['encoder'])
  root.choice('classifier', ('logistic',), 'logistic')
  head = root.section('classifier_args')
  fields = {
    'model.norm': _norm(bn, layers),
    'model.norm_eps': bn.get('eps', float, 1e-5),
    'model.temperature': head.get('temp', float, 1.0),
    'model.learn_temperature': head.get('learn_temp', bool, False),
  }
  bn.close({'n_episode': None})  # which it adds to what it saves
  head.close({'in_dim': None, 'n_way': None})
  return fields


def _norm(bn: Section, layers: list[str]) -> str | tuple:
  """The norm modes that the arguments of its batch norm mean."""
  tracked = bn.get('track_running_stats', bool, True)
  listed = bn.get_or('episodic', [])
  alpha = bn.get('alpha', bool, False)
  momentum = bn.get('momentum', float, None) if 'momentum' in bn else 0.1
  if not bn.get('affine', bool, True):
    bn.refuse('affine', False, 'here a scale and a bias are learned')
  if not tracked:
    return 'batch'
  for layer in listed:
    if layer not in layers:
      bn.notes.append(f'{bn.name("episodic")}: no layer is called {layer}')
  episodic = [layer for layer in layers if layer in listed]
  mode = 'tasknorm' if alpha else 'episodic'
  if (alpha or momentum is None) and episodic != layers:
    bn.refuse('episodic', listed, 'alpha, and momentum null, need all layers')
  if momentum is None:
    if alpha:
      bn.refuse('momentum', None, 'not together with alpha here')
    mode = 'cumulative'
  elif momentum != 0.1:
    bn.refuse('momentum', momentum, 'here it is 0.1')
  if episodic == layers:
    return mode
  if not episodic:
    return 'global'
  return (*((name, mode) for name in episodic), ('*', 'global'))


def _inner(root: Section, config: ConfigDict) -> Fields:
  section = root.section('inner_args')
  fields = {
    'num_steps': section.get_or('n_step', 5),
    'encoder_lr': section.get_or('encoder_lr', 0.01),
    'classifier_lr': section.get_or('classifier_lr', 0.01),
    'momentum': section.get_or('momentum', 0.0),
    'weight_decay': section.get_or('weight_decay', 0.0),
    'first_order': section.get_or('first_order', False),
    'frozen': _frozen(section, config),
    'reset_classifier': section.get_or('reset_classifier', False),
  }
  section.close({})
  return fields


def _frozen(section: Section, config: ConfigDict) -> tuple[str, ...]:
  """Patterns that freeze what the substrings of parameter names freeze there.

  # differs from PyTorch-MAML: a substring that freezes nothing is left out,
  with a note; here a pattern without effect is an error.
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
      section.refuse('frozen', part, 'no str')
    caught = {path for path, name in names.items() if part in name}
    if not caught:
      section.notes.append(f'{section.name("frozen")}: {part} freezes nothing')
      continue
    glob = part.strip('.').replace('.', '/')
    for pattern in (glob, f'{glob}*', f'*{glob}*'):
      if caught == {path for path in names if path_matches(pattern, path)}:
        patterns.append(pattern)
        break
    else:
      patterns.extend(sorted(caught))
  return tuple(dict.fromkeys(patterns))


def _outer(root: Section) -> Fields:
  optimizer = root.choice('optimizer', ('sgd', 'rmsprop', 'adam'))
  args = root.section('optimizer_args')
  milestones = args.get('milestones', list, None)
  schedule = args.choice('schedule', ('step', 'cosine'), 'step')
  if schedule == 'cosine' and milestones == []:
    args.refuse('milestones', [], 'cosine needs its last epoch')
  fields = {
    'outer.optimizer': optimizer,
    'outer.lr': args.get('lr', float),
    'outer.weight_decay': args.get('weight_decay', float, 0.0),
    'outer.schedule': schedule if milestones else 'constant',
    'outer.milestones': tuple(milestones or ()),
    'outer.gamma': args.get('gamma', float, 0.1),
  }
  args.close({})
  return fields
