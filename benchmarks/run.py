"""Measures maml_jax: a table for each group, and a JSON line for each row.

  python -m benchmarks.run [--only NAME ...] [--json FILE] [--repeats N]

NAME is a group or GROUP/ROW, such as `iteration/5w1s`; the docstring of each
group's module says what is measured. Numbers are medians of several runs after
warm-up, with (minimum..maximum) behind them. On a CPU, every core becomes a
device, as in main.py.
"""

import argparse
import json
import sys
import time

import jax

from benchmarks import (
  compilation,
  iteration,
  memory,
  profile,
  rate,
  sampling,
  scaling,
  variants,
)
from benchmarks.machine import machine
from benchmarks.measure import Settings
from benchmarks.table import Table
from benchmarks.workload import Workload
from maml_jax.config import CHOICES
from maml_jax.experiment.setup import PRECISIONS
from maml_jax.sharding import one_device_per_core
from maml_jax.utils.errors import UserError, check_choice
from maml_jax.utils.huge_pages import restart_with_huge_pages

GROUPS = {
  'iteration': iteration,
  'compile': compilation,
  'memory': memory,
  'sampling': sampling,
  'flops': rate,
  'scaling': scaling,
  'profile': profile,
  'variants': variants,
}


def chosen(only: list[str], settings: Settings):
  """The groups to measure: name -> {row name: measure()}.

  Raises:
    UserError: something in `only` is neither a group nor GROUP/ROW.
  """
  groups = {name: dict(g.cases(settings)) for name, g in GROUPS.items()}
  known = [*groups, *(f'{g}/{row}' for g in groups for row in groups[g])]
  for name in only:
    check_choice('--only', name, known)
  wanted = {
    group: {
      row: measure
      for row, measure in rows.items()
      if not only or group in only or f'{group}/{row}' in only
    }
    for group, rows in groups.items()
  }
  return {group: rows for group, rows in wanted.items() if rows}


def measure_all(groups, settings: Settings, path=None) -> int:
  """Prints and appends every row; returns how many could not be measured."""
  about = machine() | {
    'precision': settings.precision,
    'tiny': settings.tiny,
  }
  print(', '.join(f'{name} {value}' for name, value in about.items()))
  failed, start = 0, time.monotonic()
  for number, (group, rows) in enumerate(groups.items(), 1):
    minutes = (time.monotonic() - start) / 60
    print(f'\n{group} ({number} of {len(groups)}, after {minutes:.0f} min)')
    table = Table(GROUPS[group].COLUMNS, list(rows))
    for name, measure in rows.items():
      table.begin(name)
      try:
        values = measure()
      except (UserError, jax.errors.JaxRuntimeError) as error:
        table.fail(error)
        failed += 1
        continue
      table.end(values)
      if path:
        row = {'group': group, 'name': name, **about, **values}
        with open(path, 'a') as f:
          f.write(json.dumps(row) + '\n')
  return failed


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add, default = parser.add_argument, Settings()
  add('--only', nargs='+', default=[], metavar='NAME')
  add('--json', metavar='FILE', help='append JSON lines here')
  add('--repeats', type=int, default=default.repeats)
  add(
    '--seconds',
    type=float,
    default=default.seconds,
    help='begin no further repeat after so long',
  )
  add('--precision', default=default.precision, choices=CHOICES['precision'])
  add('--tiny', action='store_true', help='small sizes, to try it out')
  args = parser.parse_args(argv)
  if args.repeats < 1:
    parser.error('--repeats must be at least 1')
  one_device_per_core(Workload().tasks)
  settings = Settings(args.repeats, args.seconds, args.precision, args.tiny)
  try:
    with jax.default_matmul_precision(PRECISIONS[args.precision][1]):
      groups = chosen(args.only, settings)
      return min(1, measure_all(groups, settings, args.json))
  except UserError as error:
    parser.error(str(error))


if __name__ == '__main__':
  restart_with_huge_pages()
  try:
    sys.exit(main())
  except KeyboardInterrupt:
    sys.exit(130)
