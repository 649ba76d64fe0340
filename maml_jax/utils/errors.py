"""Exceptions whose messages are meant for the person at the terminal."""

import difflib
from collections.abc import Collection

MAX_VALUE_LENGTH = 200  # characters of a value in a message


class UserError(ValueError):
  """Bad input: `main.py` prints the message alone, without a traceback."""


class NonFiniteError(ArithmeticError):
  """A loss, a gradient or a state holds an infinity or a NaN."""


def printable(value: object) -> str:
  """A value as it may stand in a message: short, printable, on one line."""
  text = str(value)
  if len(text) > MAX_VALUE_LENGTH:
    text = f'{text[:MAX_VALUE_LENGTH]}...'
  return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def suggest(
  word: str, known: Collection[str], listed: Collection[str] | None = None
) -> str:
  """The end of a message about an unknown word: the nearest, or all there are.

  Args:
    word: what was asked for.
    known: what there is.
    listed: what is listed where nothing is near; by default `known`.
  """
  near = difflib.get_close_matches(word[:MAX_VALUE_LENGTH], known, n=1, cutoff=0.5)
  if near:
    return f'; did you mean {near[0]}?'
  return f'; there are: {", ".join(listed or known)}' if known else ''


def check_choice(what: str, value: object, choices: Collection[str]) -> None:
  """Raises UserError, naming the nearest, unless `value` is a choice."""
  if value not in choices:
    hint = suggest(str(value), choices)
    raise UserError(f'{what}={printable(value)}: unknown{hint}')
