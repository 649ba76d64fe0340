"""Estimates the speed of meta-training on a TPU v5e pod from a simple model.

  python -m benchmarks.pod [--utilization 0.3] [--tiny]

Nothing here is measured on a TPU. Operations and parameters are counted in the
program of one task (84 x 84 pixels, 5-way 1-shot, 15 queries per class, five
steps, second order, remat); temporary memory comes from compiling it in float32
on this machine.

A chip processes its tasks one by one. The time of a task is the longer of two:
its operations at an assumed fraction of the peak rate (`--utilization`), and
one write and one read of the temporary memory at the full memory bandwidth. The
ring all-reduce of the gradients is added without overlap. The host and its
input pipeline are ignored.
"""

import argparse
import math
from typing import NamedTuple

import jax

from benchmarks import workload
from benchmarks.flops import count_flops
from benchmarks.with_jax import compile_program, make_program
from benchmarks.workload import Workload

FLOAT_BYTES = 4  # of a float32
ENCODERS = ('convnet4', 'wide_convnet4', 'resnet12')
CHIPS = (1, 8, 64, 256)


class Chip(NamedTuple):
  """The speed of a chip as specified by its manufacturer.

  Attributes:
    peak_flops: bfloat16 operations per second.
    memory_bandwidth: bytes per second.
    link_bandwidth: to other chips, all links together, bytes per second.
  """

  peak_flops: float
  memory_bandwidth: float
  link_bandwidth: float


V5E = Chip(peak_flops=197e12, memory_bandwidth=819e9, link_bandwidth=1600e9 / 8)


class Task(NamedTuple):
  """The cost of one task of a meta-iteration.

  Attributes:
    flops: number of floating-point operations.
    params: number of parameters.
    temporary_bytes: temporary memory of the compiled program.
  """

  flops: float
  params: int
  temporary_bytes: float


def seconds_per_task(task: Task, chip: Chip, utilization: float) -> float:
  """Returns the longer of compute time and memory time."""
  compute = task.flops / (utilization * chip.peak_flops)
  return max(compute, 2 * task.temporary_bytes / chip.memory_bandwidth)


def all_reduce_bytes(params: int, chips: int) -> float:
  """Returns the bytes each chip sends in a ring all-reduce of the gradients."""
  return 2 * (chips - 1) / chips * FLOAT_BYTES * params


def resident_bytes(task: Task) -> float:
  """Returns the bytes of parameters, gradients, Adam's moments and a task."""
  return 4 * FLOAT_BYTES * task.params + task.temporary_bytes


def estimate_iteration(
  task: Task, chip: Chip, chips: int, tasks_per_chip: int, utilization: float
) -> dict[str, float]:
  """Estimates one meta-iteration.

  Args:
    task: the cost of one task.
    chip: the speed of one chip.
    chips: number of chips.
    tasks_per_chip: number of tasks that each chip processes.
    utilization: fraction of the peak rate that is reached, in 0..1.

  Returns:
    'seconds', 'tasks_per_second', 'sent_bytes' of each chip, and
    'all_reduce_share' of the time.
  """
  sent_bytes = all_reduce_bytes(task.params, chips)
  all_reduce = sent_bytes / chip.link_bandwidth
  compute = tasks_per_chip * seconds_per_task(task, chip, utilization)
  seconds = compute + all_reduce
  return {
    'seconds': seconds,
    'tasks_per_second': chips * tasks_per_chip / seconds,
    'sent_bytes': sent_bytes,
    'all_reduce_share': all_reduce / seconds,
  }


def count_task(work: Workload) -> Task:
  """Counts the cost of one task of a workload."""
  work = work._replace(tasks=1)
  fn, args = make_program(work)
  run, _ = compile_program(work)
  return Task(
    count_flops(jax.make_jaxpr(fn)(*args)),
    sum(math.prod(x.shape) for x in jax.tree.leaves(args[0])),
    run.memory_analysis().temp_size_in_bytes,
  )


def markdown_tables(
  tasks: dict[str, Task], chip: Chip, utilization: float
) -> str:
  """Returns two Markdown tables: memory per chip, and time per iteration."""
  lines = [
    '| encoder | parameters | GFLOP per task | memory per chip | temporary |',
    '|---|---|---|---|---|',
  ]
  for name, task in tasks.items():
    lines.append(
      f'| {name} | {task.params:,} | {task.flops / 1e9:,.1f} | '
      f'{resident_bytes(task) / 1e9:.2f} GB | '
      f'{task.temporary_bytes / 1e9:.2f} GB |'
    )
  lines += [
    '',
    '| encoder | chips | tasks | iteration | tasks/s | sent per chip | '
    'all-reduce |',
    '|---|---|---|---|---|---|---|',
  ]
  for name, task in tasks.items():
    for chips in CHIPS:
      row = estimate_iteration(task, chip, chips, 1, utilization)
      lines.append(
        f'| {name} | {chips} | {chips} | {1e3 * row["seconds"]:.2f} ms | '
        f'{row["tasks_per_second"]:,.0f} | {row["sent_bytes"] / 1e6:.2f} MB | '
        f'{row["all_reduce_share"]:.1%} |'
      )
  return '\n'.join(lines)


def main(argv=None) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--utilization',
    type=float,
    default=0.3,
    help='fraction of the peak rate that is reached; default 0.3',
  )
  parser.add_argument('--tiny', action='store_true', help='a small network')
  args = parser.parse_args(argv)
  works = {name: Workload(encoder=name, remat=True) for name in ENCODERS}
  if args.tiny:
    works = {'tiny': workload.tiny(Workload(remat=True))}
  tasks = {name: count_task(work) for name, work in works.items()}
  print(markdown_tables(tasks, V5E, args.utilization))


if __name__ == '__main__':
  main()
