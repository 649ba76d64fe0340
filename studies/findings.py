"""Do the findings of PyTorch-MAML hold? Trains, measures, and says.

  python -m studies.findings --workdir runs/findings
  python -m studies.findings --scale=mini --workdir runs/findings-mini

Its README says, without tables or seeds, (1) transductive accuracy falls as the
query set grows, (2) 6,000 tasks give some 2 points less than the first 600, (3)
inductive accuracy is some 4 points lower, (4) first order matches second order
transductively and fails inductively, (5) freezing the encoder in the inner loop
costs a lot. Five trainings, alike but for what is asked, are measured on the
same tasks; what is trained or measured already is taken. WORKDIR/ then holds
findings.json, findings.md and findings.html.

  --scale=omniglot   2 CPU cores, within an hour
  --scale=mini       one accelerator, about a day
"""

import argparse
import json
import pathlib
import re
import sys
import time
from typing import NamedTuple

import numpy as np

from maml_jax import config as config_lib
from maml_jax import train
from maml_jax.evaluation import evaluate, results, sweep
from maml_jax.evaluation.statistics import (
  mean_interval,
  paired_difference,
  prefix_difference,
)
from maml_jax.experiment.formatting import format_percent
from maml_jax.report import markup, page
from maml_jax.utils.errors import UserError

CONFIGS = pathlib.Path(__file__).parent.parent / 'configs'
INDUCTIVE = ('episodic', 'cumulative', 'support')
# As in PyTorch-MAML, whose statement (4) is about this one.
TRAINED = 'episodic'
RUNS = {
  'second_order': {},
  'first_order': {'inner.first_order': True},
  'second_order_inductive': {'model.norm': TRAINED},
  'first_order_inductive': {
    'model.norm': TRAINED,
    'inner.first_order': True,
  },
  'frozen_encoder': {'inner.frozen': 'encoder'},
}


class Scale(NamedTuple):
  """On what the findings are tried.

  Attributes:
    preset: a config.
    fields: what all trainings set anew.
    num_tasks: of most evaluations.
    many_tasks: of that which asks whether the first 600 are enough.
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
FEW = 600  # tasks of the paper
TASKS_POINTS = 2  # that they are said to be above 6,000
INDUCTIVE_POINTS = 4  # that inductive accuracy is said to be lower


class Finding(NamedTuple):
  """One statement and what became of it.

  Attributes:
    claim: what PyTorch-MAML says.
    measured: what was, in words and numbers.
    verdict: 'holds', 'does not hold' or 'not decided', and why.
    numbers: the same for machines.
  """

  claim: str
  measured: str
  verdict: str
  numbers: dict


def read_config(args, overrides, name: str, seed: int, **fields):
  """The config of one run, or of one evaluation of it."""
  scale = SCALES[args.scale]
  fields = scale.fields | RUNS[name] | {'seed': seed} | fields
  words = [f'--config.{field}={value}' for field, value in fields.items()]
  config = config_lib.load(str(CONFIGS / f'{scale.preset}.py'), words)
  return config_lib.override(config, overrides)


class Measured(NamedTuple):
  """What was measured of one seed: accuracies of tasks, [T] each.

  Attributes:
    runs: by name of the run, in its own norm mode, as configured.
    cells: of the run `second_order`, by (norm, queries).
    many: of that run, on many tasks.
    seconds: that training and measuring took, of what was done now.
  """

  runs: dict[str, np.ndarray]
  cells: dict[tuple[str, int], np.ndarray]
  many: np.ndarray
  seconds: float


def measure(args, overrides, seed: int) -> Measured:
  """Trains and evaluates whatever is not yet."""
  start, runs, scale = time.monotonic(), {}, SCALES[args.scale]
  root = pathlib.Path(args.workdir)
  for name in RUNS:
    workdir = root / f'{name}-seed{seed}'
    print(f'{name}, seed {seed}: {workdir}', flush=True)
    config = read_config(args, overrides, name, seed)
    if status := train.train(config, workdir):
      sys.exit(status)
    few = {'eval.num_tasks': args.num_tasks or scale.num_tasks}
    config = read_config(args, overrides, name, seed, **few)
    runs[name] = _accuracies(evaluate.evaluate, config, workdir)
  workdir = root / f'second_order-seed{seed}'
  few |= {'eval.grid_steps': f'0,1,5,{config.eval.num_steps}'}
  config = read_config(args, overrides, 'second_order', seed, **few)
  table = _accuracies(sweep.evaluate_grid, config, workdir)
  result = sweep.evaluate_grid(config, workdir, again=False)
  cells = {
    (cell['norm'], cell['queries']): row
    for cell, row in zip(result['cells'], table, strict=True)
    if cell['num_steps'] == config.eval.num_steps
  }
  many = {'eval.num_tasks': args.many_tasks or scale.many_tasks}
  config = read_config(args, overrides, 'second_order', seed, **many)
  many = _accuracies(evaluate.evaluate, config, workdir)
  return Measured(runs, cells, many, time.monotonic() - start)


def _accuracies(fn, config, workdir: pathlib.Path) -> np.ndarray:
  """Those of `evaluate` or `grid`, measured unless they are there."""
  result = fn(config, workdir, again=False)
  path = results.result_path(workdir, result['name'])
  with np.load(path.with_suffix('.npz')) as arrays:
    return arrays['accuracy'].astype(np.float64)


def findings(measured: list[Measured]) -> list[Finding]:
  """The five statements against what was measured, of one seed or several."""
  return [
    *_query_set_size(measured),
    _number_of_tasks(measured),
    *_inductive(measured),
    *_first_order(measured),
    _frozen_encoder(measured),
  ]


def compare(pairs) -> dict:
  """How far the second of two learners lies above the first.

  Args:
    pairs: for each seed accuracies [T] of both, on the same tasks.

  Returns:
    Means of both, and the difference with its 95 % interval: over tasks, pair
    by pair, for one seed; over the differences of the seeds for several.
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


def falls(numbers: dict, points: float | None = None) -> str:
  """The verdict on 'the second is lower', by so many points if that is said."""
  difference, interval = numbers['difference'], numbers['interval']
  if difference + interval < 0:
    verdict = 'holds: the interval is below 0'
    if points is not None and abs(difference + points / 100) > interval:
      word = 'more' if difference < -points / 100 else 'less'
      verdict += f'; it is {word} than {points:g} points'
    return verdict
  if difference - interval > 0:
    return 'does not hold: it is higher'
  return 'not decided: the interval contains 0'


def matches(numbers: dict, margin: float = 0.01) -> str:
  """The verdict on 'both are alike', to a margin of one point."""
  difference, interval = numbers['difference'], numbers['interval']
  if abs(difference) + interval < margin:
    return f'holds: within {format_percent(margin)}'
  if abs(difference) > interval:
    word = 'lower' if difference < 0 else 'higher'
    return f'does not hold: it is {word}'
  return f'not decided: the interval contains 0 and {format_percent(margin)}'


def _tell(first: str, second: str, numbers: dict) -> str:
  return (
    f'{first} {format_percent(numbers["first"])}, {second} '
    f'{format_percent(numbers["second"])}: '
    f'{signed(numbers["difference"], numbers["interval"])}'
  )


def signed(difference: float, interval: float) -> str:
  """'-1.23 ± 0.45 points'"""
  return f'{100 * difference:+.2f} ± {100 * interval:.2f} points'


def _query_set_size(measured):
  for queries, points in ((5, 1.5), (15, 2.5)):
    numbers = compare(
      [(m.cells['batch', 1], m.cells['batch', queries]) for m in measured]
    )
    yield Finding(
      f'(1) transductive accuracy falls by some {points} points from 1 query '
      f'image per class to {queries}',
      'transductive, '
      + _tell('1 query', f'{queries} queries per class', numbers),
      falls(numbers, points),
      numbers,
    )


def _number_of_tasks(measured):
  many = [m.many for m in measured]
  n, total = min(FEW, len(many[0])), len(many[0])
  found = [prefix_difference(values, n) for values in many]
  deviation = float(np.mean([values.std(ddof=1) for values in many]))
  luck = float(np.mean([half for _, half in found]))
  difference = float(np.mean([mean for mean, _ in found]))
  if difference + luck < TASKS_POINTS / 100:
    verdict = f'does not hold: {TASKS_POINTS} points are outside the interval'
  elif difference > luck:
    verdict = 'holds: more than luck allows'
  else:
    verdict = 'not decided: luck allows as much'
  return Finding(
    f'(2) 6,000 tasks give some {TASKS_POINTS} points less than the first 600',
    f'transductive, 15 queries per class: the mean of the first {n:,} is '
    f'{", ".join(f"{100 * mean:+.2f}" for mean, _ in found)} points above '
    f'that of all {total:,}. Accuracies of tasks deviate by '
    f'{format_percent(deviation)}, so in 95 of 100 cases luck allows 1.96 x '
    f'{format_percent(deviation)} x sqrt(1/{n:,} - 1/{total:,}) = ± '
    f'{100 * luck:.2f} points, and the mean of {n:,} is known to ± '
    f'{100 * mean_interval(many[0][:n])[1]:.2f} points',
    verdict,
    {'difference': difference, 'luck': luck, 'deviation': deviation},
  )


def _inductive(measured):
  for norm in INDUCTIVE:
    numbers = compare(
      [(m.cells['batch', 15], m.cells[norm, 15]) for m in measured]
    )
    yield Finding(
      f'(3) inductive accuracy is some {INDUCTIVE_POINTS} points lower: the '
      f'same network, trained transductively, under `{norm}`',
      '15 queries per class, '
      + _tell('transductive', f'inductive ({norm})', numbers),
      falls(numbers, INDUCTIVE_POINTS),
      numbers,
    )
  numbers = compare(
    [
      (m.runs['second_order'], m.runs['second_order_inductive'])
      for m in measured
    ]
  )
  yield Finding(
    f'(3) the same, trained and tested under `{TRAINED}`',
    '15 queries per class, '
    + _tell('transductive', f'inductive ({TRAINED})', numbers),
    falls(numbers, INDUCTIVE_POINTS),
    numbers,
  )


def _first_order(measured):
  for suffix, word, claim, judge in (
    ('', 'transductive', 'matches second order transductively', matches),
    ('_inductive', f'inductive ({TRAINED})', 'fails inductively', falls),
  ):
    names = f'second_order{suffix}', f'first_order{suffix}'
    numbers = compare([tuple(m.runs[name] for name in names) for m in measured])
    yield Finding(
      f'(4) first order {claim}',
      f'{word}, 15 queries per class, '
      + _tell('second order', 'first order', numbers),
      judge(numbers),
      numbers,
    )


def _frozen_encoder(measured):
  numbers = compare(
    [(m.runs['second_order'], m.runs['frozen_encoder']) for m in measured]
  )
  return Finding(
    '(5) freezing the whole encoder in the inner loop loses a lot',
    'transductive, 15 queries per class, '
    + _tell('adapted', 'frozen', numbers),
    falls(numbers),
    numbers,
  )


def table(found: list[Finding]) -> str:
  """The findings in Markdown."""
  lines = ['| claim | measured | verdict |', '|---|---|---|']
  lines += [f'| {f.claim} | {f.measured} | {f.verdict} |' for f in found]
  return '\n'.join(lines)


def write_page(args, found: list[Finding]) -> pathlib.Path:
  """The findings above a report of the runs behind them."""
  kinds = {'holds': 'good', 'does not hold': 'bad'}
  rows = []
  for f in found:
    word, _, reason = f.verdict.partition(':')
    label = markup.tag(word, kinds.get(word, ''))
    claim = re.sub('`(.*?)`', r'<code>\1</code>', markup.escape(f.claim))
    verdict = markup.join([label, reason], ' ')
    rows.append([markup.Html(claim), f.measured, verdict])
  about = markup.paragraph(
    "What PyTorch-MAML's README says, without tables or seeds, beside what "
    f'was measured here, at the scale {args.scale}. Differences are taken '
    'task by task, or between seeds where there are several; ± is a 95 % '
    'interval.'
  )
  columns = ('claim', 'measured', 'verdict')
  root = pathlib.Path(args.workdir)
  workdirs = [root / f'{run}-seed{s}' for run in RUNS for s in args.seeds]
  return page.write_report(
    root / 'findings.html',
    workdirs,
    title=f'Findings of PyTorch-MAML, {args.scale}',
    extra_html=markup.join([about, markup.table(columns, rows)]),
    nav='Findings',
  )


def main(argv: list[str]) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__,
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('--scale', choices=SCALES, default='omniglot')
  add('--workdir', default='runs/findings', help='where the runs lie')
  add('--seeds', nargs='+', type=int, default=[0])
  add('--num_tasks', type=int, help='of most evaluations')
  add('--many_tasks', type=int, help='of that of statement 2')
  args, overrides = parser.parse_known_args(argv)
  measured = [measure(args, overrides, seed) for seed in args.seeds]
  found = findings(measured)
  root = pathlib.Path(args.workdir)
  facts = {
    'scale': args.scale,
    'seeds': args.seeds,
    'num_tasks': len(measured[0].runs['second_order']),
    'many_tasks': len(measured[0].many),
    'seconds': sum(m.seconds for m in measured),
    **results.provenance(),
    'findings': [f._asdict() for f in found],
  }
  (root / 'findings.json').write_text(json.dumps(facts, indent=2))
  (root / 'findings.md').write_text(table(found) + '\n')
  print(table(found))
  print(write_page(args, found))


if __name__ == '__main__':
  try:
    main(sys.argv[1:])
  except UserError as error:
    sys.exit(f'error: {error}')
