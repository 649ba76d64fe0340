"""Compares every method of the family on the same tasks.

  python -m studies.family --status    # which cells are complete
  python -m studies.family             # run the missing ones; resumes
  python -m studies.family --stage time     # only the timings
  python -m studies.family --table     # write the tables and the figure

Each method trains the same encoder with the same number of meta-iterations on
the same 20-way 1-shot tasks of glyphs and of Omniglot, with three seeds. Its
inner learning rate is tuned on validation tasks, on the same grid of factors
for every method. See "Every method on the same tasks" in docs/methods.md.

The work is divided into cells: the tuning of a method on a data set, a training
with its evaluation, or a timing, for which nothing else should run. A complete
cell is a JSON file in --results, which is reused; the runs are in --workdir and
are needed only until their cell is complete. Cells of other settings are run
again. Takes about six hours on 2 CPU cores; --quick takes ten minutes and
writes to --workdir only.
"""

import argparse
import math
import pathlib
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial

import jax
import numpy as np

from maml_jax import train, train_step
from maml_jax.evaluation import evaluate, results, sweep
from maml_jax.evaluation.statistics import mean_interval
from maml_jax.experiment import setup
from maml_jax.experiment.metrics_log import read_records
from maml_jax.utils.errors import UserError
from maml_jax.utils.huge_pages import restart_with_huge_pages
from studies import family_tables
from studies.family_cells import STAGES, Cell, Store, make_cells, pack_counts
from studies.family_methods import DATASETS, METHODS, PRETRAINED, tuned_rates

SEEDS = (0, 1, 2)
RESULTS = pathlib.Path(__file__).parent / 'family_results'
MORE_STEPS = (1, 2, 3, 5, 7, 10, 15, 20)
# Expected durations, used until a cell of the same stage is complete.
SECONDS = {'tune': 120.0, 'run': 240.0, 'time': 60.0}


def run_cell(cell: Cell, store: Store, workdir: pathlib.Path) -> dict | None:
  """Returns the result of a cell; None if its training diverged."""
  if cell.stage == 'tune':
    return tune(cell, store, workdir)
  rate = store.rate(cell)
  config = store.config(cell, rate)
  run_dir = _run_dir(workdir, cell, rate)
  if _train(config, run_dir):
    return None
  if cell.stage == 'time':
    return {
      'seconds_per_iteration': _seconds_per_iteration(run_dir, config),
      'megabytes': temporary_megabytes(config),
    }
  if config.train.objective == 'classes':
    evaluation = _evaluate_pretrained(config, run_dir)
  else:
    evaluation = _evaluate_method(cell.method, config, run_dir)
  return {
    'rate': rate,
    'num_steps': config.eval.num_steps,
    'classes': _count_classes(config),
    **evaluation,
  }


def tune(cell: Cell, store: Store, workdir: pathlib.Path) -> dict:
  """Trains one epoch with each rate and returns the best on validation.

  The training with the best rate is resumed by the cell of seed 0.
  """
  rates, measured = tuned_rates(cell.method, quick=store.quick), []
  for rate in rates:
    config = store.config(cell, rate)
    config.train.num_epochs = 1
    run_dir = _run_dir(workdir, cell, rate)
    status = _train(config, run_dir)
    validated = [
      record
      for record in read_records(run_dir)
      if record['split'] == 'val'
      and record['step'] == config.train.steps_per_epoch
    ]
    # A training that diverged is not validated.
    measured.append(0.0 if status else validated[0]['accuracy'])
  best = int(np.argmax(measured))
  return {'rates': rates, 'accuracy': measured, 'rate': rates[best]}


def _run_dir(workdir, cell: Cell, rate: float | None) -> pathlib.Path:
  suffix = '' if rate is None else f'-rate{rate:g}'
  suffix += '-time' if cell.stage == 'time' else f'-seed{cell.seed}'
  return workdir / f'{cell.dataset}-{cell.method}{suffix}'


def _train(config, run_dir: pathlib.Path) -> int:
  """Trains; returns 1 if the training diverged, and exits if interrupted."""
  setup.configure_jax(config)
  status = train.train(config, run_dir)
  if status > 1:
    sys.exit(status)
  return status


def _count_classes(config) -> dict[str, int]:
  phases = (
    setup.train_phase(config),
    setup.val_phase(config),
    setup.eval_phase(config),
  )
  return {p.split: len(setup.load_split(config, p).size) for p in phases}


def _seconds_per_iteration(run_dir: pathlib.Path, config) -> float:
  """Returns the median over the calls of the last epoch.

  It excludes compilation, which is part of the first call.
  """
  start = (config.train.num_epochs - 1) * config.train.steps_per_epoch
  seconds, last = [], 0
  for record in read_records(run_dir):
    if record['split'] == 'train':
      if last >= start:
        seconds.append(record['seconds'] / (record['step'] - last))
      last = record['step']
  return statistics.median(seconds)


def temporary_megabytes(config) -> float:
  """Returns the temporary memory of a meta-iteration on each device."""
  splits = train.may_split_queries(config)
  sharding = setup.train_sharding(config, split_queries=splits)
  tasks, make_learner = train.make_tasks(config, sharding)
  tx = setup.make_outer_optimizer(config)
  with setup.matmul_precision(config):
    programs = train.make_programs(config, make_learner, tx, tasks, sharding)
    make_state = partial(train_step.init_state, make_learner(), tx)
    state = sharding.replicate(jax.jit(make_state)(jax.random.key(0)))
    compiled = programs(0).lower(state, tasks.shared, 1, ()).compile()
  return compiled.memory_analysis().temp_size_in_bytes / 1e6


def _norms(config) -> dict[str, str]:
  """Returns the norm mode of each protocol."""
  trained = config.model.norm
  inductive = 'support' if trained == 'batch' else trained
  return {'transductive': 'batch', 'inductive': inductive}


def _evaluate_method(method: str, config, run_dir: pathlib.Path) -> dict:
  """Evaluates both protocols, before and after adaptation."""
  own, row, result = config.eval.num_steps, {}, {}
  for protocol, norm in _norms(config).items():
    steps = {0, own}
    if METHODS[method].more_steps and protocol == 'transductive':
      steps |= set(MORE_STEPS)
    config.eval.grid_norms, config.eval.norm = (norm,), norm
    config.eval.grid_steps = tuple(steps)
    config.eval.grid_queries = (config.eval.queries,)
    arrays = _evaluate(sweep.evaluate_grid, config, run_dir)
    accuracy = dict(zip(sorted(steps), arrays['accuracy'], strict=True))
    row[protocol] = _summarize(config, norm, accuracy[own])
    row[protocol]['before'] = float(accuracy[0].mean(dtype=np.float64))
    if protocol == 'transductive':
      result['steps'] = {
        k: float(x.mean(dtype=np.float64)) for k, x in accuracy.items()
      }
  return {'rows': {method: row}} | result


def _evaluate_pretrained(config, run_dir: pathlib.Path) -> dict:
  """Evaluates classifiers of the features of a pre-trained encoder."""
  rows = {}
  config.eval.baselines = True
  for protocol, norm in _norms(config).items():
    config.eval.norm = norm
    arrays = _evaluate(evaluate.evaluate, config, run_dir)
    for name in PRETRAINED:
      row = rows.setdefault(name, {})
      row[protocol] = _summarize(config, norm, arrays[f'baseline_{name}'])
  return {'rows': rows}


def _evaluate(fn, config, run_dir: pathlib.Path) -> dict[str, np.ndarray]:
  """Evaluates a run unless its result is saved; returns the metrics of tasks.

  Args:
    fn: `evaluate` or `evaluate_grid`.
    config: of the evaluation.
    run_dir: of the run.
  """
  result = fn(config, run_dir, overwrite=False)
  path = results.result_path(run_dir, result['name'])
  with np.load(path.with_suffix('.npz')) as arrays:
    return dict(arrays)


def _summarize(config, norm: str, accuracy: np.ndarray) -> dict:
  """Returns the mean, and the number of right answers in each task."""
  mean, interval = mean_interval(accuracy)
  queries = config.eval.ways * config.eval.queries
  return {
    'norm': norm,
    'accuracy': mean,
    'interval': interval,
    'queries': queries,
    'right': pack_counts(np.rint(accuracy * queries)),
  }


def expected_seconds(cell: Cell, complete: dict[Cell, dict]) -> float:
  """Returns the mean duration of cells of the same kind."""
  same_stage = {c: r for c, r in complete.items() if c.stage == cell.stage}
  same = [
    r['seconds'] for c, r in same_stage.items() if c.method == cell.method
  ]
  seconds = same or [r['seconds'] for r in same_stage.values()]
  return statistics.mean(seconds or [SECONDS[cell.stage]])


def run_study(cells: list[Cell], store: Store, workdir: pathlib.Path) -> int:
  """Runs the missing cells; returns 1 if a training diverged."""
  complete = {c: r for c in cells if (r := store.read(c))}
  missing = [cell for cell in cells if cell not in complete]
  diverged = []
  for i, cell in enumerate(missing):
    left = sum(expected_seconds(c, complete) for c in missing[i:])
    print(
      f'cell {len(complete) + 1} of {len(cells)}: {cell.name}; '
      f'about {math.ceil(left / 60)} min left',
      flush=True,
    )
    start = time.monotonic()
    result = run_cell(cell, store, workdir)
    if result is None:
      diverged.append(cell.name)
      continue
    result['seconds'] = time.monotonic() - start
    store.write(cell, result)
    complete[cell] = result
    jax.clear_caches()
  if diverged:
    print(f'diverged: {", ".join(diverged)}', file=sys.stderr)
  return 1 if diverged else 0


def print_status(cells: list[Cell], store: Store) -> None:
  """Prints whether each cell is complete."""
  for cell in cells:
    result = store.read(cell)
    print(f'{"complete" if result else "missing":10}{cell.name}')


def make_parser() -> argparse.ArgumentParser:
  """Returns the parser of the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__,
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('--results', type=pathlib.Path, default=RESULTS, help='of the cells')
  add(
    '--workdir',
    type=pathlib.Path,
    default=pathlib.Path('runs/family'),
    help='directory of the runs; default runs/family',
  )
  add('--only', nargs='+', choices=METHODS, default=list(METHODS))
  add('--dataset', nargs='+', choices=DATASETS, default=list(DATASETS))
  add('--seed', nargs='+', type=int, default=list(SEEDS), help='default 0 1 2')
  add('--stage', nargs='+', choices=STAGES, default=list(STAGES))
  add('--status', action='store_true', help='list the cells')
  add('--table', action='store_true', help='write the tables and the figure')
  add(
    '--figure',
    type=pathlib.Path,
    default=RESULTS.parent.parent / 'docs' / 'img' / 'family.png',
    help='file of the figure; default docs/img/family.png',
  )
  add('--quick', action='store_true', help='tiny settings, for tests')
  return parser


def main(argv: Sequence[str]) -> int:
  args = make_parser().parse_args(argv)
  if args.quick:
    args.workdir /= 'quick'
    args.results = args.workdir / 'results'
    args.figure = args.workdir / 'family.png'
    args.dataset, args.seed = ['glyphs'], [0]
  store = Store(args.results, args.quick)
  cells = list(make_cells(args.dataset, args.only, args.seed))
  cells = [cell for cell in cells if cell.stage in args.stage]
  if args.status:
    print_status(cells, store)
    return 0
  status = 0 if args.table else run_study(cells, store, args.workdir)
  if args.table or args.quick:
    saved = {cell: store.read(cell) for cell in cells}
    print(family_tables.write_tables(saved, args.results / 'tables.md'))
    print(family_tables.draw_figure(saved, args.figure))
  return status


if __name__ == '__main__':
  restart_with_huge_pages()
  try:
    sys.exit(main(sys.argv[1:]))
  except UserError as error:
    sys.exit(f'error: {error}')
