"""Group `flops`: the rate of an iteration beside that of matrix products.

The iteration and a float32 matrix product, the best of several sizes, one per
device or one alone, are measured in turn on the same cores; `share` is the
ratio of their rates, pair by pair. `gflop` is `flops.count`; `xla_gflop` is the
count of XLA before it optimises, which takes every loop for one turn.
"""

from functools import partial

import jax
import numpy as np

from benchmarks import flops, workload
from benchmarks.measure import Settings, in_turn, milliseconds, spread
from benchmarks.table import Ranged
from benchmarks.with_jax import compiled, fitting_mesh, program
from benchmarks.workload import Workload

COLUMNS = {
  'gflop': '.2f',
  'xla_gflop': '.2f',
  'ms': Ranged('.2f'),
  'gflops': '.1f',
  'matmul_gflops': '.1f',
  'share': Ranged('.1%'),
  'matmul': 's',
  'repeats': 'd',
}
SIZES = (1024, 2048, 4096)
ACCELERATOR_SIZES = (*SIZES, 8192)
TINY_SIZES = (64, 128)


def cases(settings: Settings):
  """The second-order 5-way 1-shot iteration."""
  work = workload.tiny(Workload()) if settings.tiny else Workload()
  yield '5w1s', partial(measure, work, settings)


def measure(work: Workload, settings: Settings) -> dict:
  """Counts, then measures in turn with the fastest matrix product."""
  fn, args = program(work)
  work_flop = flops.count(jax.make_jaxpr(fn)(*args))
  counted_by_xla = jax.jit(fn).lower(*args).cost_analysis() or {}
  mesh = fitting_mesh(work.tasks)
  run, args = compiled(work, mesh)
  name, product_flop, product = fastest_product(mesh.devices.flat, settings)
  calls = {'iteration': lambda: run(*args), 'product': product}
  times = in_turn(calls, settings)
  rates = [work_flop / seconds for seconds in times['iteration']]
  peaks = [product_flop / seconds for seconds in times['product']]
  pairs = zip(rates, peaks, strict=True)
  return {
    'gflop': work_flop / 1e9,
    'xla_gflop': counted_by_xla.get('flops', 0.0) / 1e9,
    **milliseconds('ms', times['iteration']),
    **spread('gflops', rates, 1e-9),
    **spread('matmul_gflops', peaks, 1e-9),
    **spread('share', [rate / peak for rate, peak in pairs]),
    'matmul': name,
    'repeats': len(rates),
  }


def products(devices, sizes):
  """Ways to multiply matrices: name -> (operations, call)."""
  multiply = jax.jit(lambda x: x @ x)

  def call(operands):
    return [multiply(x) for x in operands]

  ways = {}
  for size in sizes:
    x = np.random.default_rng(0).random((size, size), np.float32)
    operands = [jax.device_put(x, device) for device in devices]
    for count in sorted({1, len(operands)}):
      name = f'{count} x {size}'
      ways[name] = 2 * count * size**3, partial(call, operands[:count])
  return ways


def fastest_product(devices, settings: Settings):
  """The way to multiply with the highest rate: its name, operations, call."""
  on_cpu = jax.default_backend() == 'cpu'
  sizes = SIZES if on_cpu else ACCELERATOR_SIZES
  ways = products(list(devices), TINY_SIZES if settings.tiny else sizes)
  times = in_turn({name: call for name, (_, call) in ways.items()}, settings)
  name = max(ways, key=lambda name: ways[name][0] / min(times[name]))
  return name, *ways[name]
