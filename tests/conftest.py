"""Runs tests on eight CPU devices; implicit rank promotion is an error.

`JAX_PLATFORMS=cuda pytest` runs them on a GPU instead.
"""

import gc
import os
import pathlib

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
if 'PYTEST_XDIST_WORKER' in os.environ and hasattr(os, 'sched_setaffinity'):
  # Each worker uses its own cores: thread pools of XLA slow each other down.
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


@pytest.fixture(scope='module', autouse=True)
def free_compiled_programs():
  """Frees the compiled programs of a test module, which take gigabytes."""
  yield
  jax.clear_caches()
  gc.collect()


@pytest.fixture(scope='session')
def shared() -> pathlib.Path:
  """The directory of real data and golden cases, outside of the repository."""
  default = REPOSITORY.parent / 'shared'
  folder = pathlib.Path(os.environ.get('MAML_JAX_SHARED', default))
  if not (folder / 'data').is_dir():
    pytest.skip(f'no real data in {folder}: set MAML_JAX_SHARED')
  return folder.resolve()


@pytest.fixture(scope='session')
def glyphs(tmp_path_factory) -> pathlib.Path:
  """The `data_dir` of the prepared data set glyphs, shared by all workers.

  Workers may prepare it at the same time, because it is written atomically.
  """
  folder = tmp_path_factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:
    folder = folder.parent
  data_dir = folder / 'data'
  data.load_dataset('glyphs', 'train', data_dir)
  return data_dir
