"""Reads YAML files of plain data and checks that every key is used."""

import pathlib
import reprlib
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

import yaml
from yaml.composer import ComposerError

from maml_jax.utils.errors import UserError, check_choice, printable, suggest

__all__ = ['REQUIRED', 'Section', 'read_yaml']

REQUIRED = object()  # default of a key that must be present


def read_yaml(path: str | pathlib.Path) -> dict:
  """Reads a YAML file of plain data.

  Raises:
    UserError: the file does not exist, is not valid YAML, contains tags or
      aliases, or is not a mapping.
  """
  try:
    text = pathlib.Path(path).read_text('utf-8')
    content = yaml.load(text, Loader=_Loader)
  except OSError as error:
    raise UserError(f'cannot read {path}: {error.strerror}') from error
  except Exception as error:  # damaged files can raise any exception
    mark = getattr(error, 'problem_mark', None)
    location = f'{path}, line {mark.line + 1}' if mark else path
    reason = str(getattr(error, 'problem', None) or error).partition('\n')[0]
    raise UserError(
      f'{location}: not plain YAML: {printable(reason)}'
    ) from error
  if not isinstance(content, dict):
    raise UserError(f'{path}: {reprlib.repr(content)} is not a mapping')
  return content


class _Loader(yaml.SafeLoader):
  """Rejects aliases, with which a few lines can expand to gigabytes."""

  def compose_node(self, parent, index):
    if self.check_event(yaml.AliasEvent):
      mark = self.peek_event().start_mark
      message = 'aliases are not supported'
      raise ComposerError(None, None, message, mark)
    return super().compose_node(parent, index)


class Section:
  """A mapping that reports keys that were not read.

  Attributes:
    notes: messages for the user, one line each; shared with all nested
      sections.
  """

  def __init__(
    self, file: str, values: Mapping, notes: list[str], prefix: str = ''
  ):
    """Initializes the section.

    Args:
      file: the name of the file, for messages.
      values: the content.
      notes: a list to which notes are appended.
      prefix: the keys of the enclosing sections, such as 'encoder_args.'.
    """
    self._file, self._prefix, self.notes = file, prefix, notes
    self._unread = dict(values)
    self._known_keys = []

  def __contains__(self, key: str) -> bool:
    """Returns whether a key is present and has not been read."""
    return key in self._unread

  def label(self, key: str) -> str:
    """Returns the file and the full name of a key, for messages."""
    return f'{self._file}: {self._prefix}{key}'

  def get(self, key: str, kind: type, default: Any = REQUIRED) -> Any:
    """Reads the value of a key.

    Args:
      key: the name of the key.
      kind: int, float, bool, str or list.
      default: returned if the key is missing; a default of None also allows
        null.

    Raises:
      UserError: the key is missing and has no default, or its value has another
        type.
    """
    value = self._pop(key, default)
    if value is REQUIRED:
      raise UserError(f'{self.label(key)} is missing')
    return value if value is default else self._convert(kind, key, value)

  def get_or(self, key: str, default: Any) -> Any:
    """Reads the value of a key, as `values.get(key) or default` does.

    PyTorch-MAML reads keys like this. If `default` replaces another value, such
    as 0, a note says so.
    """
    value = self._pop(key, None)
    if value:
      return self._convert(type(default), key, value)
    if value is not None and value != default:
      self.notes.append(
        f'{self.label(key)} is {value}, but PyTorch-MAML uses {default} '
        'instead; so does the config'
      )
    return default

  def get_choice(
    self, key: str, choices: Collection, default: Any = REQUIRED
  ) -> Any:
    """Reads a string that must be one of `choices`, see `get`."""
    value = self.get(key, str, default)
    if value is not default:
      check_choice(self.label(key), value, choices)
    return value

  def get_section(self, key: str) -> 'Section':
    """Reads a mapping; a missing key and null are an empty mapping."""
    values = self._pop(key, None)
    values = {} if values is None else self._convert(dict, key, values)
    prefix = f'{self._prefix}{key}.'
    return Section(self._file, values, self.notes, prefix)

  def check_unread(self, ignored: Mapping[str, str | None]) -> None:
    """Adds a note for each key that was not read and may be ignored.

    Args:
      ignored: the keys that may be ignored, and why; None adds no note.

    Raises:
      UserError: another key was not read.
    """
    for key in self._unread:
      if key not in ignored:
        hint = suggest(str(key), self._known_keys)
        raise UserError(f'{self.label(key)}: unknown key{hint}')
      if ignored[key]:
        self.notes.append(f'{self.label(key)} is ignored: {ignored[key]}')

  def raise_error(self, key: str, value: Any, reason: str) -> NoReturn:
    """Raises UserError about the value of a key."""
    raise UserError(f'{self.label(key)}: {reprlib.repr(value)}: {reason}')

  def _pop(self, key: str, default: Any) -> Any:
    self._known_keys.append(key)
    return self._unread.pop(key, default)

  def _convert(self, kind: type, key: str, value: Any) -> Any:
    """Converts a value to `kind` if that is safe, else raises UserError."""
    if kind is float and type(value) in (int, str):  # 5e-4 is a string in YAML
      try:
        return float(value)
      except ValueError:
        pass
    if kind is bool and type(value) is int and value in (0, 1):
      return bool(value)
    if type(value) is not kind:
      self.raise_error(key, value, f'expected {kind.__name__}')
    return value
