"""The timed programs: that they run, and what memory they need."""

import jax
import numpy as np
import pytest

from benchmarks import with_jax
from benchmarks.workload import WORKLOADS, Workload, arrays

SMALL = {'ways': 2, 'queries': 2, 'side': 16, 'tasks': 2}


def test_the_meta_iteration_fits_in_half_a_gigabyte():
  """Four tasks one after another, as on a CPU; remat takes a third of that."""
  run, _ = with_jax.compiled(WORKLOADS['5w1s'])
  assert run.memory_analysis().temp_size_in_bytes < 500e6
  run, _ = with_jax.compiled(WORKLOADS['5w1s'], remat=True)
  assert run.memory_analysis().temp_size_in_bytes < 250e6


@pytest.mark.parametrize('name', WORKLOADS)
def test_every_workload_runs(name):
  work = WORKLOADS[name]._replace(**SMALL)
  run, args = with_jax.compiled(work)
  result = jax.tree.leaves(run(*args))
  assert all(np.isfinite(x).all() for x in result)


def test_arrays_have_the_stated_shapes():
  (x, y), (x_query, _) = arrays(Workload(shots=2))
  assert x.shape == (4, 10, 84, 84, 3) and x_query.shape == (4, 75, 84, 84, 3)
  assert y[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
