"""JAX's persistent compilation cache, which makes restarts take seconds."""

import contextlib
import os
import pathlib
import time
import zlib

import jax

from maml_jax.utils.files import expand_path

__all__ = ['enable_compilation_cache', 'remove_damaged_entries']

ZSTANDARD_MAGIC = b'\x28\xb5\x2f\xfd'  # entries not compressed by zlib


def enable_compilation_cache(min_compile_seconds: float | None = None) -> None:
  """Caches compiled programs on disk.

  The directory is $MAML_JAX_CACHE, default ~/.cache/maml_jax/xla. A directory
  configured in JAX itself takes precedence.

  Args:
    min_compile_seconds: do not cache programs that compile faster; default as
      in JAX.
  """
  if min_compile_seconds is not None:
    name = 'jax_persistent_cache_min_compile_time_secs'
    jax.config.update(name, min_compile_seconds)
  if jax.config.values['jax_compilation_cache_dir'] is None:
    folder = os.environ.get('MAML_JAX_CACHE') or '~/.cache/maml_jax/xla'
    folder = expand_path(folder)
    remove_damaged_entries(folder)
    jax.config.update('jax_compilation_cache_dir', str(folder))


def remove_damaged_entries(folder: pathlib.Path) -> None:
  """Deletes truncated or damaged entries of the cache.

  JAX would skip them with a warning at every start. Each entry is checked once.
  """
  stamp = folder / 'checked'
  with contextlib.suppress(OSError):  # the folder may be missing or read-only
    checked = stamp.stat().st_mtime_ns if stamp.exists() else 0
    files = list(folder.glob('*-cache'))
    if not files:
      return
    now = time.time_ns()
    for file in files:
      if file.stat().st_mtime_ns >= checked and _is_damaged(file):
        file.unlink()
    stamp.touch()
    os.utime(stamp, ns=(now, now))


def _is_damaged(file: pathlib.Path) -> bool:
  content = file.read_bytes()
  if content.startswith(ZSTANDARD_MAGIC):
    return False
  try:
    zlib.decompress(content)
  except zlib.error:
    return True
  return False
