"""Group `iteration`: the time of one meta-iteration, as main.py runs it."""

import statistics
from functools import partial

from benchmarks import workload
from benchmarks.measure import Settings, in_turn, milliseconds
from benchmarks.table import Ranged
from benchmarks.with_jax import compiled, fitting_mesh
from benchmarks.workload import WORKLOADS, Workload

COLUMNS = {
  'ms': Ranged('.2f'),
  'tasks_per_s': '.2f',
  'used': 'd',
  'repeats': 'd',
}


def cases(settings: Settings):
  """Every workload."""
  for name, work in WORKLOADS.items():
    work = workload.tiny(work) if settings.tiny else work
    yield name, partial(measure, work, settings)


def measure(work: Workload, settings: Settings) -> dict:
  """Times a workload on as many devices as its tasks divide over."""
  mesh = fitting_mesh(work.tasks)
  run, args = compiled(work, mesh)
  times = in_turn({'ms': lambda: run(*args)}, settings)['ms']
  return {
    **milliseconds('ms', times),
    'tasks_per_s': work.tasks / statistics.median(times),
    'used': mesh.size,  # devices
    'repeats': len(times),
  }
