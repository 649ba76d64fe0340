"""Results per task: their distribution, and the precision of their mean."""

from collections.abc import Sequence

import numpy as np

from maml_jax.evaluation.statistics import mean_interval, prefix_difference
from maml_jax.report import figures
from maml_jax.report.figure_writer import FigureWriter
from maml_jax.report.formatting import (
  format_difference,
  format_margin,
  format_number,
)
from maml_jax.report.markup import (
  Html,
  details,
  element,
  join,
  paragraph,
  table,
)
from maml_jax.report.run_groups import (
  EvaluationGroup,
  RunGroup,
  main_evaluations,
)

__all__ = ['single_tasks', 'task_panels']

USUAL_NUM_TASKS = 600  # of evaluations in the literature
PREFIXES = (100, 200, 600, 1_000, 2_000, 6_000, 10_000)
MARGIN_TEXT = (
  'The mean of the first n of N independent tasks differs from the mean of all '
  'N by sampling error. The standard error is sd · √(1/n − 1/N), where sd is '
  'the standard deviation over tasks. The 95 % sampling margin is about 1.96 '
  'standard errors.'
)


def single_tasks(
  run_groups: Sequence[RunGroup], figure_writer: FigureWriter
) -> Html:
  """Returns histograms, running means, and the precision of the means."""
  groups = main_evaluations(run_groups)
  panels, texts = [], []
  for metric in ('accuracy', 'loss'):
    shown = [g for g in groups if g.metric == metric and g.has(metric)]
    if shown:
      panels += task_panels(shown, figure_writer)
      texts.append(
        _precision_of_means([g for g in shown if g.array(metric).shape[1] > 1])
      )
  if not panels:
    return Html()
  return join(
    [
      element('h2', 'Results per task'),
      element('div', *panels, class_='panels'),
      element('h3', f'Are {USUAL_NUM_TASKS} tasks enough?'),
      paragraph(MARGIN_TEXT),
      *texts,
    ]
  )


def task_panels(
  groups: Sequence[EvaluationGroup],
  figure_writer: FigureWriter,
  prefix: str = '',
) -> list:
  """Returns the histogram and the running mean of evaluations.

  Args:
    groups: evaluations with the same primary metric.
    figure_writer: writes the figures.
    prefix: of the file names.
  """
  metric = groups[0].metric
  names = ', '.join(g.name for g in groups)
  several = any(len(g.evaluations) > 1 for g in groups)
  bars = 'Each bar covers the same number of possible accuracies.'
  if metric == 'loss':
    bars = 'The last bar includes all larger losses.'
  bars += (
    ' With several seeds, the line is their mean and the band their range.'
  ) * several
  running = (
    'The band is the 95 % confidence interval; the dotted line is the mean of '
    'all tasks.'
  )
  running += ' With several seeds, each task is averaged over them.' * several
  return [
    figure_writer.embed(
      f'{prefix}histogram_{metric}',
      figures.plot_histogram(groups),
      f'Histogram of the {metric} per task: {names}',
      bars,
    ),
    figure_writer.embed(
      f'{prefix}running_{metric}',
      figures.plot_running_mean(groups, (USUAL_NUM_TASKS,)),
      f'Mean {metric} of the first n tasks with its interval: {names}',
      running,
    ),
  ]


def _precision_of_means(groups: Sequence[EvaluationGroup]) -> Html:
  """Returns the margins of the means, and the means of the first n tasks."""
  if not groups:
    return Html()
  parts = [
    join([paragraph(f'{g.name}. {_describe_precision(g)}'), _prefix_table(g)])
    for g in groups
  ]
  if len(groups) == 1:
    return parts[0]
  columns = (
    'run',
    'standard deviation over tasks',
    f'± of {USUAL_NUM_TASKS} tasks',
    'tasks',
    '± of all tasks',
    f'first {USUAL_NUM_TASKS} − all',
    '95 % sampling margin',
  )
  rows = [_precision_row(group) for group in groups]
  return join(
    [
      table(columns, rows, numbers=range(1, len(columns))),
      details('Means of the first n tasks, per run', *parts),
    ]
  )


def _precision_row(group: EvaluationGroup) -> list[str]:
  metric, values = group.metric, _values(group)
  total, deviation = len(values), values.std(ddof=1)
  return [
    group.name,
    format_number(metric, deviation),
    format_number(metric, 1.96 * deviation / USUAL_NUM_TASKS**0.5),
    f'{total:,}',
    format_number(metric, 1.96 * deviation / total**0.5),
    *_prefix_difference(metric, values, USUAL_NUM_TASKS),
  ]


def _describe_precision(group: EvaluationGroup) -> str:
  """Returns what the deviation of tasks implies for the margin of a mean."""
  metric, values, usual = group.metric, _values(group), USUAL_NUM_TASKS
  total, deviation = len(values), values.std(ddof=1)
  half_width = 1.96 * deviation  # of a single task
  text = (
    f'The standard deviation over tasks is {format_number(metric, deviation)}, '
    f'so the 95 % margin of a mean over {usual} tasks is '
    f'{format_margin(metric, half_width / usual**0.5)}'
  )
  if total != usual:
    margin = format_margin(metric, half_width / total**0.5)
    text += f', and of these {total:,} tasks {margin}'
  needed = format_number(metric, half_width * (2 / usual) ** 0.5)
  text += (
    f'. Two learners, evaluated on different sets of {usual} tasks, differ '
    f'significantly if their means are at least {needed} apart'
  )
  goal = 0.005 if metric == 'accuracy' else 0.05 * abs(values.mean())
  if goal and deviation:
    num_tasks = f'{(half_width / goal) ** 2:,.0f}'
    text += (
      f'; a margin of {format_margin(metric, goal)} needs {num_tasks} tasks'
    )
  return f'{text}.'


def _prefix_table(group: EvaluationGroup) -> Html:
  """Returns a table of the means of the first n tasks."""
  metric, values = group.metric, _values(group)
  counts = sorted({n for n in PREFIXES if n < len(values)} | {len(values)})
  rows = [
    [
      f'{n:,}',
      format_number(metric, *mean_interval(values[:n])),
      *_prefix_difference(metric, values, n),
    ]
    for n in counts
  ]
  columns = (
    'n',
    'mean of the first n',
    'minus mean of all',
    '95 % sampling margin',
  )
  return table(columns, rows, numbers=range(len(columns)), stack=False)


def _prefix_difference(
  metric: str, values: np.ndarray, n: int
) -> tuple[str, str]:
  """Formats the mean of the first n minus that of all, and its margin."""
  if n >= len(values):
    return '–', '–'
  difference, margin = prefix_difference(values, n)
  return (
    format_difference(metric, difference, None),
    format_margin(metric, margin),
  )


def _values(group: EvaluationGroup) -> np.ndarray:
  """Returns the primary metric of each task, averaged over seeds, [T]."""
  return group.array(group.metric).mean(0)
