"""Terminal output: verbosity, colors, results, warnings and errors.

Progress messages use `print`, which `--quiet` suppresses. Results are printed
to stdout by `print_result` and errors to stderr by `print_error`, always.
Colors appear only on terminals and never carry information of their own.
"""

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator
from typing import NamedTuple, TextIO

__all__ = [
  'ConsoleSettings',
  'console_settings',
  'escape_control',
  'is_quiet',
  'print_error',
  'print_result',
  'print_warning',
  'silence',
]

RED, YELLOW, BOLD = '31', '33', '1'


class ConsoleSettings(NamedTuple):
  """Settings of the terminal output.

  Attributes:
    quiet: print results and errors only.
    color: use colors on a terminal.
    stdout: stream for results; None: the current sys.stdout.
  """

  quiet: bool = False
  color: bool = True
  stdout: TextIO | None = None


_settings = ConsoleSettings()


@contextlib.contextmanager
def console_settings(
  *, quiet: bool = False, color: bool = True
) -> Iterator[None]:
  """Applies settings within the context; warnings are printed as one line."""
  global _settings
  before = _settings
  with contextlib.ExitStack() as stack:
    stack.enter_context(warnings.catch_warnings())
    warnings.showwarning = _show_warning
    color = color and not os.environ.get('NO_COLOR')
    _settings = ConsoleSettings(quiet, color, sys.stdout)
    for stream in (sys.stdout, sys.stderr):
      # File names may not be valid UTF-8.
      if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors='backslashreplace')
    if quiet:
      null = stack.enter_context(open(os.devnull, 'w'))
      stack.enter_context(contextlib.redirect_stdout(null))
    try:
      yield
    finally:
      _settings = before


def silence() -> None:
  """Prints errors only from now on; used by all but the main process."""
  global _settings
  null = open(os.devnull, 'w')
  _settings = _settings._replace(quiet=True, stdout=null)
  sys.stdout = null


def is_quiet() -> bool:
  """Returns whether only results and errors are printed."""
  return _settings.quiet


def print_result(text: object) -> None:
  """Prints a result, one line or a table, also under --quiet."""
  stream, text = _settings.stdout or sys.stdout, str(text)
  print(text if '\n' in text else _colored(text, BOLD, stream), file=stream)


def print_error(text: str) -> None:
  """Prints 'error: ...' to stderr."""
  prefix = _colored('error:', RED, sys.stderr)
  print(f'{prefix} {escape_control(text, keep=chr(10))}', file=sys.stderr)


def print_warning(text: str) -> None:
  """Prints 'warning: ...' to stderr unless --quiet is set."""
  if not _settings.quiet:
    prefix = _colored('warning:', YELLOW, sys.stderr)
    print(f'{prefix} {escape_control(text, keep=chr(10))}', file=sys.stderr)


def escape_control(text: object, keep: str = '') -> str:
  """Escapes the control characters of a text such as a file name.

  Args:
    text: untrusted text.
    keep: control characters to leave as they are.
  """
  return ''.join(
    c if c.isprintable() or c in keep else c.encode('unicode_escape').decode()
    for c in str(text)
  )


def _show_warning(message, category, filename, lineno, file=None, line=None):
  del category, filename, lineno, file, line
  print_warning(str(message))


def _colored(text: str, code: str, stream: TextIO) -> str:
  is_terminal = stream.isatty() and os.environ.get('TERM') != 'dumb'
  if not (_settings.color and is_terminal):
    return text
  return f'\x1b[{code}m{text}\x1b[0m'
