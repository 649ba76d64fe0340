"""Tests whether five findings of PyTorch-MAML's README can be reproduced.

  python -m studies.findings --workdir runs/findings
  python -m studies.findings --scale=mini --workdir runs/findings-mini

The README states, without tables or seeds: (1) transductive accuracy falls as
the query set grows; (2) 6,000 tasks give about 2 points less than the first
600; (3) inductive accuracy is about 4 points lower; (4) first order matches
second order transductively and fails inductively; (5) freezing the encoder in
the inner loop costs a lot.

Five models that differ only in these settings are trained and evaluated on the
same tasks. Completed trainings and evaluations are reused. The results are
WORKDIR/findings.json, findings.md and findings.html.

  --scale=omniglot   less than an hour on 2 CPU cores
  --scale=mini       about a day on one accelerator
"""

import argparse
import json
import pathlib
import re
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup, escape

from maml_jax import config as config_lib
from maml_jax import train
from maml_jax.evaluation import evaluate, results, sweep
from maml_jax.evaluation.statistics import (
  mean_interval,
  paired_difference,
  prefix_difference,
)
from maml_jax.experiment import setup
from maml_jax.experiment.formatting import format_percent
from maml_jax.report import page
from maml_jax.report.formatting import tag
from maml_jax.utils.errors import UserError

CONFIGS = pathlib.Path(__file__).parent.parent / 'configs'
INDUCTIVE = ('episodic', 'cumulative', 'support')
# The norm mode of the inductive trainings, that of PyTorch-MAML's finding (4).
TRAINED = 'episodic'
RUNS = {
  'second_order': {},
  'first_order': {'outer.gradient': 'first_order'},
  'second_order_inductive': {'model.norm': TRAINED},
  'first_order_inductive': {
    'model.norm': TRAINED,
    'outer.gradient': 'first_order',
  },
  'frozen_encoder': {'inner.frozen': 'encoder'},
}


class Scale(NamedTuple):
  """The data set and size of the study.

  Attributes:
    preset: name of a preset.
    fields: config fields that all runs override.
    num_tasks: number of tasks of most evaluations.
    many_tasks: number of tasks of the evaluation for finding (2).
  """

  preset: str
  fields: dict
  num_tasks: int = 600
  many_tasks: int = 6000


SCALES = {
  'omniglot': Scale(
    'omniglot_5w1s',
    {
      'inner.num_steps': 5,
      'inner.encoder_lr': 0.1,
      'inner.classifier_lr': 0.1,
      'train.meta_batch_size': 8,
      'train.num_epochs': 8,
      'val.num_tasks': 100,
      'eval.num_steps': 5,
      'eval.queries': 15,
    },
  ),
  'mini': Scale(
    'mini_5w1s', {'eval.num_steps': 10, 'eval.queries': 15}, num_tasks=6000
  ),
}
FEW_TASKS = 600  # as in the MAML paper
# Percentage points stated in findings (2) and (3).
TASKS_POINTS, INDUCTIVE_POINTS = 2, 4


class Finding(NamedTuple):
  """One finding of PyTorch-MAML and its verdict.

  Attributes:
    claim: the statement of PyTorch-MAML.
    measured: the measured values as text.
    verdict: 'holds', 'does not hold' or 'inconclusive', and the reason.
    numbers: the measured values by name.
  """

  claim: str
  measured: str
  verdict: str
  numbers: dict


def read_config(args, overrides, name: str, seed: int, **fields):
  """Returns the config of a run or of one of its evaluations.

  Args:
    args: the parsed flags.
    overrides: command-line overrides of config fields.
    name: a key of `RUNS`.
    seed: of the run.
    **fields: further fields to set.
  """
  scale = SCALES[args.scale]
  fields = scale.fields | RUNS[name] | {'seed': seed} | fields
  fixed = [f'--config.{field}={value}' for field, value in fields.items()]
  config = config_lib.load(str(CONFIGS / f'{scale.preset}.py'), fixed)
  return config_lib.override(config, overrides)


class Measurements(NamedTuple):
  """The accuracies measured for one seed; arrays are [T], one value per task.

  Attributes:
    runs: name of the run -> accuracies in its own norm mode.
    cells: (norm, queries) -> accuracies of the run `second_order`.
    many: accuracies of the run `second_order` on many tasks.
    seconds: duration of the trainings and evaluations, except reused ones.
  """

  runs: dict[str, np.ndarray]
  cells: dict[tuple[str, int], np.ndarray]
  many: np.ndarray
  seconds: float


def measure(args, overrides, seed: int) -> Measurements:
  """Trains and evaluates all runs of a seed, reusing completed ones."""
  start, runs, scale = time.monotonic(), {}, SCALES[args.scale]
  root = pathlib.Path(args.workdir)
  num_tasks = {'eval.num_tasks': args.num_tasks or scale.num_tasks}
  for name in RUNS:
    workdir = root / f'{name}-seed{seed}'
    print(f'{name}, seed {seed}: {workdir}', flush=True)
    config = read_config(args, overrides, name, seed)
    setup.configure_jax(config)
    if status := train.train(config, workdir):
      sys.exit(status)
    config = read_config(args, overrides, name, seed, **num_tasks)
    _, runs[name] = _evaluate(evaluate.evaluate, config, workdir)
  workdir = root / f'second_order-seed{seed}'
  fields = num_tasks | {'eval.grid_steps': f'0,1,5,{config.eval.num_steps}'}
  config = read_config(args, overrides, 'second_order', seed, **fields)
  result, rows = _evaluate(sweep.evaluate_grid, config, workdir)
  cells = {
    (cell['norm'], cell['queries']): row
    for cell, row in zip(result['cells'], rows, strict=True)
    if cell['num_steps'] == config.eval.num_steps
  }
  fields = {'eval.num_tasks': args.many_tasks or scale.many_tasks}
  config = read_config(args, overrides, 'second_order', seed, **fields)
  _, many = _evaluate(evaluate.evaluate, config, workdir)
  return Measurements(runs, cells, many, time.monotonic() - start)


def _evaluate(fn, config, workdir: pathlib.Path) -> tuple[dict, np.ndarray]:
  """Evaluates a run unless its result is saved.

  Args:
    fn: `evaluate` or `evaluate_grid`.
    config: of the evaluation.
    workdir: of the run.

  Returns:
    The result, and the accuracies of all tasks, [T] or [cells, T].
  """
  result = fn(config, workdir, overwrite=False)
  path = results.result_path(workdir, result['name'])
  with np.load(path.with_suffix('.npz')) as arrays:
    return result, arrays['accuracy'].astype(np.float64)


def findings(measured: list[Measurements]) -> list[Finding]:
  """Returns the verdicts on the five findings, from one or several seeds."""
  return [
    *_query_set_size(measured),
    _number_of_tasks(measured),
    *_inductive(measured),
    *_first_order(measured),
    _frozen_encoder(measured),
  ]


def compare(pairs) -> dict:
  """Compares the accuracies of two learners.

  Args:
    pairs: for each seed, the accuracies [T] of both, on the same tasks.

  Returns:
    The means 'first' and 'second', and 'difference', second minus first, with
    its 95 % 'interval': paired over tasks for one seed, and over the
    differences of the seeds for several.
  """
  first, second = (
    [np.asarray(pair[i], np.float64) for pair in pairs] for i in (0, 1)
  )
  if len(pairs) == 1:
    difference, interval = paired_difference(second[0], first[0])
  else:
    difference, interval = paired_difference(
      [x.mean() for x in second], [x.mean() for x in first]
    )
  return {
    'first': float(np.mean([x.mean() for x in first])),
    'second': float(np.mean([x.mean() for x in second])),
    'difference': difference,
    'interval': interval,
    'seeds': len(pairs),
  }


def judge_lower(numbers: dict, points: float | None = None) -> str:
  """Returns the verdict on the claim that the second learner is lower.

  Args:
    numbers: from `compare`.
    points: the claimed difference in percentage points, if any.
  """
  difference, interval = numbers['difference'], numbers['interval']
  if difference + interval < 0:
    verdict = 'holds: the interval is below 0'
    if points is not None and abs(difference + points / 100) > interval:
      comparison = 'more' if difference < -points / 100 else 'less'
      verdict += f'; the difference is {comparison} than {points:g} points'
    return verdict
  if difference - interval > 0:
    return 'does not hold: it is higher'
  return 'inconclusive: the interval contains 0'


def judge_equal(numbers: dict, margin: float = 0.01) -> str:
  """Returns the verdict on the claim that both learners are equally accurate.

  Args:
    numbers: from `compare`.
    margin: the largest difference that counts as equal.
  """
  difference, interval = numbers['difference'], numbers['interval']
  if abs(difference) + interval < margin:
    return f'holds: within {format_percent(margin)}'
  if abs(difference) > interval:
    comparison = 'lower' if difference < 0 else 'higher'
    return f'does not hold: it is {comparison}'
  return f'inconclusive: the interval contains 0 and {format_percent(margin)}'


def _describe(first: str, second: str, numbers: dict) -> str:
  return (
    f'{first} {format_percent(numbers["first"])}, {second} '
    f'{format_percent(numbers["second"])}: '
    f'{format_points(numbers["difference"], numbers["interval"])}'
  )


def format_points(difference: float, interval: float) -> str:
  """Returns, for example, '-1.23 ± 0.45 points'."""
  return f'{100 * difference:+.2f} ± {100 * interval:.2f} points'


def _query_set_size(measured):
  for queries, points in ((5, 1.5), (15, 2.5)):
    numbers = compare(
      [(m.cells['batch', 1], m.cells['batch', queries]) for m in measured]
    )
    yield Finding(
      f'(1) transductive accuracy falls by about {points} points from 1 query '
      f'image per class to {queries}',
      'transductive, '
      + _describe('1 query', f'{queries} queries per class', numbers),
      judge_lower(numbers, points),
      numbers,
    )


def _number_of_tasks(measured):
  many = [m.many for m in measured]
  n, total = min(FEW_TASKS, len(many[0])), len(many[0])
  found = [prefix_difference(values, n) for values in many]
  deviation = float(np.mean([values.std(ddof=1) for values in many]))
  margin = float(np.mean([half_width for _, half_width in found]))
  difference = float(np.mean([mean for mean, _ in found]))
  if difference + margin < TASKS_POINTS / 100:
    verdict = f'does not hold: {TASKS_POINTS} points are outside the interval'
  elif difference > margin:
    verdict = 'holds: the difference exceeds random variation'
  else:
    verdict = 'inconclusive: the difference is within random variation'
  differences = ', '.join(f'{100 * mean:+.2f}' for mean, _ in found)
  return Finding(
    f'(2) 6,000 tasks give about {TASKS_POINTS} points less than the first 600',
    f'transductive, 15 queries per class: the mean of the first {n:,} is '
    f'{differences} points above that of all {total:,}. The standard deviation '
    f'over tasks is {format_percent(deviation)}, so random variation stays '
    f'within 1.96 x {format_percent(deviation)} x sqrt(1/{n:,} - 1/{total:,}) '
    f'= ± {100 * margin:.2f} points in 95 % of cases; the 95 % interval of the '
    f'mean of {n:,} is ± {100 * mean_interval(many[0][:n])[1]:.2f} points',
    verdict,
    {'difference': difference, 'margin': margin, 'deviation': deviation},
  )


def _inductive(measured):
  for norm in INDUCTIVE:
    numbers = compare(
      [(m.cells['batch', 15], m.cells[norm, 15]) for m in measured]
    )
    yield Finding(
      f'(3) inductive accuracy is about {INDUCTIVE_POINTS} points lower: the '
      f'same network, trained transductively, with norm `{norm}`',
      '15 queries per class, '
      + _describe('transductive', f'inductive ({norm})', numbers),
      judge_lower(numbers, INDUCTIVE_POINTS),
      numbers,
    )
  numbers = compare(
    [
      (m.runs['second_order'], m.runs['second_order_inductive'])
      for m in measured
    ]
  )
  yield Finding(
    f'(3) the same, trained and tested with norm `{TRAINED}`',
    '15 queries per class, '
    + _describe('transductive', f'inductive ({TRAINED})', numbers),
    judge_lower(numbers, INDUCTIVE_POINTS),
    numbers,
  )


def _first_order(measured):
  for suffix, protocol, claim, judge in (
    ('', 'transductive', 'matches second order transductively', judge_equal),
    ('_inductive', f'inductive ({TRAINED})', 'fails inductively', judge_lower),
  ):
    names = f'second_order{suffix}', f'first_order{suffix}'
    numbers = compare([tuple(m.runs[name] for name in names) for m in measured])
    yield Finding(
      f'(4) first order {claim}',
      f'{protocol}, 15 queries per class, '
      + _describe('second order', 'first order', numbers),
      judge(numbers),
      numbers,
    )


def _frozen_encoder(measured):
  numbers = compare(
    [(m.runs['second_order'], m.runs['frozen_encoder']) for m in measured]
  )
  return Finding(
    '(5) freezing the encoder in the inner loop costs a lot',
    'transductive, 15 queries per class, '
    + _describe('adapted', 'frozen', numbers),
    judge_lower(numbers),
    numbers,
  )


def markdown_table(found: list[Finding]) -> str:
  """Returns the findings as Markdown."""
  lines = ['| claim | measured | verdict |', '|---|---|---|']
  lines += [f'| {f.claim} | {f.measured} | {f.verdict} |' for f in found]
  return '\n'.join(lines)


def write_page(args, found: list[Finding]) -> pathlib.Path:
  """Writes findings.html: the findings, and a report of all runs.

  Returns:
    The path.
  """
  kinds = {'holds': 'good', 'does not hold': 'bad'}
  rows = []
  for f in found:
    word, _, reason = f.verdict.partition(':')
    claim = re.sub('`(.*?)`', r'<code>\1</code>', escape(f.claim))
    rows.append(
      [Markup(claim), f.measured, tag(word, kinds.get(word)) + reason]
    )
  text = (
    "Statements in PyTorch-MAML's README, which has no tables or seeds, and "
    f'measurements at the scale {args.scale}. Differences are paired over '
    'tasks or, for several seeds, taken over seeds; ± is a 95 % interval.'
  )
  columns = ('claim', 'measured', 'verdict')
  root = pathlib.Path(args.workdir)
  return page.write_report(
    root / 'findings.html',
    [root / f'{run}-seed{s}' for run in RUNS for s in args.seeds],
    title=f'Findings of PyTorch-MAML, {args.scale}',
    first_section=page.TableSection('Findings', text, columns, rows),
  )


def make_parser() -> argparse.ArgumentParser:
  """Returns the parser of all flags except config fields."""
  parser = argparse.ArgumentParser(
    description=__doc__,
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('--scale', choices=SCALES, default='omniglot')
  add(
    '--workdir',
    default='runs/findings',
    help='directory of the runs; default runs/findings',
  )
  add('--seeds', nargs='+', type=int, default=[0], help='default 0')
  add('--num_tasks', type=int, help='tasks of most evaluations')
  add('--many_tasks', type=int, help='tasks of the evaluation for finding 2')
  return parser


def main(argv: Sequence[str]) -> None:
  args, overrides = make_parser().parse_known_args(argv)
  measured = [measure(args, overrides, seed) for seed in args.seeds]
  found = findings(measured)
  root = pathlib.Path(args.workdir)
  summary = {
    'scale': args.scale,
    'seeds': args.seeds,
    'num_tasks': len(measured[0].runs['second_order']),
    'many_tasks': len(measured[0].many),
    'seconds': sum(m.seconds for m in measured),
    **results.provenance(),
    'findings': [f._asdict() for f in found],
  }
  (root / 'findings.json').write_text(json.dumps(summary, indent=2))
  (root / 'findings.md').write_text(markdown_table(found) + '\n')
  print(markdown_table(found))
  print(write_page(args, found))


if __name__ == '__main__':
  try:
    main(sys.argv[1:])
  except UserError as error:
    sys.exit(f'error: {error}')
