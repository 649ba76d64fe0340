"""Writes a config as the source code of a preset."""

import math
import os
import re
from typing import Any

from ml_collections import ConfigDict

from maml_jax import config as config_lib
from maml_jax import default_config

__all__ = ['preset_source']

# Sections of a config, ordered such that defaults follow the fields that they
# refer to.
SECTIONS = ('data', 'task', 'model', 'inner', 'outer', 'train', 'val', 'eval')
MAX_LINE_LENGTH = 80


def preset_source(
  config: ConfigDict, path: str | os.PathLike, source: str
) -> str:
  """Returns the text of a preset, which sets all fields that are not default.

  Args:
    config: from `convert_config`.
    path: the file to write the preset to, for its docstring.
    source: the name of the file that was converted, for its docstring.
  """
  preset = default_config.get_config()
  target, fields = config_lib.flatten(config), {}
  for field in sorted(target, key=_order):
    # The defaults of some fields depend on the fields set so far.
    if config_lib.flatten(preset)[field] != target[field]:
      fields[field] = target[field]
      preset.update_from_flattened_dict({field: target[field]})
  lines = [
    f'"""python main.py --config={_for_docstring(path)}',
    '',
    f'Converted from {_for_docstring(source)} of PyTorch-MAML.',
    'Expected: as in PyTorch-MAML. Hardware: one GPU. Time: not measured."""',
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
  """Returns a sort key that puts fields after those their default refers to."""
  section = field.partition('.')[0]
  return SECTIONS.index(section) if section in SECTIONS else -1, field


def _assignments(fields: dict[str, Any]) -> list[str]:
  """Returns lines of code that set fields, several in a line if they fit."""
  lines, pending, last_section = [], {}, ''

  def update_line(values):
    arguments = ', '.join(f'{name}={text}' for name, text in values.items())
    return f'  {last_section}.update({arguments})'

  def flush():
    if len(pending) == 1:
      ((name, text),) = pending.items()
      lines.append(f'  {last_section}.{name} = {text}')
    elif pending:
      lines.append(update_line(pending))
    pending.clear()

  for field, value in fields.items():
    section, _, name = f'config.{field}'.rpartition('.')
    text = "float('inf')" if value == math.inf else repr(value)
    if (
      section != last_section
      or len(update_line({**pending, name: text})) > MAX_LINE_LENGTH
    ):
      flush()
    last_section = section
    line = f'  {section}.{name} = {text}'
    if isinstance(value, tuple) and len(line) > MAX_LINE_LENGTH:
      items = (f'    {item!r},' for item in value)
      lines += [f'  {section}.{name} = (', *items, '  )']
    else:
      pending[name] = text
  flush()
  return lines


def _for_docstring(text: str | os.PathLike) -> str:
  """Replaces characters that could end a docstring or a line."""
  return re.sub(r'[^\w./ -]', '?', str(text))
