"""Group `compile`: from Python functions to programs that can run.

Each time is of a process of its own with a cache of its own: first an empty one
(cold), then that which the first process left (cached).

  python -m benchmarks.compilation PROGRAM [--tiny]   what such a process runs
"""

import argparse
import json
import tempfile
import time
from functools import partial

import jax

from benchmarks import workload
from benchmarks.measure import Settings, child, spread
from benchmarks.table import Ranged
from benchmarks.with_jax import (
  fitting_mesh,
  program,
  sampler,
  synthetic,
  train_step,
)
from benchmarks.workload import Workload
from maml_jax.data.episodes import make_transform
from maml_jax.sharding import one_device_per_core

COLUMNS = {
  'cold_s': Ranged('.1f'),
  'cold_trace_s': '.1f',
  'cold_compile_s': '.1f',
  'cached_s': Ranged('.1f'),
  'cached_trace_s': '.1f',
  'cached_compile_s': '.1f',
  'repeats': 'd',
}
PROGRAMS = ('iteration', 'train_step')


def cases(settings: Settings):
  """The iteration alone, and the train step of main.py, tasks drawn inside."""
  for name in PROGRAMS:
    yield name, partial(measure, name, settings)


def measure(name: str, settings: Settings) -> dict:
  """Compiles cold, then from the cache, some times over."""
  args = [name, '--tiny'] if settings.tiny else [name]
  samples = {'cold': [], 'cached': []}
  start = time.monotonic()
  while len(samples['cold']) < min(settings.repeats, 3):
    with tempfile.TemporaryDirectory() as cache:
      for times in samples.values():
        result = child(
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
    row |= spread(f'{kind}_s', [sum(t.values()) for t in times])
    for part in ('trace_s', 'compile_s'):
      row |= spread(f'{kind}_{part}', [t[part] for t in times])
  return row


def stages(name: str, work: Workload) -> dict:
  """Seconds to trace and lower, and seconds to compile or to find compiled."""
  mesh = fitting_mesh(work.tasks)
  if name == 'iteration':
    fn, args = program(work, mesh)
    jitted = jax.jit(fn)
  else:
    sample = sampler(work, make_transform())
    jitted, state = train_step(work, sample, mesh)
    args = state, synthetic(work, mesh, classes=64, per_class=20), 1
  start = time.perf_counter()
  lowered = jitted.lower(*args)
  middle = time.perf_counter()
  lowered.compile()
  return {
    'trace_s': middle - start,
    'compile_s': time.perf_counter() - middle,
  }


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('program', choices=PROGRAMS)
  parser.add_argument('--tiny', action='store_true')
  args = parser.parse_args()
  work = workload.tiny(Workload()) if args.tiny else Workload()
  one_device_per_core(work.tasks)
  print(json.dumps(stages(args.program, work)))


if __name__ == '__main__':
  main()
