"""A model of meta-training on a TPU v5e pod: arithmetic, memory, traffic.

  python -m benchmarks.pod [--utilisation 0.3] [--tiny]

Nothing of it is measured on a TPU. Operations and parameters are counted in the
program of one task (84 x 84 pixels, 5-way 1-shot, 15 queries per class, five
steps, second order, remat), temporary memory by compiling it here in float32.
A chip takes one task after another. Its time for one is the longer of two:
operations at a share of the peak rate that is assumed (`--utilisation`), and
one write and one read of the temporary memory at the full rate of the HBM. To
that comes the one all-reduce of gradients, as a ring, with no overlap. The host
and its input are left out.
"""

import argparse
import math
from typing import NamedTuple

import jax

from benchmarks import flops, workload
from benchmarks.with_jax import compiled, program
from benchmarks.workload import Workload

FLOAT = 4  # bytes of a float32
ENCODERS = ('convnet4', 'wide_convnet4', 'resnet12')
CHIPS = (1, 8, 64, 256)


class Chip(NamedTuple):
  """What a chip can do, by the figures of its maker."""

  flops: float  # operations a second, bfloat16
  bandwidth: float  # of its memory, bytes a second
  links: float  # to other chips, all together, bytes a second


V5E = Chip(flops=197e12, bandwidth=819e9, links=1600e9 / 8)


class Task(NamedTuple):
  """What one task of a meta-iteration takes."""

  flop: float
  params: int
  temporary: float  # bytes


def seconds_of_task(task: Task, chip: Chip, utilisation: float) -> float:
  """The longer of arithmetic and memory."""
  arithmetic = task.flop / (utilisation * chip.flops)
  return max(arithmetic, 2 * task.temporary / chip.bandwidth)


def all_reduce_bytes(params: int, chips: int) -> float:
  """Bytes that each chip sends in a ring all-reduce of float32 gradients."""
  return 2 * (chips - 1) / chips * FLOAT * params


def resident_bytes(task: Task) -> float:
  """Parameters, their gradient, and two moments of Adam; temporary memory."""
  return 4 * FLOAT * task.params + task.temporary


def iteration(
  task: Task, chip: Chip, chips: int, tasks_per_chip: int, utilisation: float
) -> dict[str, float]:
  """One meta-iteration: seconds, tasks a second, share of the all-reduce."""
  sent = all_reduce_bytes(task.params, chips)
  reduce = sent / chip.links
  seconds = tasks_per_chip * seconds_of_task(task, chip, utilisation) + reduce
  return {
    'seconds': seconds,
    'tasks_per_second': chips * tasks_per_chip / seconds,
    'sent': sent,
    'share_of_reduce': reduce / seconds,
  }


def count(work: Workload) -> Task:
  """Counts one task of a workload."""
  work = work._replace(tasks=1)
  fn, args = program(work)
  run, _ = compiled(work)
  return Task(
    flops.count(jax.make_jaxpr(fn)(*args)),
    sum(math.prod(x.shape) for x in jax.tree.leaves(args[0])),
    run.memory_analysis().temp_size_in_bytes,
  )


def tables(tasks: dict[str, Task], chip: Chip, utilisation: float) -> str:
  """What is printed, as Markdown."""
  lines = [
    '| encoder | parameters | GFLOP a task | memory of a chip | of it '
    'temporary |',
    '|---|---|---|---|---|',
  ]
  for name, task in tasks.items():
    resident = resident_bytes(task)
    lines.append(
      f'| {name} | {task.params:,} | {task.flop / 1e9:,.1f} | '
      f'{resident / 1e9:.2f} GB | {task.temporary / 1e9:.2f} GB |'
    )
  lines += [
    '',
    '| encoder | chips | tasks | iteration | tasks/s | sent by each chip | '
    'all-reduce |',
    '|---|---|---|---|---|---|---|',
  ]
  for name, task in tasks.items():
    for chips in CHIPS:
      row = iteration(task, chip, chips, 1, utilisation)
      lines.append(
        f'| {name} | {chips} | {chips} | {1e3 * row["seconds"]:.2f} ms | '
        f'{row["tasks_per_second"]:,.0f} | {row["sent"] / 1e6:.2f} MB | '
        f'{row["share_of_reduce"]:.1%} |'
      )
  return '\n'.join(lines)


def main(argv=None) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--utilisation', type=float, default=0.3)
  parser.add_argument('--tiny', action='store_true', help='to try it out')
  args = parser.parse_args(argv)
  works = {name: Workload(encoder=name, remat=True) for name in ENCODERS}
  if args.tiny:
    works = {'tiny': workload.tiny(Workload(remat=True))}
  tasks = {name: count(work) for name, work in works.items()}
  print(tables(tasks, V5E, args.utilisation))


if __name__ == '__main__':
  main()
