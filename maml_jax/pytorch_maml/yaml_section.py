"""YAML read with care: plain data, and no key unheard."""

import pathlib
import reprlib
from collections.abc import Collection, Mapping
from typing import Any

import yaml

from maml_jax.utils.errors import UserError, check_choice, printable, suggest

REQUIRED = object()


def read_yaml(path: str | pathlib.Path) -> dict:
  """The content of a YAML file, which is plain data.

  Raises:
    UserError: there is no such file, it is broken, or it asks for more.
  """
  try:
    text = pathlib.Path(path).read_text('utf-8')
    content = yaml.load(text, Loader=_Loader)
  except OSError as error:
    raise UserError(f'cannot read {path}: {error.strerror}') from error
  except Exception as error:  # broken files can raise nearly anything
    mark = getattr(error, 'problem_mark', None)
    place = f'{path}, line {mark.line + 1}' if mark else path
    reason = str(getattr(error, 'problem', None) or error).partition('\n')[0]
    raise UserError(f'{place}: no plain YAML: {printable(reason)}') from error
  if not isinstance(content, dict):
    raise UserError(f'{path}: {reprlib.repr(content)} is not a mapping')
  return content


class _Loader(yaml.SafeLoader):
  """Takes no aliases, of which a few lines can make gigabytes."""

  def compose_node(self, parent, index):
    if self.check_event(yaml.AliasEvent):
      mark = self.peek_event().start_mark
      raise yaml.composer.ComposerError(None, None, 'it has aliases', mark)
    return super().compose_node(parent, index)


class Section:
  """A mapping of which every key must be asked for.

  Attributes:
    notes: what a person should know, one line each; shared with all sections
      that are taken from this one.
  """

  def __init__(
    self, file: str, values: Mapping, notes: list[str], prefix: str = ''
  ):
    self._file, self._prefix, self.notes = file, prefix, notes
    self._values = dict(values)
    self._asked = []

  def __contains__(self, key: str) -> bool:
    return key in self._values

  def name(self, key: str) -> str:
    """What messages call a key."""
    return f'{self._file}: {self._prefix}{key}'

  def get(self, key: str, kind: type, default: Any = REQUIRED) -> Any:
    """Takes the value of a key.

    Args:
      key: which.
      kind: int, float, bool, str or list.
      default: in the place of a missing key; None also stands for null.

    Raises:
      UserError: it is missing and has no default, or it is of another kind.
    """
    value = self._take(key, default)
    if value is REQUIRED:
      raise UserError(f'{self.name(key)} is missing')
    return value if value is default else self._as(kind, key, value)

  def get_or(self, key: str, default: Any) -> Any:
    """Takes a value, or `default` in the place of null, 0 and nothing.

    That is what PyTorch-MAML's `or` does; where it replaces something else,
    there is a note.
    """
    value = self._take(key, None)
    if value:
      return self._as(type(default), key, value)
    if value is not None and value != default:
      self.notes.append(
        f'{self.name(key)} is {value}, in the place of which PyTorch-MAML '
        f'takes {default}; so does the config'
      )
    return default

  def choice(self, key: str, choices: Collection, default: Any = REQUIRED):
    """Takes a word; one of `choices`, or `default`."""
    value = self.get(key, str, default)
    if value is not default:
      check_choice(self.name(key), value, choices)
    return value

  def section(self, key: str) -> 'Section':
    """Takes a mapping; an empty one in the place of a missing one or null."""
    values = self._take(key, None)
    values = {} if values is None else self._as(dict, key, values)
    prefix = f'{self._prefix}{key}.'
    return Section(self._file, values, self.notes, prefix)

  def close(self, ignored: Mapping[str, str | None]) -> None:
    """Names the keys that nobody has asked for.

    Args:
      ignored: those that may be there, and why they do not matter; None if
        that goes without saying.

    Raises:
      UserError: one that is not to be ignored.
    """
    for key in self._values:
      if key not in ignored:
        hint = suggest(str(key), self._asked)
        raise UserError(f'{self.name(key)}: unknown key{hint}')
      if ignored[key]:
        self.notes.append(f'{self.name(key)} is left out: {ignored[key]}')

  def refuse(self, key: str, value: Any, why: str) -> None:
    """Raises UserError about a value."""
    raise UserError(f'{self.name(key)}: {reprlib.repr(value)}: {why}')

  def _take(self, key: str, default: Any) -> Any:
    self._asked.append(key)
    return self._values.pop(key, default)

  def _as(self, kind: type, key: str, value: Any) -> Any:
    if kind is float and type(value) in (int, str):  # YAML: 5e-4 is a word
      try:
        return float(value)
      except ValueError:
        pass
    if kind is bool and type(value) is int and value in (0, 1):
      return bool(value)
    if type(value) is not kind:
      self.refuse(key, value, f'no {kind.__name__}')
    return value
