"""Group `iteration`: the time of one meta-iteration, as main.py runs it."""

import statistics
from functools import partial

from benchmarks import workload
from benchmarks.table import RangeFormat
from benchmarks.timing import Settings, milliseconds, time_interleaved
from benchmarks.with_jax import compile_program, fitting_mesh
from benchmarks.workload import WORKLOADS, Workload

COLUMNS = {
  'ms': RangeFormat('.2f'),
  'tasks_per_s': '.2f',
  'used': 'd',  # devices
  'repeats': 'd',
}


def cases(settings: Settings):
  """Yields every workload."""
  for name, work in WORKLOADS.items():
    work = workload.tiny(work) if settings.tiny else work
    yield name, partial(measure, work, settings)


def measure(work: Workload, settings: Settings) -> dict:
  """Times a workload on as many devices as its tasks divide evenly over."""
  mesh = fitting_mesh(work.tasks)
  run, args = compile_program(work, mesh)
  times = time_interleaved({'ms': lambda: run(*args)}, settings)['ms']
  return {
    **milliseconds('ms', times),
    'tasks_per_s': work.tasks / statistics.median(times),
    'used': mesh.size,
    'repeats': len(times),
  }
