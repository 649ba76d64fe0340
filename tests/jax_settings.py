"""Temporary settings of JAX for tests."""

import contextlib
import os
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

__all__ = ['compilation_cache_disabled']


@contextlib.contextmanager
def compilation_cache_disabled() -> Iterator[None]:
  """Disables the persistent cache, even if the block runs a command line."""
  settings = {
    'jax_enable_compilation_cache': False,
    # A configured directory: maml_jax does not look for the user's cache.
    'jax_compilation_cache_dir': os.devnull,
    'jax_persistent_cache_min_compile_time_secs': 1.0,
  }
  before = {name: getattr(jax.config, name) for name in settings}
  # JAX reads its settings when it first compiles; a reset repeats that.
  compilation_cache.reset_cache()
  for name, value in settings.items():
    jax.config.update(name, value)
  try:
    yield
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()
