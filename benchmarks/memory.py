"""Group `memory`: temporary memory of compiled programs, on one device.

With and without `inner.remat`; at K=5 also the time of both, measured in turn.
"""

from functools import partial

from benchmarks import workload
from benchmarks.measure import Settings, in_turn, milliseconds, spread
from benchmarks.table import Ranged
from benchmarks.with_jax import compiled, fitting_mesh
from benchmarks.workload import Workload

COLUMNS = {
    'mb': '.1f',
    'mb_remat': '.1f',
    'saved': '.1%',
    'ms': '.2f',
    'ms_remat': '.2f',
    'extra_time': Ranged('.1%'),
    'repeats': 'd',
}
STEPS = (1, 5, 10, 20)
TIMED = 5


def cases(settings: Settings):
  """5-way 1-shot over K, then ResNet-12, which is compiled only."""
  works = {f'5w1s K={k}': Workload(num_steps=k) for k in STEPS}
  works['resnet12 K=5'] = Workload(encoder='resnet12')
  for name, work in works.items():
    work = workload.tiny(work) if settings.tiny else work
    timed = name == f'5w1s K={TIMED}'
    yield name, partial(measure, work, settings, timed)


def measure(work: Workload, settings: Settings, timed: bool) -> dict:
  """Memory in megabytes, and if wanted milliseconds, without remat and with."""
  works = {'': work, '_remat': work._replace(remat=True)}
  row = {f'mb{name}': megabytes(work) for name, work in works.items()}
  row['saved'] = 1 - row['mb_remat'] / row['mb']
  if timed:
    row |= _times(works, settings)
  return row


def megabytes(work: Workload) -> float:
  """Temporary memory of one iteration with all tasks on one device."""
  run, _ = compiled(work)
  return run.memory_analysis().temp_size_in_bytes / 1e6


def _times(works: dict[str, Workload], settings: Settings) -> dict:
  calls = {}
  for name, work in works.items():
    run, args = compiled(work, fitting_mesh(work.tasks))
    calls[f'ms{name}'] = partial(run, *args)
  times = in_turn(calls, settings)
  pairs = zip(times['ms'], times['ms_remat'], strict=True)
  return {
      **milliseconds('ms', times['ms']),
      **milliseconds('ms_remat', times['ms_remat']),
      **spread('extra_time', [remat / plain - 1 for plain, remat in pairs]),
      'repeats': len(times['ms']),
  }
