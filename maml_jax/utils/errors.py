"""Exceptions whose messages are shown to users, and helpers to write them."""

import difflib
from collections.abc import Collection

__all__ = [
  'NonFiniteError',
  'UserError',
  'check_choice',
  'printable',
  'suggest',
]

MAX_VALUE_LENGTH = 200  # characters of a value in a message


class UserError(ValueError):
  """Invalid input: `main.py` prints the message without a traceback."""


class NonFiniteError(ArithmeticError):
  """A loss, a gradient or a state contains an infinity or a NaN."""


def printable(value: object) -> str:
  """Returns a value as one line of printable text, truncated if long."""
  text = str(value)
  if len(text) > MAX_VALUE_LENGTH:
    text = f'{text[:MAX_VALUE_LENGTH]}...'
  return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def suggest(
  word: str, known: Collection[str], listed: Collection[str] | None = None
) -> str:
  """Returns the end of a message about an unknown word.

  Args:
    word: the unknown word.
    known: the valid words; the message names the closest one.
    listed: the words to list if none is close; default `known`.
  """
  close = difflib.get_close_matches(
    word[:MAX_VALUE_LENGTH], known, n=1, cutoff=0.5
  )
  if close:
    return f'; did you mean {close[0]}?'
  return f'; choose from: {", ".join(listed or known)}' if known else ''


def check_choice(what: str, value: object, choices: Collection[str]) -> None:
  """Raises UserError with a suggestion unless `value` is one of `choices`."""
  if value not in choices:
    hint = suggest(str(value), [choice for choice in choices if choice])
    raise UserError(f'{what}={printable(value)}: unknown{hint}')
