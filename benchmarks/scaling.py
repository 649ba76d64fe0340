"""Group `scaling`: more tasks, and more devices.

First 1 to 32 tasks on the devices that there are; then 8 tasks on 1 to 8 fake
devices, which share the cores of this machine's CPU (`cores` in every row).

  python -m benchmarks.scaling DEVICES [--tiny] [...]   what the latter run
"""

import argparse
import json
from functools import partial

import jax

from benchmarks import iteration, workload
from benchmarks.machine import machine
from benchmarks.measure import Settings, child
from benchmarks.workload import Workload

COLUMNS = iteration.COLUMNS | {'cores': 'd', 'platform': 's'}
TASKS = (1, 2, 4, 8, 16, 32)
FAKE_DEVICES = (1, 2, 4, 8)
FAKE_TASKS = 8


def cases(settings: Settings):
  """Tasks, then fake devices."""
  for tasks in TASKS:
    work = sized(tasks, settings.tiny)
    yield f'{tasks} tasks', partial(iteration.measure, work, settings)
  for devices in FAKE_DEVICES:
    name = f'{FAKE_TASKS} tasks, {devices} fake devices'
    yield name, partial(_on_fake_devices, devices, settings)


def sized(tasks: int, tiny: bool) -> Workload:
  """5-way 1-shot with so many tasks."""
  work = workload.tiny(Workload()) if tiny else Workload()
  return work._replace(tasks=tasks)


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


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('devices', type=int)
  parser.add_argument('--repeats', type=int, required=True)
  parser.add_argument('--seconds', type=float, required=True)
  parser.add_argument('--tiny', action='store_true')
  args = parser.parse_args()
  jax.config.update('jax_num_cpu_devices', args.devices)
  settings = Settings(args.repeats, args.seconds, tiny=args.tiny)
  row = iteration.measure(sized(FAKE_TASKS, args.tiny), settings)
  print(json.dumps(machine() | row))


if __name__ == '__main__':
  main()
