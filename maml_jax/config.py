"""Configs: loading, overriding, comparing and storing them.

The fields and their meaning are in `default_config`, the checks in
`config_checks`, fields of earlier versions in `config_versions`. Errors are
one-line `UserError`s.
"""

import ast
import json
import os
import pathlib
import runpy
import traceback
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, FieldReference

from maml_jax import default_config
from maml_jax.config_checks import (
  NORMS,
  TYPE_NAMES,
  flatten,
  learner_configs,
  norm_modes,
  require_enough_images,
  to_tuples,
  validate,
)
from maml_jax.config_versions import RENAMED_FIELDS, REPLACED_FIELDS, upgrade
from maml_jax.utils.errors import UserError, printable, suggest

__all__ = [
  'NORMS',
  'config_differences',
  'flatten',
  'from_json',
  'learner_configs',
  'load',
  'load_preset',
  'override',
  'preset_names',
  'read_saved',
  'require_enough_images',
  'to_json',
  'validate',
]

PACKAGE = pathlib.Path(__file__).parent
# Where presets are: in an installed package, or in a clone.
PRESET_DIRS = (PACKAGE / 'presets', PACKAGE.parent / 'configs')

MAX_LITERAL_LENGTH = 10_000  # characters; longer values are strings


def load(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
  """Loads a config, applies overrides and checks it.

  Args:
    path: a Python file whose `get_config()` returns a `ConfigDict`, or the name
      of a preset.
    overrides: such as `'--config.task.ways=20'`; see `override`.

  Raises:
    UserError: the file or a field does not exist, or a value is invalid.
  """
  return override(_run_config_file(path), overrides)


def load_preset(
  name: str, changes: Mapping[str, Any] | None = None
) -> ConfigDict:
  """Loads a preset, to be changed by another preset.

  Args:
    name: such as 'mini_5w1s'.
    changes: new values of fields, such as {'task.shots': 5}.

  Returns:
    A locked config, not checked.

  Raises:
    UserError: there is no such preset.
  """
  if (file := _find_preset(name)) is None:
    raise UserError(f'no preset {name}{suggest(name, preset_names())}')
  config = _run_config_file(str(file))
  config.update_from_flattened_dict(changes or {})
  return config


def preset_names() -> list[str]:
  """Returns the names of all presets."""
  for folder in PRESET_DIRS:
    if names := sorted(path.stem for path in folder.glob('[!_]*.py')):
      return names
  return []


def override(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
  """Overrides fields of a config and checks it.

  Args:
    config: changed in place.
    overrides: `'--config.task.ways=20'` or `'--task.ways=20'`. Strings need no
      quotes, tuples no brackets (`--inner.frozen=bn,classifier`), and a boolean
      field without a value is set to true.

  Returns:
    The config.

  Raises:
    UserError: a field does not exist, or a value is invalid.
  """
  for argument in overrides:
    name, equals, text = argument.partition('=')
    field = name.removeprefix('--config.').removeprefix('--')
    section = field.split('.')[0]
    if not name.startswith('--config.') and section not in config:
      hint = suggest(field, flatten(config), config)
      raise UserError(f'unknown argument {argument}{hint}')
    _override(config, field, text if equals else None)
  validate(config)
  return config


def read_saved(source: str | os.PathLike) -> ConfigDict | None:
  """Reads the config of a run that has a checkpoint, or of a checkpoint.

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
    except Exception:  # loading the checkpoint reports what is wrong with it
      continue
  return None


def config_differences(
  old: ConfigDict, new: ConfigDict, ignore: Collection[str] = ()
) -> list[str]:
  """Returns 'field: old -> new' for each field that differs.

  Args:
    old: a config.
    new: another config.
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
  """Returns a config as JSON, see `from_json`."""
  return json.dumps(config.to_dict(), indent=2)


def from_json(text: str) -> ConfigDict:
  """Returns the locked config of a JSON text by this or an earlier version."""
  tree = to_tuples(json.loads(text))
  upgrade(tree, flatten(default_config.get_config()))
  config = ConfigDict(tree)
  for section in ('model', 'eval'):  # norm may be a string or a tuple
    if section in config and 'norm' in config[section]:
      norm = FieldReference(config[section].norm, field_type=object)
      del config[section].norm
      config[section].norm = norm
  return config.lock()


def _find_preset(name: str) -> pathlib.Path | None:
  for folder in PRESET_DIRS:
    if (file := folder / f'{name}.py').is_file():
      return file
  return None


def _find_config_file(path: str) -> pathlib.Path:
  """Returns the file of a path or of a preset's name."""
  file = pathlib.Path(path)
  if file.name == path and (preset := _find_preset(path)):
    return preset
  if file.is_file():
    return file
  if (with_suffix := pathlib.Path(f'{path}.py')).is_file():
    raise UserError(f'no config file {path}; did you mean {with_suffix}?')
  folder = file.parent if file.parent.name == 'configs' else 'configs'
  files = sorted(map(str, pathlib.Path(folder).glob('[!_]*.py')))
  known = files if file.suffix and files else preset_names()
  raise UserError(f'no config file {path}{suggest(path, known)}')


def _run_config_file(path: str) -> ConfigDict:
  file = str(_find_config_file(path))
  try:
    config = runpy.run_path(file).get('get_config', lambda: None)()
  except Exception as error:  # config files may raise anything
    lines = [
      f', line {frame.lineno}'
      for frame in traceback.extract_tb(error.__traceback__)
      if frame.filename == file
    ]
    place = file + ''.join(lines[-1:])
    raise UserError(f'{place}: {_innermost_message(error)}') from error
  if not isinstance(config, ConfigDict):
    raise UserError(
      f'{file}: must define get_config() that returns a ConfigDict, got '
      f'{type(config).__name__}'
    )
  return config.lock()


def _innermost_message(error: Exception) -> str:
  """Returns the message of an error of ml_collections, which nests errors."""
  while error.args and isinstance(error.args[0], Exception):
    error = error.args[0]
  message = str(error.args[0] if isinstance(error, KeyError) else error)
  last = message.splitlines()[-1] if message else type(error).__name__
  if isinstance(error, KeyError):
    replaced = {old: new for old, (new, _) in REPLACED_FIELDS.items()}
    for old, new in (RENAMED_FIELDS | replaced).items():
      if f'"{old.split(".")[1]}"' in last:
        return f'config.{old} does not exist; it is now config.{new}'
  return last.partition(' Other fields')[0]


def _override(config: ConfigDict, field: str, text: str | None) -> None:
  *sections, name = field.split('.')
  value = config
  for key in (*sections, name):
    section = value
    if not isinstance(section, ConfigDict) or key not in section:
      raise UserError(
        f'no field config.{printable(field)}{_field_hint(config, field)}'
      )
    value = section[key]
  if isinstance(value, ConfigDict):
    raise UserError(f'config.{field} is a section: {", ".join(sorted(value))}')
  kind = section.get_type(name)
  if text is None and kind is not bool:
    raise UserError(f'config.{field} needs a value: --config.{field}=VALUE')
  try:
    value = True if text is None else _PARSERS[kind](text)
    if kind is object:
      norm_modes(f'config.{field}', to_tuples(value))
    section[name] = value
  except UserError:
    raise
  except (KeyError, ValueError):
    value = printable(text)
    raise UserError(f'config.{field}={value}: not {TYPE_NAMES[kind]}') from None


def _field_hint(config: ConfigDict, field: str) -> str:
  fields = flatten(config)
  if field in RENAMED_FIELDS:
    return f'; it is now {RENAMED_FIELDS[field]}'
  if field in REPLACED_FIELDS:
    new, values = REPLACED_FIELDS[field]
    return f'; it is now {new}={values[True]}'
  same_name = [f for f in fields if f.endswith(f'.{field}')]
  if same_name:
    return f'; did you mean {" or ".join(same_name)}?'
  return suggest(field, fields, config)


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
