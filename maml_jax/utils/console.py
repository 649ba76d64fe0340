"""What is said on the terminal: how much of it, and in what colour.

What is said by `print` is for people who watch; `--quiet` leaves it out.
Results go to stdout by `result`, complaints to stderr, always. Colours are for
terminals only, and say nothing that the words do not.
"""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from typing import NamedTuple, TextIO

RED, YELLOW, BOLD = '31', '33', '1'


class ConsoleSettings(NamedTuple):
  """How to behave.

  Attributes:
    quiet: whether to say results and errors only.
    color: whether to colour what goes to a terminal.
    stdout: where results go.
  """

  quiet: bool = False
  color: bool = True
  stdout: TextIO | None = None  # None: whatever sys.stdout is


_manners = ConsoleSettings()


@contextlib.contextmanager
def console_settings(*, quiet: bool = False, color: bool = True) -> Iterator[None]:
  """Behaves so while it is entered; warnings become lines like the others."""
  global _manners
  before = _manners
  with contextlib.ExitStack() as stack:
    stack.enter_context(warnings.catch_warnings())
    warnings.showwarning = _show_warning
    _manners = ConsoleSettings(quiet, color and not os.environ.get('NO_COLOR'),
                       sys.stdout)  # fmt: skip
    for stream in (sys.stdout, sys.stderr):
      if hasattr(stream, 'reconfigure'):  # no file name is unspeakable
        stream.reconfigure(errors='backslashreplace')
    if quiet:
      null = stack.enter_context(open(os.devnull, 'w'))
      stack.enter_context(contextlib.redirect_stdout(null))
    try:
      yield
    finally:
      _manners = before


def silence() -> None:
  """From now on says errors only, as one of several processes should."""
  global _manners
  null = open(os.devnull, 'w')
  _manners = _manners._replace(quiet=True, stdout=null)
  sys.stdout = null


def is_quiet() -> bool:
  """Whether results and errors are all that is to be said."""
  return _manners.quiet


def print_result(text: object) -> None:
  """Says what all was done for: one line, or a table."""
  stream, text = _manners.stdout or sys.stdout, str(text)
  print(text if '\n' in text else _colored(text, BOLD, stream), file=stream)


def print_error(text: str) -> None:
  """Says why it ends here."""
  word = _colored('error:', RED, sys.stderr)
  print(f'{word} {escape_control(text, keep=chr(10))}', file=sys.stderr)


def print_warning(text: str) -> None:
  """Says what one should know, but could go on without."""
  if not _manners.quiet:
    word = _colored('warning:', YELLOW, sys.stderr)
    print(f'{word} {escape_control(text, keep=chr(10))}', file=sys.stderr)


def escape_control(text: object, keep: str = '') -> str:
  """A text from outside, such as a file name, without what moves the cursor."""
  return ''.join(
      c
      if c.isprintable() or c in keep
      else c.encode('unicode_escape').decode()
      for c in str(text)
  )


def _show_warning(message, category, filename, lineno, file=None, line=None):
  del category, filename, lineno, file, line
  print_warning(str(message))


def _colored(text: str, code: str, stream: TextIO) -> str:
  terminal = stream.isatty() and os.environ.get('TERM') != 'dumb'
  if not (_manners.color and terminal):
    return text
  return f'\x1b[{code}m{text}\x1b[0m'
