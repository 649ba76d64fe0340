"""Group `compile`: the time from Python functions to compiled programs.

Each program is compiled in a new process with an empty compilation cache
(cold), and then in another process with the cache of the first (cached).

  python -m benchmarks.compilation PROGRAM [--tiny]   run by these processes
"""

import argparse
import json
import tempfile
import time
from functools import partial

import jax

from benchmarks import workload
from benchmarks.table import RangeFormat
from benchmarks.timing import Settings, median_and_range, run_module
from benchmarks.with_jax import (
  fitting_mesh,
  make_program,
  make_sampler,
  random_dataset,
  workload_train_step,
)
from benchmarks.workload import Workload
from maml_jax.data.episodes import make_transform
from maml_jax.sharding import one_device_per_core

COLUMNS = {
  'cold_s': RangeFormat('.1f'),
  'cold_trace_s': '.1f',
  'cold_compile_s': '.1f',
  'cached_s': RangeFormat('.1f'),
  'cached_trace_s': '.1f',
  'cached_compile_s': '.1f',
  'repeats': 'd',
}
PROGRAMS = ('iteration', 'train_step')
MAX_REPEATS = 3


def cases(settings: Settings):
  """Yields the iteration alone, and the train step, which samples tasks."""
  for name in PROGRAMS:
    yield name, partial(measure, name, settings)


def measure(name: str, settings: Settings) -> dict:
  """Compiles a program without and with a cache, several times."""
  args = [name, '--tiny'] if settings.tiny else [name]
  samples = {'cold': [], 'cached': []}
  start = time.monotonic()
  while len(samples['cold']) < min(settings.repeats, MAX_REPEATS):
    with tempfile.TemporaryDirectory() as cache:
      for times in samples.values():
        result = run_module(
          'benchmarks.compilation',
          *args,
          precision=settings.precision,
          JAX_COMPILATION_CACHE_DIR=cache,
        )
        times.append(result)
    if time.monotonic() - start > settings.seconds:
      break
  row = {'repeats': len(samples['cold'])}
  for kind, times in samples.items():
    row |= median_and_range(f'{kind}_s', [sum(t.values()) for t in times])
    for part in ('trace_s', 'compile_s'):
      row |= median_and_range(f'{kind}_{part}', [t[part] for t in times])
  return row


def time_stages(name: str, work: Workload) -> dict:
  """Returns the seconds to trace and lower, and the seconds to compile."""
  mesh = fitting_mesh(work.tasks)
  if name == 'iteration':
    fn, args = make_program(work, mesh)
    jitted = jax.jit(fn)
  else:
    sampler = make_sampler(work, make_transform())
    jitted, state = workload_train_step(work, sampler, mesh)
    args = state, random_dataset(work, mesh, classes=64, per_class=20), 1
  start = time.perf_counter()
  lowered = jitted.lower(*args)
  traced = time.perf_counter()
  lowered.compile()
  return {
    'trace_s': traced - start,
    'compile_s': time.perf_counter() - traced,
  }


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('program', choices=PROGRAMS)
  parser.add_argument('--tiny', action='store_true', help='a small network')
  args = parser.parse_args()
  work = workload.tiny(Workload()) if args.tiny else Workload()
  one_device_per_core(work.tasks)
  print(json.dumps(time_stages(args.program, work)))


if __name__ == '__main__':
  main()
