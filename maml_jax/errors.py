"""The one exception whose message is meant for the person at the terminal."""

import difflib
from collections.abc import Collection


class UserError(ValueError):
  """Bad input: `main.py` prints the message alone, without a traceback."""


def suggest(
  word: str, known: Collection[str], listed: Collection[str] | None = None
) -> str:
  """The end of a message about an unknown word: the nearest, or all there are.

  Args:
    word: what was asked for.
    known: what there is.
    listed: what is listed where nothing is near; by default `known`.
  """
  near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
  if near:
    return f'; did you mean {near[0]}?'
  return f'; there are: {", ".join(listed or known)}' if known else ''


def check_choice(what: str, value: object, choices: Collection[str]) -> None:
  """Raises UserError, naming the nearest, unless `value` is a choice."""
  if value not in choices:
    raise UserError(f'{what}={value}: unknown{suggest(str(value), choices)}')
