"""Group `flops`: the FLOP rate of an iteration relative to matrix products.

The iteration is timed in turn with the fastest of several float32 matrix
products (of different sizes, on one device or on all) on the same cores;
`share` is the ratio of the two rates, pair by pair. `gflop` is counted by
`flops.count_flops`. `xla_gflop` is XLA's count before optimization, which
counts the body of every loop once.
"""

from collections.abc import Callable
from functools import partial

import jax
import numpy as np

from benchmarks import workload
from benchmarks.flops import count_flops
from benchmarks.table import RangeFormat
from benchmarks.timing import (
  Settings,
  median_and_range,
  milliseconds,
  time_interleaved,
)
from benchmarks.with_jax import compile_program, fitting_mesh, make_program
from benchmarks.workload import Workload

COLUMNS = {
  'gflop': '.2f',
  'xla_gflop': '.2f',
  'ms': RangeFormat('.2f'),
  'gflops': '.1f',
  'matmul_gflops': '.1f',
  'share': RangeFormat('.1%'),
  'matmul': 's',
  'repeats': 'd',
}
SIZES = (1024, 2048, 4096)
ACCELERATOR_SIZES = (*SIZES, 8192)
TINY_SIZES = (64, 128)


def cases(settings: Settings):
  """Yields the second-order 5-way 1-shot iteration."""
  work = workload.tiny(Workload()) if settings.tiny else Workload()
  yield '5w1s', partial(measure, work, settings)


def measure(work: Workload, settings: Settings) -> dict:
  """Counts operations and times them in turn with a matrix product."""
  fn, args = make_program(work)
  iteration_flops = count_flops(jax.make_jaxpr(fn)(*args))
  xla_cost = jax.jit(fn).lower(*args).cost_analysis() or {}
  mesh = fitting_mesh(work.tasks)
  run, args = compile_program(work, mesh)
  name, matmul_flops, matmul = fastest_matmul(mesh.devices.flat, settings)
  calls = {'iteration': lambda: run(*args), 'matmul': matmul}
  times = time_interleaved(calls, settings)
  rates = [iteration_flops / seconds for seconds in times['iteration']]
  peaks = [matmul_flops / seconds for seconds in times['matmul']]
  pairs = zip(rates, peaks, strict=True)
  return {
    'gflop': iteration_flops / 1e9,
    'xla_gflop': xla_cost.get('flops', 0.0) / 1e9,
    **milliseconds('ms', times['iteration']),
    **median_and_range('gflops', rates, 1e-9),
    **median_and_range('matmul_gflops', peaks, 1e-9),
    **median_and_range('share', [rate / peak for rate, peak in pairs]),
    'matmul': name,
    'repeats': len(rates),
  }


def make_matmuls(devices, sizes) -> dict[str, tuple[int, Callable]]:
  """Returns matrix products on one and on all devices.

  Returns:
    name -> (number of operations, function that runs it).
  """
  multiply = jax.jit(lambda x: x @ x)

  def run(operands):
    return [multiply(x) for x in operands]

  matmuls = {}
  for size in sizes:
    x = np.random.default_rng(0).random((size, size), np.float32)
    operands = [jax.device_put(x, device) for device in devices]
    for count in sorted({1, len(operands)}):
      name = f'{count} x {size}'
      matmuls[name] = 2 * count * size**3, partial(run, operands[:count])
  return matmuls


def fastest_matmul(devices, settings: Settings):
  """Returns name, operations and function of the fastest matrix product."""
  on_cpu = jax.default_backend() == 'cpu'
  sizes = SIZES if on_cpu else ACCELERATOR_SIZES
  matmuls = make_matmuls(list(devices), TINY_SIZES if settings.tiny else sizes)
  calls = {name: call for name, (_, call) in matmuls.items()}
  times = time_interleaved(calls, settings)
  name = max(matmuls, key=lambda name: matmuls[name][0] / min(times[name]))
  return name, *matmuls[name]
