"""Group `memory`: temporary memory of compiled programs, on one device.

With and without `inner.remat`, and with `inner.mixed_mode` instead; at K=5 also
the time of all three, measured in turn.
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
  'mb_mixed': '.1f',
  'saved': '.1%',
  'ms': '.2f',
  'extra_remat': Ranged('.1%'),
  'extra_mixed': Ranged('.1%'),
  'repeats': 'd',
}
STEPS = (1, 5, 10, 20)
TIMED = 5


def cases(settings: Settings):
  """5-way 1-shot over K, then ResNet-12, which is compiled only."""
  works = {f'5w1s K={k}': Workload(num_steps=k) for k in STEPS}
  works['first order K=5'] = Workload(first_order=True)
  works['resnet12 K=5'] = Workload(encoder='resnet12')
  for name, work in works.items():
    work = workload.tiny(work) if settings.tiny else work
    timed = name == f'5w1s K={TIMED}'
    yield name, partial(measure, work, settings, timed)


def measure(work: Workload, settings: Settings, timed: bool) -> dict:
  """Memory in megabytes, and if wanted milliseconds, without remat and with."""
  works = {
    '': work,
    '_remat': work._replace(remat=True),
    '_mixed': work._replace(mixed_mode=True),
  }
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
  row = {'repeats': len(times['ms'])}
  for name, seconds in times.items():
    row |= milliseconds(name, seconds)
  for name in ('remat', 'mixed'):
    pairs = zip(times['ms'], times[f'ms_{name}'], strict=True)
    extra = [other / plain - 1 for plain, other in pairs]
    row |= spread(f'extra_{name}', extra)
  return row
