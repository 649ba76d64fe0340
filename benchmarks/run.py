"""Benchmarks maml_jax: prints a table per group, writes a JSON line per row.

  python -m benchmarks.run [--only NAME ...] [--json FILE] [--repeats N]

NAME is a group or GROUP/ROW, such as `iteration/5w1s`. The docstring of each
group's module says what it measures. Numbers are medians of several runs after
warm-up, followed by (minimum..maximum). On a CPU, every core becomes a device,
as in main.py.
"""

import argparse
import json
import sys
import time

import jax

from benchmarks import (
  compilation,
  flop_rate,
  iteration,
  memory,
  profile,
  sampling,
  scaling,
  variants,
)
from benchmarks.machine import describe_machine
from benchmarks.table import Table
from benchmarks.timing import Settings
from benchmarks.workload import Workload
from maml_jax.experiment.setup import PRECISIONS
from maml_jax.sharding import one_device_per_core
from maml_jax.utils.errors import UserError, check_choice
from maml_jax.utils.huge_pages import restart_with_huge_pages

GROUPS = {
  'iteration': iteration,
  'compile': compilation,
  'memory': memory,
  'sampling': sampling,
  'flops': flop_rate,
  'scaling': scaling,
  'profile': profile,
  'variants': variants,
}


def select_groups(only: list[str], settings: Settings) -> dict[str, dict]:
  """Returns the groups to measure: name -> {row name: function}.

  Args:
    only: names of groups, or GROUP/ROW; empty for all.
    settings: how to measure.

  Raises:
    UserError: a name is unknown.
  """
  groups = {name: dict(g.cases(settings)) for name, g in GROUPS.items()}
  known = [*groups, *(f'{g}/{row}' for g in groups for row in groups[g])]
  for name in only:
    check_choice('--only', name, known)
  selected = {
    group: {
      row: measure
      for row, measure in rows.items()
      if not only or group in only or f'{group}/{row}' in only
    }
    for group, rows in groups.items()
  }
  return {group: rows for group, rows in selected.items() if rows}


def measure_all(groups: dict[str, dict], settings: Settings, path=None) -> int:
  """Measures, prints and saves all rows.

  Args:
    groups: from `select_groups`.
    settings: how to measure.
    path: a file to append JSON lines to; default none.

  Returns:
    The number of rows that failed.
  """
  conditions = describe_machine() | {
    'precision': settings.precision,
    'tiny': settings.tiny,
  }
  print(', '.join(f'{name} {value}' for name, value in conditions.items()))
  failed, start = 0, time.monotonic()
  for number, (group, rows) in enumerate(groups.items(), 1):
    minutes = (time.monotonic() - start) / 60
    print(f'\n{group} ({number} of {len(groups)}, after {minutes:.0f} min)')
    table = Table(GROUPS[group].COLUMNS, list(rows))
    for name, measure in rows.items():
      table.start_row(name)
      try:
        values = measure()
      except (UserError, jax.errors.JaxRuntimeError) as error:
        table.fail_row(error)
        failed += 1
        continue
      table.finish_row(values)
      if path:
        row = {'group': group, 'name': name, **conditions, **values}
        with open(path, 'a') as f:
          f.write(json.dumps(row) + '\n')
  return failed


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add, default = parser.add_argument, Settings()
  add('--only', nargs='+', default=[], metavar='NAME', help='default: all')
  add('--json', metavar='FILE', help='append JSON lines to this file')
  add(
    '--repeats',
    type=int,
    default=default.repeats,
    help=f'samples of each time; default {default.repeats}',
  )
  add(
    '--seconds',
    type=float,
    default=default.seconds,
    help=f'stop sampling after this long; default {default.seconds:g}',
  )
  add('--precision', default=default.precision, choices=list(PRECISIONS))
  add('--tiny', action='store_true', help='small sizes, for a quick try')
  args = parser.parse_args(argv)
  if args.repeats < 1:
    parser.error(f'--repeats={args.repeats}: must be at least 1')
  one_device_per_core(Workload().tasks)
  settings = Settings(args.repeats, args.seconds, args.precision, args.tiny)
  try:
    with jax.default_matmul_precision(PRECISIONS[args.precision][1]):
      groups = select_groups(args.only, settings)
      return min(1, measure_all(groups, settings, args.json))
  except UserError as error:
    parser.error(str(error))


if __name__ == '__main__':
  restart_with_huge_pages()
  try:
    sys.exit(main())
  except KeyboardInterrupt:
    sys.exit(130)
