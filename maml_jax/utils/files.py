"""Durable, atomic writes, and clear messages for errors of the file system."""

import contextlib
import errno
import os
import pathlib
import tempfile
from collections.abc import Iterator

from maml_jax.utils.errors import UserError

__all__ = [
  'expand_path',
  'fsync',
  'new_directory',
  'oserror_as_user_error',
  'oserror_message',
  'preallocate',
  'replace_file',
  'require_free_space',
  'write_text',
]


def expand_path(path: str | os.PathLike) -> pathlib.Path:
  """Returns a path with the home directory for a leading ~ or ~user.

  Without such a user, the path stays as it is.
  """
  return pathlib.Path(os.path.expanduser(path))


@contextlib.contextmanager
def new_directory(path: pathlib.Path) -> Iterator[None]:
  """Creates a directory, with its parents, unless it exists.

  If the block fails, the directories that were created and are still empty are
  removed.

  Raises:
    OSError: the directory cannot be created.
  """
  created = [p for p in (path, *path.parents) if not p.exists()]
  try:
    path.mkdir(parents=True, exist_ok=True)
    yield
  except BaseException:
    with contextlib.suppress(OSError):  # not empty
      for folder in created:
        folder.rmdir()
    raise


@contextlib.contextmanager
def oserror_as_user_error(path: str | os.PathLike) -> Iterator[None]:
  """Converts an OSError raised in the block into a one-line UserError.

  Args:
    path: the file or directory that is written, for the message.

  Raises:
    UserError: for example, the disk is full or read-only.
  """
  try:
    yield
  except OSError as error:
    raise UserError(f'cannot write {path}: {oserror_message(error)}') from error


def oserror_message(error: OSError) -> str:
  """Returns a short reason such as 'No space left on device'."""
  return error.strerror or str(error) or type(error).__name__


def preallocate(handle: int, size: int) -> None:
  """Reserves disk space for an open file.

  The system kills a program that writes to a memory-mapped file without space.

  Args:
    handle: a file descriptor.
    size: in bytes.

  Raises:
    OSError: there is not enough space.
  """
  if size and hasattr(os, 'posix_fallocate'):
    try:
      os.posix_fallocate(handle, 0, size)
    except OSError as error:  # not supported by some file systems
      if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
        raise


def require_free_space(folder: pathlib.Path, size: int) -> None:
  """Raises OSError unless `size` more bytes can be written to a folder."""
  with tempfile.TemporaryFile(dir=folder) as file:
    preallocate(file.fileno(), size)


def fsync(path: str | os.PathLike) -> None:
  """Waits until a file, or the entries of a directory, are on the disk."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


@contextlib.contextmanager
def replace_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Replaces a file atomically and durably by one that the block writes.

  Readers see the old or the new content, never a part of it, even after a
  power failure.

  Yields:
    The path of the new file, in the same directory. If the block fails, the new
    file is removed and the old one stays.

  Raises:
    OSError: the file cannot be written.
  """
  new = path.with_name(f'{path.name}.new')
  try:
    yield new
    fsync(new)
    os.replace(new, path)
  except BaseException:
    with contextlib.suppress(OSError):
      new.unlink(missing_ok=True)
    raise


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a text file with `replace_file`.

  Raises:
    UserError: the file cannot be written.
  """
  with oserror_as_user_error(path), replace_file(path) as new:
    new.write_text(text)
