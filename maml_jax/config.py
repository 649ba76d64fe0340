"""Configs: reading, checking, comparing, keeping them.

The fields and their meaning are in `configs/default.py`. Every complaint here
is a `UserError` of one line that names the field as it is written on the
command line, and what would do instead.
"""

import ast
import json
import math
import os
import pathlib
import runpy
import traceback
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict, FieldReference

from maml_jax.utils.errors import UserError, check_choice, printable, suggest

NORMS = ('batch', 'global', 'episodic', 'cumulative', 'support', 'tasknorm')
AUGMENTATIONS = ('none', 'flip', 'crop', 'color', 'resize', 'enlarge')

CHOICES = {
  'precision': ('float32', 'tf32', 'bfloat16'),
  'data.name': (
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
  ),
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
  'outer.optimizer': ('sgd', 'rmsprop', 'adam', 'adamw'),
  'outer.schedule': ('constant', 'step', 'cosine'),
  'val.augment_support': AUGMENTATIONS,
  'eval.split': ('train', 'val', 'test'),
  'eval.checkpoint': ('best', 'latest'),
  'eval.augment_support': AUGMENTATIONS,
}

MINIMUM = {
  'seed': 0,
  'task.ways': 1,
  'task.shots': 1,
  'task.queries': 1,
  'model.width': 0,
  'inner.num_steps': 0,
  'inner.encoder_lr': 0,
  'inner.classifier_lr': 0,
  'inner.momentum': 0,
  'inner.weight_decay': 0,
  'outer.lr': 0,
  'outer.momentum': 0,
  'outer.weight_decay': 0,
  'outer.gamma': 0,
  'outer.warmup_epochs': 0,
  'train.num_epochs': 0,
  'train.steps_per_epoch': 1,
  'train.meta_batch_size': 1,
  'train.tasks_per_chunk': 0,
  'train.steps_per_call': 1,
  'val.num_tasks': 1,
  'val.ways': 1,
  'val.shots': 1,
  'val.queries': 1,
  'val.num_steps': 0,
  'eval.num_tasks': 0,
  'eval.ways': 1,
  'eval.shots': 1,
  'eval.queries': 1,
  'eval.num_steps': 0,
  'eval.curve_tasks': 0,
}

POSITIVE = ('model.norm_eps', 'model.temperature', 'outer.clip_value')

# Beyond these a value is a slip, and would take memory or time without end.
DEFAULT_MAXIMUM = 10**6
MAXIMUM = {
  'seed': 2**32 - 1,  # JAX drops what is above
  'model.width': 4096,
  'inner.num_steps': 10**4,
  'val.num_steps': 10**4,
  'eval.num_steps': 10**4,
  'outer.warmup_epochs': 10**9,
  'train.num_epochs': 10**9,
  'train.steps_per_epoch': 10**9,
}
MAX_LENGTH = 4096  # characters of a path, or items of a list
MAX_STEP = 2**31 - 1  # meta-iterations are counted in int32

BOOLS = (
  'data.normalize',
  'model.norm_scale',
  'model.learn_temperature',
  'inner.first_order',
  'inner.reset_classifier',
  'inner.remat',
  'inner.mixed_mode',
  'eval.baselines',
  'eval.grid',
)
FLOATS = (
  *POSITIVE,
  'inner.encoder_lr',
  'inner.classifier_lr',
  'inner.momentum',
  'inner.weight_decay',
  'outer.lr',
  'outer.momentum',
  'outer.weight_decay',
  'outer.gamma',
)
TUPLES = (
  'inner.frozen',
  'outer.milestones',
  'eval.grid_norms',
  'eval.grid_queries',
  'eval.grid_steps',
)
STRINGS = (*CHOICES, 'data.root', 'train.init_from')
NORM_FIELDS = ('model.norm', 'eval.norm')  # a word or pairs
TYPES = (
  dict.fromkeys(MINIMUM, int)
  | dict.fromkeys(BOOLS, bool)
  | dict.fromkeys(FLOATS, float)
  | dict.fromkeys(TUPLES, tuple)
  | dict.fromkeys(STRINGS, str)
)

# Fields that came later, with what their absence from an older config means.
ADDED_FIELDS = {
  'train.init_from': '',
  'eval.baselines': False,
  'eval.curve_tasks': 0,
  'eval.grid': False,
  'eval.grid_norms': (),
  'eval.grid_queries': (1, 5, 15),
  'eval.grid_steps': (0, 1, 5, 10),
}


def load(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
  """Returns the checked config of a file with some fields set anew.

  Args:
    path: a Python file whose `get_config()` returns a `ConfigDict`.
    overrides: `'--config.task.ways=20'` and the like. Words need no quotes,
      tuples no brackets (`--config.inner.frozen=bn,classifier`), and a field
      that is to be true no value.

  Raises:
    UserError: no such file or field, a value of the wrong type or range.
  """
  return override(_get_config(path), overrides)


def override(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
  """Sets some fields of a config anew, and checks all of it.

  Args:
    config: changed in place.
    overrides: see `load`; a field that lies in a section may do without the
      word config, as in `'--task.ways=20'`.

  Returns:
    The config.

  Raises:
    UserError: no such field, a value of the wrong type or range.
  """
  for word in overrides:
    name, equals, text = word.partition('=')
    field = name.removeprefix('--config.').removeprefix('--')
    section = field.split('.')[0]
    if not name.startswith('--config.') and section not in config:
      raise UserError(f'unknown argument {word}; see --help')
    _override(config, field, text if equals else None)
  validate(config)
  return config


def read_saved(source: str | os.PathLike) -> ConfigDict | None:
  """The config of a run that has a checkpoint, or of a checkpoint.

  Args:
    source: a workdir or the directory of one checkpoint.

  Returns:
    The config; None if `source` is neither, or damaged.
  """
  source = pathlib.Path(source)
  meta = pathlib.Path('meta', 'metadata')
  files = []
  if (source / meta).is_file():
    files = [source / meta]
  elif any((source / 'checkpoints').glob('*/*')):
    saved = sorted((source / 'checkpoints').glob(f'*/*/{meta}'))
    files = [source / 'config.json', *saved]
  for file in files:
    try:
      text = file.read_text()
      if file.name == meta.name:
        text = json.loads(text)['config']
      config = from_json(text)
      validate(config)
      return config
    except Exception:  # who reads the checkpoint says what is wrong with it
      continue
  return None


def validate(config: ConfigDict) -> None:
  """Raises UserError for the first value that cannot be meant."""
  fields = flatten(config)
  missing = {*TYPES, *NORM_FIELDS} - fields.keys()
  if missing:
    raise UserError(
      f'the config has no {", ".join(sorted(missing))}: begin with that of '
      'configs/default.py'
    )
  for field, kind in TYPES.items():
    _check_kind_of(field, fields[field], kind)
  for field, choices in CHOICES.items():
    check_choice(f'config.{field}', fields[field], choices)
  _check_numbers(fields)
  for field in NORM_FIELDS:
    for word in _norm_words(f'config.{field}', fields[field]):
      check_choice(f'config.{field}', word, NORMS)
  _check_items('inner.frozen', fields['inner.frozen'], str)
  _check_items('outer.milestones', fields['outer.milestones'], int)
  _check_grid(fields)
  _check_network(fields)
  _check_kind(fields)


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
  need, least = shots + queries, int(min(size))
  if need > least:
    raise UserError(
      f'{shots} shots and {queries} queries are {need} images, but a class of '
      f'{name} has {least}: at most {max(least - shots, 0)} queries'
    )


def config_differences(
  old: ConfigDict, new: ConfigDict, ignore: Collection[str] = ()
) -> list[str]:
  """Returns 'field: old -> new' for each field that differs.

  Args:
    old: a config, perhaps read back from a checkpoint.
    new: another.
    ignore: fields and sections that may differ, such as 'eval', 'data.root'.
  """
  old, new = flatten(old), flatten(new)
  return [
    f'{field}: {old.get(field, "(none)")} -> {new.get(field, "(none)")}'
    for field in sorted(old.keys() | new.keys())
    if old.get(field) != new.get(field)
    and not any(f'{field}.'.startswith(f'{part}.') for part in ignore)
  ]


def to_json(config: ConfigDict) -> str:
  """Returns the config as text that `from_json` reads back."""
  return json.dumps(config.to_dict(), indent=2)


def from_json(text: str) -> ConfigDict:
  """Returns the locked config of a text by `to_json`, perhaps an older one."""
  config = ConfigDict(_tuples(json.loads(text)))
  for field, value in ADDED_FIELDS.items():
    section, name = field.split('.')
    if section in config and name not in config[section]:
      config[section][name] = value
  for section in ('model', 'eval'):  # a word or pairs
    if section in config and 'norm' in config[section]:
      norm = FieldReference(config[section].norm, field_type=object)
      del config[section].norm
      config[section].norm = norm
  return config.lock()


def flatten(config: ConfigDict) -> dict[str, Any]:
  """Returns {'task.ways': 5, ...}."""
  return dict(_leaves(_tuples(config.to_dict())))


def _leaves(tree: dict, prefix: str = '') -> Iterator[tuple[str, Any]]:
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from _leaves(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value


def _tuples(tree: Any) -> Any:
  """JSON knows lists only; in configs they mean tuples."""
  if isinstance(tree, dict):
    return {key: _tuples(value) for key, value in tree.items()}
  return tuple(map(_tuples, tree)) if isinstance(tree, list) else tree


def _get_config(path: str) -> ConfigDict:
  file = pathlib.Path(path)
  if not file.is_file():
    folder = file.parent if file.parent.name == 'configs' else 'configs'
    presets = sorted(map(str, pathlib.Path(folder).glob('[!_]*.py')))
    raise UserError(f'no config file {path}{suggest(path, presets)}')
  try:
    config = runpy.run_path(path).get('get_config', lambda: None)()
  except Exception as error:  # whatever goes wrong there is the file's
    lines = [
      f', line {frame.lineno}'
      for frame in traceback.extract_tb(error.__traceback__)
      if frame.filename == path
    ]
    place = path + ''.join(lines[-1:])
    raise UserError(f'{place}: {_innermost(error)}') from error
  if not isinstance(config, ConfigDict):
    raise UserError(f'{path}: get_config() must return a ConfigDict')
  return config.lock()


def _innermost(error: Exception) -> str:
  """ml_collections nests errors, and ends long ones with a line of advice."""
  while error.args and isinstance(error.args[0], Exception):
    error = error.args[0]
  message = str(error.args[0] if isinstance(error, KeyError) else error)
  last = message.splitlines()[-1] if message else type(error).__name__
  return last.partition(' Other fields')[0]


def _override(config: ConfigDict, field: str, text: str | None) -> None:
  *sections, name = field.split('.')
  value = config
  for key in (*sections, name):
    section = value
    if not isinstance(section, ConfigDict) or key not in section:
      same = [f for f in flatten(config) if f.endswith(f'.{field}')]
      hint = suggest(field, flatten(config), config)
      if same:  # the name alone
        hint = f'; did you mean {" or ".join(same)}?'
      raise UserError(f'no field config.{printable(field)}{hint}')
    value = section[key]
  if isinstance(value, ConfigDict):
    raise UserError(f'config.{field} is a section: {", ".join(sorted(value))}')
  kind = section.get_type(name)
  if text is None and kind is not bool:
    raise UserError(f'config.{field} lacks a value: --config.{field}=VALUE')
  try:
    value = True if text is None else _PARSERS[kind](text)
    if kind is object:
      _norm_words(f'config.{field}', _tuples(value))
    section[name] = value
  except UserError:
    raise
  except (KeyError, ValueError):
    value = printable(text)
    raise UserError(f'config.{field}={value}: not {_KINDS[kind]}') from None


MAX_LITERAL_LENGTH = 10_000  # characters; what is longer is a word


def _parse_bool(text: str) -> bool:
  return {'true': True, 'false': False, '1': True, '0': False}[text.lower()]


def _parse_literal(text: str) -> Any:
  if len(text) > MAX_LITERAL_LENGTH:
    return text
  try:
    return ast.literal_eval(text)
  except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
    return text


def _parse_tuple(text: str) -> tuple:
  value = _parse_literal(text)
  if isinstance(value, str):
    value = [_parse_literal(item) for item in value.split(',') if item]
  return tuple(value) if isinstance(value, list | tuple) else (value,)


_PARSERS = {
  bool: _parse_bool,
  int: int,
  float: float,
  str: str,
  tuple: _parse_tuple,
  object: _parse_literal,
}

_KINDS = {
  bool: 'true or false',
  int: 'an integer',
  float: 'a number',
  str: 'a word',
  tuple: 'a list',
}


def _norm_words(field: str, norm: Any) -> list[str]:
  if isinstance(norm, str):
    return [norm]
  pairs = norm if isinstance(norm, tuple) else [None]
  for pair in pairs:
    if not (isinstance(pair, tuple) and list(map(type, pair)) == [str, str]):
      raise UserError(
        f'{field}={printable(norm)}: neither a word nor (pattern, word) pairs'
      )
  return [word for _, word in pairs]


def _check_numbers(fields: dict[str, Any]) -> None:
  """Raises UserError for the first number out of its bounds."""
  for field, least in MINIMUM.items():
    if not least <= fields[field] < math.inf:
      raise UserError(f'config.{field}={fields[field]}: at least {least}')
    most = MAXIMUM.get(field, DEFAULT_MAXIMUM)
    if TYPES[field] is int and fields[field] > most:
      raise UserError(
        f'config.{field}={printable(fields[field])}: at most {most}'
      )
  for field in POSITIVE:
    if not fields[field] > 0:
      raise UserError(f'config.{field}={fields[field]}: must be above 0')
    if fields[field] == math.inf and field != 'outer.clip_value':
      raise UserError(f'config.{field}={fields[field]}: must be finite')
  epochs, length = fields['train.num_epochs'], fields['train.steps_per_epoch']
  if epochs * length > MAX_STEP:
    raise UserError(
      f'config.train.num_epochs={epochs} of {length} meta-iterations: at most '
      f'{MAX_STEP} meta-iterations'
    )


def _check_network(fields: dict[str, Any]) -> None:
  """Raises UserError for a width or a number of ways that it cannot have."""
  width, encoder = fields['model.width'], fields['model.encoder']
  if width and 'resnet' in encoder:
    raise UserError(
      f'config.model.width={width}: {encoder} has widths of its own; leave it 0'
    )
  for field in ('val.ways', 'eval.ways'):
    ways, trained = fields[field], fields['task.ways']
    if ways != trained and not fields['inner.reset_classifier']:
      raise UserError(
        f'config.{field}={ways}: a learned head has config.task.ways={trained} '
        'outputs; other numbers of ways need config.inner.reset_classifier=true'
      )


def _check_kind(fields: dict[str, Any]) -> None:
  """Refuses what regression or classification cannot have."""
  regression = fields['data.name'] == 'sinusoid'
  kind = 'regression' if regression else 'classification'
  if regression and fields['model.encoder'] != 'mlp':
    raise UserError(
      f'config.model.encoder={fields["model.encoder"]}: not for {kind}, which '
      f'data.name={fields["data.name"]} is'
    )
  for field in ('task.ways', 'val.ways', 'eval.ways'):
    if (fields[field] == 1) != regression:
      fitting = '1' if regression else 'at least 2'
      raise UserError(
        f'config.{field}={fields[field]}: {fitting} in {kind}, which '
        f'data.name={fields["data.name"]} is'
      )
  for field, value in fields.items():
    augments = '.augment' in field and value != 'none'
    if regression and (augments or field == 'data.normalize' and value):
      raise UserError(f'config.{field}={value}: {kind} has no images')


def _check_grid(fields: dict[str, Any]) -> None:
  for word in fields['eval.grid_norms']:
    check_choice('config.eval.grid_norms', word, NORMS)
  for field, least in (('eval.grid_queries', 1), ('eval.grid_steps', 0)):
    _check_items(field, fields[field], int)
    if min(fields[field], default=-1) < least:
      raise UserError(f'config.{field}={fields[field]}: at least {least} each')


def _check_kind_of(field: str, value: Any, kind: type) -> None:
  kinds = (float, int) if kind is float else (kind,)
  if type(value) not in kinds:
    raise UserError(f'config.{field}={printable(value)}: not {_KINDS[kind]}')
  if kind in (str, tuple) and len(value) > MAX_LENGTH:
    raise UserError(f'config.{field}={printable(value)}: is too long')
  if kind is str and '\0' in value:
    raise UserError(f'config.{field}={printable(value)}: holds a zero byte')


def _check_items(field: str, items: tuple, kind: type) -> None:
  for item in items:
    if type(item) is not kind:
      item = printable(repr(item))
      raise UserError(f'config.{field}: {item} is not {_KINDS[kind]}')
    if kind is int and not 0 <= item <= DEFAULT_MAXIMUM:
      item = printable(item)
      raise UserError(
        f'config.{field}: {item} is not within 0 .. {DEFAULT_MAXIMUM}'
      )
