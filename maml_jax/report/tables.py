"""The numbers in the tables of the HTML report.

The sections in templates/sections.html call these functions.
"""

import json
from collections.abc import Iterator, Sequence

import numpy as np

from maml_jax import data
from maml_jax.evaluation.statistics import (
  mean_interval,
  paired_difference,
  prefix_difference,
)
from maml_jax.experiment import checkpoint, metrics
from maml_jax.experiment.checkpoint import Checkpoint
from maml_jax.inner_loop import flatten, split_learned
from maml_jax.report import formatting, statistics
from maml_jax.report.figures import USUAL_NUM_TASKS, scale_to_unit
from maml_jax.report.formatting import (
  describe_setup,
  format_difference,
  format_margin,
  format_norm,
  format_number,
  format_share,
  pluralize,
  protocol,
)
from maml_jax.report.run_groups import (
  EvaluationGroup,
  RunGroup,
  has_predictions,
  main_evaluations,
)
from maml_jax.report.statistics import combine_seeds
from maml_jax.report.task_plots import draw_regression
from maml_jax.report.tasks import EvaluatedTask, load_split, rebuild_tasks
from maml_jax.utils.errors import UserError

__all__ = [
  'all_grids',
  'classes_of',
  'compare_baselines',
  'compare_runs',
  'describe_curve',
  'extreme_tasks',
  'fitted_curves',
  'format_steps',
  'missing_results',
  'precisions',
  'rate_table',
  'rate_tables',
  'task_groups',
]

Row = list[object]

# Fields in which evaluations must agree to be compared task by task.
SAME_TASK_FIELDS = ('data', 'data_root', 'split', 'ways', 'shots', 'queries')
PREFIXES = (100, 200, 600, 1_000, 2_000, 6_000, 10_000)
MAX_MATRIX_CLASSES = 40  # a larger confusion matrix is not readable
MAX_ROWS = 8  # of the tables of classes
NUM_EASIEST = 2  # rows for the easiest classes
MIN_TASKS = 5  # of a class in the table
MIN_PAIR_IMAGES = 10  # of a pair of classes in the table


def compare_runs(groups: Sequence[EvaluationGroup]) -> list[Row]:
  """Returns rows that compare the runs with the first one, by task."""
  groups = [
    g
    for g in groups
    if g.has(g.metric)
    and all(
      g.result.get(f) == groups[0].result.get(f) for f in SAME_TASK_FIELDS
    )
  ]
  rows = []
  for group in groups:
    metric, reference = group.metric, groups[0].task_means()
    values = group.task_means()[: len(reference)]
    n = len(values)
    difference = paired_difference(values, reference[:n])
    rows.append(
      [
        group.name,
        formatting.protocol_tag(group.result),
        format_number(metric, *group.mean),
        format_difference(metric, *difference) if rows else '–',
        f'{n:,}',
      ]
    )
  return rows if len(rows) > 1 else []


def task_groups(run_groups: Sequence[RunGroup]) -> list[list[EvaluationGroup]]:
  """Returns the main evaluations with results per task, by primary metric."""
  groups = [g for g in main_evaluations(run_groups) if g.has(g.metric)]
  by_metric = (
    [g for g in groups if g.metric == m] for m in ('accuracy', 'loss')
  )
  return [found for found in by_metric if found]


def precisions(groups: Sequence[EvaluationGroup]) -> list[dict]:
  """Returns the margins of the means of evaluations with several tasks."""
  return [_precision(g) for g in groups if len(g.task_means()) > 1]


def _precision(group: EvaluationGroup) -> dict:
  """Returns margins of the mean, and the means of the first n tasks."""
  metric, values, usual = group.metric, group.task_means(), USUAL_NUM_TASKS
  total, deviation = len(values), values.std(ddof=1)
  half_width = 1.96 * deviation  # of a single task
  goal = 0.005 if metric == 'accuracy' else 0.05 * abs(values.mean())

  def difference(n):
    if n >= total:
      return ['–', '–']
    mean, margin = prefix_difference(values, n)
    return [format_difference(metric, mean), format_margin(metric, margin)]

  counts = sorted({n for n in PREFIXES if n < total} | {total})
  means = {n: mean_interval(values[:n]) for n in counts}
  return {
    'group': group,
    'total': total,
    'deviation': deviation,
    'margin': half_width / total**0.5,
    'usual_margin': half_width / usual**0.5,
    'needed': half_width * (2 / usual) ** 0.5,
    'goal': goal,
    'tasks_for_goal': (half_width / goal) ** 2 if goal else 0,
    'usual_difference': difference(usual),
    'rows': [
      [f'{n:,}', format_number(metric, *mean), *difference(n)]
      for n, mean in means.items()
    ],
  }


def all_grids(run_groups: Sequence[RunGroup]) -> list[dict]:
  """Returns the grids of all runs: norm modes x queries x inner steps."""
  return [
    _grid(group, f'grid_{run_group.number}_{i}')
    for run_group in run_groups
    for i, group in enumerate(run_group.grid_groups)
  ]


def _grid(group: EvaluationGroup, figure: str) -> dict:
  """Returns a grid, averaged over seeds, as rows of cells."""
  cells: dict[tuple, list[dict]] = {}
  for cell in (cell for result in group.results for cell in result['cells']):
    cells.setdefault(_cell_key(cell), []).append(cell)
  first = next(iter(cells.values()))[0]
  metric, base = metrics.primary_metric(first), group.result.get('base')
  base = _cell_key(base) if base else None
  labels = {  # of the rows, in order of appearance
    key[:2]: (
      format_norm(seeds[0]['norm']),
      protocol(seeds[0]),
      pluralize(key[1], 'query', 'queries'),
    )
    for key, seeds in cells.items()
  }
  steps = sorted({key[2] for key in cells})
  values = {key: combine_seeds(cells[key], metric) for key in cells}
  keys = [[(*row, k) for k in steps] for row in labels]
  table = [[values.get(key, [np.nan])[0] for key in row] for row in keys]
  rows = [
    [
      _cell(cells[key], metric, shade, key == base) if key in cells else {}
      for key, shade in zip(*row, strict=True)
    ]
    for row in zip(keys, scale_to_unit(table), strict=True)
  ]
  columns = [pluralize(k, 'step') for k in steps]
  names = [', '.join(label) for label in labels.values()]
  texts = [[cell.get('text', '') for cell in row] for row in rows]
  order = sorted(values, key=lambda key: values[key][0])
  low, high = (
    f'{format_number(metric, *values[key])} ({", ".join(labels[key[:2]])}, '
    f'{pluralize(key[2], "step")})'
    for key in (order[0], order[-1])
  )
  return {
    'name': f'{group.name}, step {group.result.get("step", "?")}',
    'group': group,
    'metric': metric,
    'figure': figure,
    'heat_map': (columns, names, table, texts),
    'rows': list(zip(labels.values(), rows, strict=True)),
    'low': low,
    'high': high,
  }


def _cell_key(cell: dict) -> tuple:
  return json.dumps(cell['norm']), cell['queries'], cell['num_steps']


def _cell(seeds: list[dict], metric: str, shade: float, is_base: bool) -> dict:
  """Returns the text and the color strength of one cell of a grid."""
  value = format_number(metric, *combine_seeds(seeds, metric))
  value = value.removesuffix(formatting.PERCENT)
  difference = 'base' if is_base else ''
  if not is_base and all(c.get('difference') is not None for c in seeds):
    found = combine_seeds(seeds, 'difference', 'difference_interval')
    difference = format_difference(metric, *found)
  mean, space, margin = value.partition(' ')
  return {
    'mean': mean,
    'margin': space + margin,
    'difference': difference,
    'text': '\n'.join(filter(None, (value, difference))),
    'heat': f'{4 + 56 * shade:.0f}',
    'is_base': is_base,
  }


def compare_baselines(group: EvaluationGroup) -> tuple[list[Row], list[Row]]:
  """Compares learners without the inner loop with MAML, on the same tasks.

  Returns:
    The rows of the table, MAML first, and of `figures.plot_differences`.
  """
  metric = group.metric
  by_seed = [
    {b['name']: b for b in r.get('baselines') or () if metric in b}
    for r in group.results
  ]
  value = format_number(metric, *group.mean)
  rows: list[Row] = [['MAML', 'adapted by the inner loop', value, '–']]
  differences: list[Row] = []
  for name in by_seed[0]:
    seeds = [found[name] for found in by_seed if name in found]
    title, about = name.replace('_', ' '), seeds[0].get('about', '')
    difference = combine_seeds(seeds, 'difference', 'difference_interval')
    value = format_number(metric, *combine_seeds(seeds, metric))
    rows.append([title, about, value, format_difference(metric, *difference)])
    scale = 100 if metric == 'accuracy' else 1
    differences.append([title, *(x and scale * x for x in difference)])
  return rows, differences


def describe_curve(result: dict) -> str:
  """Returns the setup of an adaptation curve, which may have fewer tasks."""
  num_tasks = result['curve'].get('num_tasks', result['num_tasks'])
  return describe_setup(result | {'num_tasks': num_tasks})


def rate_tables(run_groups: Sequence[RunGroup]) -> Iterator[tuple]:
  """Yields the learned rates of the first run of each group.

  Yields:
    The group, the step of the checkpoint, and the arguments of
    `figures.plot_heat_map`, or the reason why there are none.
  """
  for group in run_groups:
    config = group.runs[0].config
    is_alfa = config.get('inner.rule') == 'alfa'
    if not is_alfa and config.get('inner.learn_lr', 'none') == 'none':
      continue
    saved, error = _load_checkpoint(group)
    if saved is None:
      yield group, None, error
      continue
    per_step = is_alfa or 'lr' in config['inner.per_step']
    rows, values = rate_table(saved.params, per_step=per_step)
    columns = [f'step {k + 1}' for k in range(values.shape[1])]
    texts = [[f'{x:.3g}' for x in row] for row in values]
    columns = columns if per_step else ['every step']
    yield group, saved.step, (columns, rows, values, texts)


def rate_table(params, *, per_step: bool) -> tuple[list[str], np.ndarray]:
  """Returns the learned rates of meta-parameters as a table.

  Args:
    params: with learned rates, or those of ALFA.
    per_step: whether the rates have a leading axis of inner steps.

  Returns:
    The names of the rows, such as 'encoder/conv1/conv/kernel', and the means
    of the rates [rows, steps], with one column unless `per_step`.
  """
  learned = split_learned(params)[1]
  rates, _ = flatten(learned.get('lr') or learned['alfa']['lr'])
  shapes = [(len(x) if per_step else 1, -1) for x in rates.values()]
  means = [
    np.reshape(x, shape).mean(1)
    for x, shape in zip(rates.values(), shapes, strict=True)
  ]
  return list(rates), np.stack(means)


def fitted_curves(run_groups: Sequence[RunGroup]) -> Iterator[tuple]:
  """Yields each regression with a figure, or the reason why there is none."""
  for group in run_groups:
    if group.runs[0].config.get('data.name') in data.REGRESSIONS:
      saved, error = _load_checkpoint(group)
      if saved is None:
        yield group, error
      else:
        yield group, draw_regression(saved.config, saved, 3, 1, width=6)


def _load_checkpoint(group: RunGroup) -> tuple[Checkpoint | None, str]:
  """Returns the checkpoint of the first run, or None and the reason."""
  try:
    return checkpoint.load(group.path), ''
  except UserError as error:
    return None, str(error)


def classes_of(group: EvaluationGroup) -> dict:
  """Returns the hardest classes and the confusions of an evaluation."""
  classes, predicted = group.array('classes'), group.array('predicted')
  if np.any(classes != classes[:1]):  # the seeds have different tasks
    classes, predicted = classes[:1], predicted[:1]
  classes = classes.reshape(-1, classes.shape[-1])
  predicted = predicted.reshape(len(classes), -1)
  dataset, names, error = load_split(group.evaluations[0])
  names = names or [f'class {c}' for c in range(classes.max() + 1)]
  accuracy = statistics.class_accuracy(predicted, classes)
  confused, possible = statistics.confusion_counts(
    predicted, classes, len(names)
  )
  known = (c for c in accuracy if accuracy[c][2] >= MIN_TASKS)
  ranked = sorted(known, key=lambda c: accuracy[c][0])
  hardest = [
    {
      'name': names[c],
      'image': None if dataset is None else dataset.images[dataset.index[c, 0]],
      'accuracy': format_number('accuracy', *accuracy[c][:2]),
      'tasks': accuracy[c][2],
    }
    for c in ranked[:MAX_ROWS] + ranked[MAX_ROWS:][-NUM_EASIEST:]
  ]
  return {
    'error': error,
    'num_classes': len(ranked),
    'hardest': hardest,
    'confusions': _confusions(confused, possible, names),
    'rate': _confusion_rates(confused, possible, names),
  }


def _confusions(confused, possible, names: Sequence[str]) -> list[Row]:
  """Returns rows of the pairs of classes with the most wrong predictions."""
  is_shown = (possible >= MIN_PAIR_IMAGES) & ~np.eye(len(confused), dtype=bool)
  counts = np.where(is_shown, confused, 0)
  order = np.argsort(-counts, axis=None, kind='stable')[:MAX_ROWS]
  return [
    [
      f'{names[a]} → {names[b]}',
      f'{confused[a, b]} of {possible[a, b]}',
      format_share(confused[a, b] / possible[a, b]),
    ]
    for a, b in np.stack(np.unravel_index(order, counts.shape), 1).tolist()
    if counts[a, b]
  ]


def _confusion_rates(confused, possible, names: Sequence[str]) -> tuple | None:
  """Returns the arguments of `figures.plot_confusion_matrix`.

  They are limited to the classes that occur; None if there are too many.
  """
  present = np.flatnonzero(possible.any(1))
  if len(present) > MAX_MATRIX_CLASSES:
    return None
  cells = np.ix_(present, present)
  with np.errstate(invalid='ignore'):
    rate = confused[cells] / possible[cells]
  shown = [names[c] for c in present.tolist()]
  return rate, [name if len(name) < 20 else f'{name[:18]}…' for name in shown]


def extreme_tasks(
  group: EvaluationGroup, count: int
) -> tuple[list[tuple[str, EvaluatedTask]], str]:
  """Returns the best and the worst tasks of the first seed.

  Args:
    group: an evaluation with predictions.
    count: number of best and of worst tasks.

  Returns:
    (label, task), such as ('best 1', ...), and the reason if there are none.
  """
  evaluation = group.evaluations[0]
  accuracy, loss = (evaluation.arrays[n] for n in ('accuracy', 'loss'))
  best, worst = statistics.best_and_worst_tasks(accuracy, loss, count)
  dataset, class_names, error = load_split(evaluation)
  if dataset is None:
    return [], error
  try:
    found = rebuild_tasks(evaluation, dataset, class_names, best + worst)
  except UserError as e:
    return [], f'Tasks cannot be shown: {e}.'
  labels = [f'best {i + 1}' for i in range(len(best))]
  labels += [f'worst {i + 1}' for i in range(len(worst))]
  return list(zip(labels, found, strict=True)), ''


def format_steps(results: Sequence[dict]) -> str:
  """Returns the steps of the checkpoints; one if all are equal."""
  steps = [f'{r["step"]:,}' for r in results if 'step' in r]
  return ', '.join(steps if len({*steps}) > 1 else steps[:1]) or '?'


def missing_results(run_groups: Sequence[RunGroup]) -> Iterator[tuple]:
  """Yields run groups, what is missing, and the flags that create it."""
  for run_group in run_groups:
    groups = run_group.evaluation_groups
    classifies = any(g.metric == 'accuracy' for g in groups)
    if not groups:
      yield run_group, 'evaluation', ()
    if classifies and not run_group.grid_groups:
      yield run_group, 'grid', ('--eval.grid',)
    if classifies and not any(g.result.get('baselines') for g in groups):
      yield run_group, 'baselines', ('--eval.baselines',)
    if groups and not any(g.result.get('curve') for g in groups):
      yield run_group, 'adaptation curve', ('--eval.curve_tasks=100',)
    if classifies and not any(has_predictions(g) for g in groups):
      yield run_group, 'predictions per task', ()
