"""Tests run on eight fake CPU devices and with strict arithmetic.

`JAX_PLATFORMS=cuda pytest` runs them on an accelerator instead.
"""

import os
import pathlib

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
if 'PYTEST_XDIST_WORKER' in os.environ and hasattr(os, 'sched_setaffinity'):
  # Workers share the cores out, lest the thread pools of XLA contend for them.
  number = int(os.environ['PYTEST_XDIST_WORKER'].removeprefix('gw'))
  count = int(os.environ['PYTEST_XDIST_WORKER_COUNT'])
  cores = sorted(os.sched_getaffinity(0))
  os.sched_setaffinity(0, cores[number % len(cores) :: count])

import jax  # noqa: E402, after the platform is chosen
import pytest  # noqa: E402

from maml_jax import data  # noqa: E402

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture(scope='session')
def shared() -> pathlib.Path:
  """The folder with real data and golden cases, which is no part of a clone."""
  default = REPOSITORY.parent / 'shared'
  folder = pathlib.Path(os.environ.get('MAML_JAX_SHARED', default))
  if not (folder / 'data').is_dir():
    pytest.skip(f'no real data: MAML_JAX_SHARED names no such folder: {folder}')
  return folder.resolve()


@pytest.fixture(scope='session')
def glyphs(tmp_path_factory) -> pathlib.Path:
  """Where the data set glyphs is prepared, as `data_dir`; once for all workers.

  It appears there whole, so at worst two workers make it at a time.
  """
  folder = tmp_path_factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:
    folder = folder.parent
  place = folder / 'data'
  data.load_dataset('glyphs', 'train', place)
  return place
