"""Group `profile`: a profile of one iteration on one CPU device.

One task, 5-way 1-shot, second order, measured by XLA's profiler: milliseconds
per iteration of each category of operations, and its share of the total. The
category follows from the operation's name in the compiled program.
"""

import collections
import pathlib
import re
import tempfile
from functools import partial

import jax
from jax.profiler import ProfileData

from benchmarks import workload
from benchmarks.timing import Settings
from benchmarks.with_jax import compile_program
from benchmarks.workload import Workload
from maml_jax.sharding import make_mesh

COLUMNS = {'ms': '.1f', 'share': '.1%', 'calls': 'd', 'repeats': 'd'}

# Category -> pattern. The first one found in an operation's definition applies.
CATEGORIES = {
  'kernel gradients': r'conv/while/body/|body/\w+/conv_general',
  'convolutions': r'conv_general_dilated',
  'reductions': r'reduce|dot_general',
  'elementwise': r'',
}
OPERATION = re.compile(
  r'^\s*(?:ROOT )?%?([\w.\-]+) = (?!.* while\()(.*)$', re.M
)


def cases(settings: Settings):
  """Yields every category; the first one runs the profiler for all."""
  totals = {}
  for category in CATEGORIES:
    yield category, partial(measure, category, totals, settings)


def measure(category: str, totals: dict, settings: Settings) -> dict:
  """Returns the row of one category; fills `totals` if it is empty."""
  if not totals:
    totals |= profile(settings)
  nanoseconds, calls = totals[category]
  total = sum(t for t, _ in totals.values())
  return {
    'ms': nanoseconds / 1e6,
    'share': nanoseconds / total,
    'calls': round(calls),
    'repeats': settings.repeats,
  }


def profile(settings: Settings) -> dict[str, tuple[float, float]]:
  """Returns category -> (nanoseconds, operations) per iteration."""
  work = Workload(tasks=1)
  work = workload.tiny(work) if settings.tiny else work
  run, args = compile_program(work, make_mesh(jax.devices()[:1]))
  category_of = {
    name: next(c for c, pattern in CATEGORIES.items() if re.search(pattern, op))
    for name, op in OPERATION.findall(run.as_text())
  }
  jax.block_until_ready(run(*args))
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for _ in range(settings.repeats):
        jax.block_until_ready(run(*args))
    (path,) = pathlib.Path(folder).rglob('*.xplane.pb')
    planes = ProfileData.from_file(str(path)).planes
  time, calls = collections.Counter(), collections.Counter()
  for event in (e for p in planes for line in p.lines for e in line.events):
    if event.name in category_of:
      category = category_of[event.name]
      time[category] += event.duration_ns / settings.repeats
      calls[category] += 1 / settings.repeats
  return {
    category: (time[category], calls[category]) for category in CATEGORIES
  }
