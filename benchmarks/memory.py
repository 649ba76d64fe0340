"""Group `memory`: temporary memory of compiled programs, on one device.

Each workload is compiled as is, with `inner.remat` and with
`inner.mixed_mode`. At K=5 all three are also timed in turn.
"""

from functools import partial

from benchmarks import workload
from benchmarks.table import RangeFormat
from benchmarks.timing import (
  Settings,
  median_and_range,
  milliseconds,
  time_interleaved,
)
from benchmarks.with_jax import compile_program, fitting_mesh
from benchmarks.workload import Workload

COLUMNS = {
  'mb': '.1f',
  'mb_remat': '.1f',
  'mb_mixed': '.1f',
  'saved': '.1%',
  'ms': '.2f',
  'extra_remat': RangeFormat('.1%'),
  'extra_mixed': RangeFormat('.1%'),
  'repeats': 'd',
}
STEPS = (1, 5, 10, 20)
TIMED_STEPS = 5


def cases(settings: Settings):
  """Yields 5-way 1-shot over K, first order, and ResNet-12."""
  works = {f'5w1s K={k}': Workload(num_steps=k) for k in STEPS}
  works['first order K=5'] = Workload(first_order=True)
  works['resnet12 K=5'] = Workload(encoder='resnet12')
  for name, work in works.items():
    work = workload.tiny(work) if settings.tiny else work
    timed = name == f'5w1s K={TIMED_STEPS}'
    yield name, partial(measure, work, settings, timed)


def measure(work: Workload, settings: Settings, timed: bool) -> dict:
  """Returns memory in megabytes and, if `timed`, milliseconds."""
  works = {
    '': work,
    '_remat': work._replace(remat=True),
    '_mixed': work._replace(mixed_mode=True),
  }
  row = {
    f'mb{suffix}': temporary_megabytes(work) for suffix, work in works.items()
  }
  row['saved'] = 1 - row['mb_remat'] / row['mb']
  if timed:
    row |= _time_all(works, settings)
  return row


def temporary_megabytes(work: Workload, mesh=None) -> float:
  """Returns the temporary memory of one iteration per device.

  Args:
    work: the workload.
    mesh: the devices; default one device that runs all tasks.
  """
  run, _ = compile_program(work, mesh)
  return run.memory_analysis().temp_size_in_bytes / 1e6


def _time_all(works: dict[str, Workload], settings: Settings) -> dict:
  calls = {}
  for suffix, work in works.items():
    run, args = compile_program(work, fitting_mesh(work.tasks))
    calls[f'ms{suffix}'] = partial(run, *args)
  times = time_interleaved(calls, settings)
  row = {'repeats': len(times['ms'])}
  for name, seconds in times.items():
    row |= milliseconds(name, seconds)
  for name in ('remat', 'mixed'):
    pairs = zip(times['ms'], times[f'ms_{name}'], strict=True)
    extra = [other / plain - 1 for plain, other in pairs]
    row |= median_and_range(f'extra_{name}', extra)
  return row
