"""Compares the accuracy of short trainings at different precisions.

  python -m studies.precision
  python -m studies.precision --iterations 1000 --seeds 0 1 2 3 4

For each seed, all precisions start from the same parameters, train on the same
tasks and are evaluated on the same test tasks; the difference from float32 is
paired over tasks. Its interval for a single seed applies to these two networks
only. To compare the precisions as such, use the interval over seeds: trainings
diverge randomly after the first rounding difference.

On a CPU, tf32 is float32. Completed runs are not trained again.
"""

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Sequence

import jax
import numpy as np

import maml_jax
from maml_jax import config as config_lib
from maml_jax import train
from maml_jax.evaluation.runner import phase_evaluator
from maml_jax.evaluation.statistics import mean_interval
from maml_jax.experiment import checkpoint, setup
from maml_jax.experiment.formatting import format_percent
from maml_jax.utils.distributed import describe_devices
from maml_jax.utils.errors import UserError

PRESET = pathlib.Path(__file__).parent.parent / 'configs' / 'glyphs_5w1s.py'
BASE = 'float32'


def read_config(args, overrides, precision: str, seed: int):
  """Returns the config of a run: `args.iterations` steps in one epoch."""
  fields = {
    'train.num_epochs': 1,
    'train.steps_per_epoch': args.iterations,
    'val.num_tasks': 40,
    'eval.num_tasks': args.num_tasks,
    'eval.checkpoint': 'latest',
    'precision': precision,
    'seed': seed,
  }
  fixed = [f'--config.{field}={value}' for field, value in fields.items()]
  return config_lib.load(args.config, [*overrides, *fixed])


def measure_accuracies(config, workdir: pathlib.Path) -> np.ndarray:
  """Trains a run unless it is complete; returns its test accuracies, [T]."""
  setup.configure_jax(config)
  if status := train.train(config, workdir):
    sys.exit(status)
  saved = checkpoint.load(workdir, config.eval.checkpoint)
  phase, sharding = setup.eval_phase(config), setup.eval_sharding(config)
  num_tasks = config.eval.num_tasks
  with setup.matmul_precision(config):
    evaluator = phase_evaluator(config, phase, num_tasks, sharding)
    return evaluator(saved.params, saved.stats)['accuracy']


def make_row(precision: str, seed, accuracy, difference=None, **extra) -> dict:
  """Returns the row of one run, or of all seeds.

  Args:
    precision: of the run.
    seed: of the run, or 'all'.
    accuracy: [n], of tasks or of seeds.
    difference: [n], from float32; default none.
    **extra: additional fields.
  """
  row = {'precision': precision, 'seed': seed}
  row['accuracy'], row['interval'] = mean_interval(accuracy)
  if difference is not None:
    row['difference'], row['difference_interval'] = mean_interval(difference)
  return row | extra


def run_study(args, overrides: Sequence[str]) -> list[dict]:
  """Returns a row per run and, for several seeds, a row per precision."""
  results, rows = {}, []
  for seed in args.seeds:
    for precision in setup.PRECISIONS:
      config = read_config(args, overrides, precision, seed)
      name = f'{precision}-seed{seed}-{args.iterations}'
      start = time.monotonic()
      result = measure_accuracies(config, pathlib.Path(args.workdir) / name)
      seconds = time.monotonic() - start
      results[precision, seed] = result
      difference = None
      if precision != BASE:
        difference = result - results[BASE, seed]
      row = make_row(precision, seed, result, difference, seconds=seconds)
      rows.append(row)
  for precision in setup.PRECISIONS if len(args.seeds) > 1 else ():
    means, base = (
      np.array([results[name, seed].mean() for seed in args.seeds])
      for name in (precision, BASE)
    )
    difference = None if precision == BASE else means - base
    rows.append(make_row(precision, 'all', means, difference))
  common = {
    'iterations': args.iterations,
    'num_tasks': args.num_tasks,
    'devices': describe_devices(),
    'jax': jax.__version__,
    'version': maml_jax.__version__,
  }
  return [row | common for row in rows]


def format_table(rows: list[dict]) -> str:
  """Returns rows as text; the interval of 'all' is over seeds."""
  lines = [f'{"precision":10} {"seed":>4}  {"accuracy":18} minus {BASE}']
  for row in rows:
    line = '{precision:10} {seed:>4}  '.format(**row)
    line += f'{format_percent(row["accuracy"], row["interval"]):18} '
    if 'difference' in row:
      line += format_percent(row['difference'], row['difference_interval'])
    lines.append(line.rstrip())
  return '\n'.join(lines)


def main(argv: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__,
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('--config', default=str(PRESET), help='default: configs/glyphs_5w1s.py')
  add('--seeds', nargs='+', type=int, default=[0, 1, 2], help='default 0 1 2')
  add(
    '--iterations',
    type=int,
    default=300,
    help='meta-iterations of each run; default 300',
  )
  add('--num_tasks', type=int, default=600, help='test tasks; default 600')
  add(
    '--workdir',
    default='runs/precision',
    help='directory of the runs; default runs/precision',
  )
  add('--json', metavar='FILE', help='append JSON lines to this file')
  args, overrides = parser.parse_known_args(argv)
  rows = run_study(args, overrides)
  print(format_table(rows))
  lines = ''.join(f'{json.dumps(row)}\n' for row in rows)
  print(lines, end='')
  if args.json:
    with open(args.json, 'a') as file:
      file.write(lines)


if __name__ == '__main__':
  try:
    main(sys.argv[1:])
  except UserError as error:
    sys.exit(f'error: {error}')
