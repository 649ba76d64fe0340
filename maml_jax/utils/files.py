"""What a disk may refuse, told in one line; and what is on it for good."""

import contextlib
import errno
import os
import pathlib
import tempfile

from maml_jax.utils.errors import UserError


@contextlib.contextmanager
def oserror_as_user_error(path: str | os.PathLike):
  """Turns what the system refuses meanwhile into one line about `path`.

  Raises:
    UserError: the disk is full or read-only, and the like.
  """
  try:
    yield
  except OSError as error:
    raise UserError(f'cannot write {path}: {oserror_message(error)}') from error


def oserror_message(error: OSError) -> str:
  """'No space left on device' and the like."""
  return error.strerror or str(error) or type(error).__name__


def preallocate(handle: int, size: int) -> None:
  """Sees to it that an open file has room for so many bytes.

  A program that writes to a memory-mapped file without room is killed.

  Raises:
    OSError: there is none.
  """
  if size and hasattr(os, 'posix_fallocate'):
    try:
      os.posix_fallocate(handle, 0, size)
    except OSError as error:  # some file systems cannot tell
      if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
        raise


def require_free_space(folder: pathlib.Path, size: int) -> None:
  """Raises OSError unless a folder has room for so many bytes more."""
  with tempfile.TemporaryFile(dir=folder) as file:
    preallocate(file.fileno(), size)


def fsync(path: str | os.PathLike) -> None:
  """Waits until a file, or the names in a directory, are on the disk."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
