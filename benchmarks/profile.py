"""Group `profile`: where the time of an iteration goes, on one CPU device.

One task, 5-way 1-shot, second order, as XLA's profiler sees it: milliseconds
per iteration of each kind of work, and its share. A kind is told from the name
that JAX gives an operation.
"""

import collections
import pathlib
import re
import tempfile
from functools import partial

import jax
from jax.profiler import ProfileData

from benchmarks import workload
from benchmarks.measure import Settings
from benchmarks.with_jax import compiled
from benchmarks.workload import Workload
from maml_jax.sharding import make_mesh

COLUMNS = {'ms': '.1f', 'share': '.1%', 'calls': 'd', 'repeats': 'd'}

# The first pattern that is found in an operation's definition decides.
KINDS = {
  'gradients of kernels': r'conv/while/body/|body/\w+/conv_general',
  'convolutions': r'conv_general_dilated',
  'reductions': r'reduce|dot_general',
  'pixel by pixel': r'',
}
LEAF = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = (?!.* while\()(.*)$', re.M)


def cases(settings: Settings):
  """Every kind; they are measured together, by the first."""
  shares = {}
  for kind in KINDS:
    yield kind, partial(measure, kind, shares, settings)


def measure(kind: str, shares: dict, settings: Settings) -> dict:
  """The part of one kind; `shares` is filled if it is empty."""
  if not shares:
    shares |= profile(settings)
  nanoseconds, calls = shares[kind]
  total = sum(t for t, _ in shares.values())
  return {
    'ms': nanoseconds / 1e6,
    'share': nanoseconds / total,
    'calls': round(calls),
    'repeats': settings.repeats,
  }


def profile(settings: Settings) -> dict[str, tuple[float, float]]:
  """kind -> nanoseconds and operations per iteration."""
  work = Workload(tasks=1)
  work = workload.tiny(work) if settings.tiny else work
  run, args = compiled(work, make_mesh(jax.devices()[:1]))
  kind_of = {
    name: next(k for k, pattern in KINDS.items() if re.search(pattern, text))
    for name, text in LEAF.findall(run.as_text())
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
    if event.name in kind_of:
      time[kind_of[event.name]] += event.duration_ns / settings.repeats
      calls[kind_of[event.name]] += 1 / settings.repeats
  return {kind: (time[kind], calls[kind]) for kind in KINDS}
