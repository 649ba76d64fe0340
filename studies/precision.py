"""Does a lower precision cost accuracy? Short trainings under each, in pairs.

  python -m studies.precision
  python -m studies.precision --iterations 1000 --seeds 0 1 2 3 4

Every precision trains on the same tasks from the same parameters, seed by seed,
and is evaluated on the same test tasks. The difference from float32 is taken
task by task; its interval says how sure it is for these two networks. Over
seeds, the interval says how sure it is for the precision: trainings part ways
by chance after the first rounding. On a CPU tf32 is float32. A run that is
there is not trained again.
"""

import argparse
import json
import pathlib
import sys
import time

import jax
import numpy as np

import maml_jax
from maml_jax import config as config_lib
from maml_jax import train
from maml_jax.evaluation import evaluate
from maml_jax.evaluation.statistics import mean_interval
from maml_jax.experiment import checkpoint, setup
from maml_jax.experiment.formatting import format_percent
from maml_jax.utils.distributed import describe_devices
from maml_jax.utils.errors import UserError

PRESET = pathlib.Path(__file__).parent.parent / 'configs' / 'glyphs_5w1s.py'
BASE = 'float32'


def read_config(args, overrides, precision: str, seed: int):
  """The config of one run: `args.iterations` in a single epoch."""
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


def accuracies(config, workdir: pathlib.Path) -> np.ndarray:
  """Trains unless that is done, and returns accuracies on test tasks, [T]."""
  if status := train.train(config, workdir):
    sys.exit(status)
  saved = checkpoint.load(workdir, config.eval.checkpoint)
  phase, machine = setup.eval_phase(config), setup.eval_sharding(config)
  num_tasks = config.eval.num_tasks
  with setup.matmul_precision(config):
    evaluator = evaluate.phase_evaluator(config, phase, num_tasks, machine)
    return evaluator(saved.params, saved.stats)['accuracy']


def record(precision: str, seed, accuracy, difference=None, **kw) -> dict:
  """What is known of a run, or of all: each a mean and its interval."""
  row = {'precision': precision, 'seed': seed}
  row['accuracy'], row['interval'] = mean_interval(accuracy)
  if difference is not None:
    row['difference'], row['difference_interval'] = mean_interval(difference)
  return row | kw


def run(args, overrides) -> list[dict]:
  """All runs, seed by seed; then the mean of each precision over seeds."""
  results, rows = {}, []
  for seed in args.seeds:
    for precision in setup.PRECISIONS:
      config = read_config(args, overrides, precision, seed)
      name = f'{precision}-seed{seed}-{args.iterations}'
      start = time.monotonic()
      result = accuracies(config, pathlib.Path(args.workdir) / name)
      seconds = time.monotonic() - start
      results[precision, seed] = result
      difference = None
      if precision != BASE:
        difference = result - results[BASE, seed]
      rows.append(record(precision, seed, result, difference, seconds=seconds))
  for precision in setup.PRECISIONS if len(args.seeds) > 1 else ():
    means, base = (
      np.array([results[word, seed].mean() for seed in args.seeds])
      for word in (precision, BASE)
    )
    difference = None if precision == BASE else means - base
    rows.append(record(precision, 'all', means, difference))
  common = {
    'iterations': args.iterations,
    'num_tasks': args.num_tasks,
    'devices': describe_devices(),
    'jax': jax.__version__,
    'version': maml_jax.__version__,
  }
  return [row | common for row in rows]


def table(rows: list[dict]) -> str:
  """Rows for people; 'all' is the mean over seeds, its interval over them."""
  lines = [f'{"precision":10} {"seed":>4}  {"accuracy":18} minus {BASE}']
  for row in rows:
    line = '{precision:10} {seed:>4}  '.format(**row)
    line += f'{format_percent(row["accuracy"], row["interval"]):18} '
    if 'difference' in row:
      line += format_percent(row['difference'], row['difference_interval'])
    lines.append(line.rstrip())
  return '\n'.join(lines)


def main(argv: list[str]) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__,
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('--config', default=str(PRESET), help='default: configs/glyphs_5w1s.py')
  add('--seeds', nargs='+', type=int, default=[0, 1, 2])
  add('--iterations', type=int, default=300, help='of each training')
  add('--num_tasks', type=int, default=600, help='test tasks')
  add('--workdir', default='runs/precision', help='where the runs lie')
  add('--json', metavar='FILE', help='append JSON lines here')
  args, overrides = parser.parse_known_args(argv)
  rows = run(args, overrides)
  print(table(rows))
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
