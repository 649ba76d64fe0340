"""Group `scaling`: what a meta-iteration costs against what it is given.

Against tasks, inner steps, pixels and parameters on the devices that there are;
then 8 tasks on 1 to 8 fake devices, which share the cores of this machine's CPU
(`cores` in every row). `params` are the parameters, `gflop` is `flops.count`.

  python -m benchmarks.scaling DEVICES [--tiny] [...]  what the latter run
  python -m benchmarks.scaling --table FILE            rows of --json, Markdown
"""

import argparse
import json
import math
import pathlib
from functools import partial

import jax

from benchmarks import flops, iteration, workload
from benchmarks.machine import machine
from benchmarks.measure import Settings, child
from benchmarks.with_jax import program
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
FAKE_DEVICES = (1, 2, 4, 8)
FAKE_TASKS = 8


def cases(settings: Settings):
  """Tasks, steps, pixels, parameters, then fake devices."""
  works = {_count(n, 'task'): Workload(tasks=n) for n in TASKS}
  works |= {f'K={k}': Workload(num_steps=k) for k in STEPS}
  works |= {f'{n} pixels': Workload(side=n) for n in SIDES}
  works |= {name: Workload(encoder=name) for name in ENCODERS}
  for name, work in works.items():
    yield name, partial(measure, sized(work, settings.tiny), settings)
  for devices in FAKE_DEVICES:
    name = f'{FAKE_TASKS} tasks, {_count(devices, "fake device")}'
    yield name, partial(_on_fake_devices, devices, settings)


def _count(number: int, what: str) -> str:
  return f'{number} {what}' + 's' * (number > 1)


def sized(work: Workload, tiny: bool) -> Workload:
  """A workload, or a small one of as many tasks."""
  return workload.tiny(work)._replace(tasks=work.tasks) if tiny else work


def measure(work: Workload, settings: Settings) -> dict:
  """The time of a workload, and what there is to do."""
  fn, args = program(work)
  return {
    **iteration.measure(work, settings),
    'gflop': flops.count(jax.make_jaxpr(fn)(*args)) / 1e9,
    'params': sum(math.prod(x.shape) for x in jax.tree.leaves(args[0])),
  }


def table(rows: list[dict]) -> str:
  """Rows as Markdown, with the time of each per GFLOP."""
  lines = [
    '| what | parameters | GFLOP | devices | time | tasks/s | per GFLOP |',
    '|---|---|---|---|---|---|---|',
  ]
  for row in rows:
    lines.append(
      f'| {row["name"]} | {row["params"]:,} | {row["gflop"]:,.1f} | '
      f'{row["used"]} | {row["ms"]:,.0f} ms ({row["ms_min"]:,.0f} - '
      f'{row["ms_max"]:,.0f}) | {row["tasks_per_s"]:.2f} | '
      f'{row["ms"] / row["gflop"]:.2f} ms |'
    )
  return '\n'.join(lines)


def _on_fake_devices(devices: int, settings: Settings) -> dict:
  args = [f'{devices}', f'--repeats={settings.repeats}']
  args += [f'--seconds={settings.seconds}']
  args += ['--tiny'] if settings.tiny else []
  return child(
    'benchmarks.scaling',
    *args,
    precision=settings.precision,
    JAX_PLATFORMS='cpu',
  )


def main(argv=None):
  parser = argparse.ArgumentParser()
  parser.add_argument('devices', type=int, nargs='?')
  parser.add_argument('--table', metavar='FILE')
  parser.add_argument('--repeats', type=int, default=Settings().repeats)
  parser.add_argument('--seconds', type=float, default=Settings().seconds)
  parser.add_argument('--tiny', action='store_true')
  args = parser.parse_args(argv)
  if args.table:
    lines = pathlib.Path(args.table).read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row['group'] == 'scaling']
    print(table(rows))
    return
  jax.config.update('jax_num_cpu_devices', args.devices)
  settings = Settings(args.repeats, args.seconds, tiny=args.tiny)
  work = sized(Workload(tasks=FAKE_TASKS), args.tiny)
  print(json.dumps(machine() | measure(work, settings)))


if __name__ == '__main__':
  main()
