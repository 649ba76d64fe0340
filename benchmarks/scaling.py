"""Group `scaling`: how the time of a meta-iteration scales.

The rows vary the number of tasks, inner steps, pixels and parameters on the
available devices, and then the number of simulated devices, 1 to 8, that share
the CPU cores (`cores` in every row). `params` is the number of parameters;
`gflop` is counted by `flops.count_flops`.

  python -m benchmarks.scaling DEVICES [--tiny]   run for simulated devices
  python -m benchmarks.scaling --table FILE       rows of --json as Markdown
"""

import argparse
import json
import math
import pathlib
from functools import partial

import jax

from benchmarks import iteration, workload
from benchmarks.flops import count_flops
from benchmarks.machine import describe_machine
from benchmarks.timing import Settings, run_module
from benchmarks.with_jax import make_program
from benchmarks.workload import Workload

COLUMNS = iteration.COLUMNS | {
  'gflop': '.1f',
  'params': 'd',
  'cores': 'd',
  'platform': 's',
}
TASKS = (1, 2, 4, 8, 16, 32)
STEPS = (1, 2, 5, 10, 20)
SIDES = (28, 56, 84, 112)
ENCODERS = ('convnet4', 'wide_convnet4', 'resnet12')
SIMULATED_DEVICES = (1, 2, 4, 8)
SIMULATED_TASKS = 8


def cases(settings: Settings):
  """Yields tasks, steps, pixels, encoders, then simulated devices."""
  works = {_pluralize(n, 'task'): Workload(tasks=n) for n in TASKS}
  works |= {f'K={k}': Workload(num_steps=k) for k in STEPS}
  works |= {f'{n} pixels': Workload(side=n) for n in SIDES}
  works |= {name: Workload(encoder=name) for name in ENCODERS}
  for name, work in works.items():
    yield name, partial(measure, resize(work, settings.tiny), settings)
  for devices in SIMULATED_DEVICES:
    name = f'{SIMULATED_TASKS} tasks, {_pluralize(devices, "simulated device")}'
    yield name, partial(_measure_simulated_devices, devices, settings)


def _pluralize(number: int, noun: str) -> str:
  return f'{number} {noun}' + 's' * (number > 1)


def resize(work: Workload, tiny: bool) -> Workload:
  """Returns the workload or, if `tiny`, a small one with as many tasks."""
  return workload.tiny(work)._replace(tasks=work.tasks) if tiny else work


def measure(work: Workload, settings: Settings) -> dict:
  """Times a workload, and counts its operations and parameters."""
  fn, args = make_program(work)
  return {
    **iteration.measure(work, settings),
    'gflop': count_flops(jax.make_jaxpr(fn)(*args)) / 1e9,
    'params': sum(math.prod(x.shape) for x in jax.tree.leaves(args[0])),
  }


def markdown_table(rows: list[dict]) -> str:
  """Returns rows as Markdown, with the time per GFLOP."""
  lines = [
    '| workload | parameters | GFLOP | devices | time | tasks/s | per GFLOP |',
    '|---|---|---|---|---|---|---|',
  ]
  for row in rows:
    lines.append(
      f'| {row["name"]} | {row["params"]:,} | {row["gflop"]:,.1f} | '
      f'{row["used"]} | {row["ms"]:,.0f} ms ({row["ms_min"]:,.0f} to '
      f'{row["ms_max"]:,.0f}) | {row["tasks_per_s"]:.2f} | '
      f'{row["ms"] / row["gflop"]:.2f} ms |'
    )
  return '\n'.join(lines)


def _measure_simulated_devices(devices: int, settings: Settings) -> dict:
  args = [f'{devices}', f'--repeats={settings.repeats}']
  args += [f'--seconds={settings.seconds}']
  args += ['--tiny'] if settings.tiny else []
  return run_module(
    'benchmarks.scaling',
    *args,
    precision=settings.precision,
    JAX_PLATFORMS='cpu',
  )


def main(argv=None):
  parser = argparse.ArgumentParser()
  add, default = parser.add_argument, Settings()
  add('devices', type=int, nargs='?', help='number of simulated devices')
  add('--table', metavar='FILE', help='print rows of --json as Markdown')
  add('--repeats', type=int, default=default.repeats)
  add('--seconds', type=float, default=default.seconds)
  add('--tiny', action='store_true', help='a small network')
  args = parser.parse_args(argv)
  if args.table:
    lines = pathlib.Path(args.table).read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row['group'] == 'scaling']
    print(markdown_table(rows))
    return
  if args.devices is None:
    parser.error('DEVICES or --table FILE is required')
  jax.config.update('jax_num_cpu_devices', args.devices)
  settings = Settings(args.repeats, args.seconds, tiny=args.tiny)
  work = resize(Workload(tasks=SIMULATED_TASKS), args.tiny)
  print(json.dumps(describe_machine() | measure(work, settings)))


if __name__ == '__main__':
  main()
