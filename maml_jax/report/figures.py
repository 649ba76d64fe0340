"""Figures of evaluations, one panel each, readable on a phone.

They use the colors of the light scheme; `svg.figure_to_svg` adapts them to the
reader's scheme.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from maml_jax.evaluation.statistics import mean_interval, running_interval
from maml_jax.report import statistics
from maml_jax.report.axes import (
  FIGURE_SIZE,
  add_legend,
  format_as_count,
  format_as_percent,
  make_axes,
  mask_infinite,
  plot_band,
  plot_chance,
  style_axes,
)
from maml_jax.report.run_groups import EvaluationGroup
from maml_jax.report.runs import Evaluation
from maml_jax.report.style import INK, MUTED, line_style

__all__ = [
  'plot_adaptation',
  'plot_differences',
  'plot_histogram',
  'plot_running_mean',
]

MAX_POINTS = 300  # of a running mean
MIN_RUNNING_TASKS = 20  # for a running mean
LOSS_BINS, LOSS_QUANTILE = 30, 0.98  # bins, and where the last one ends


def plot_histogram(groups: Sequence[EvaluationGroup]) -> Figure | None:
  """Plots the distribution of accuracy or loss over tasks, with chance level.

  With several seeds it shows their mean and range.

  Args:
    groups: evaluations with the same primary metric.

  Returns:
    The figure; None if the values of single tasks are not known.
  """
  metric = groups[0].metric
  groups = [g for g in groups if g.has(metric)]
  if not groups:
    return None
  edges = [_bin_edges(group) for group in groups]
  same_bins = all(np.array_equal(e, edges[0]) for e in edges)
  figure, axes = make_axes(
    f'{metric.capitalize()} per task',
    f'query {metric} of a task',
    'share of tasks' if same_bins else f'share of tasks per unit of {metric}',
  )
  for group, bins in zip(groups, edges, strict=True):
    values = np.clip(group.array(metric), bins[0], bins[-1])
    share = np.array([np.histogram(row, bins)[0] / len(row) for row in values])
    share = share if same_bins else share / np.diff(bins)[None]
    _plot_bars(axes, group, bins, share, fill=len(groups) == 1)
  if metric == 'accuracy':
    plot_chance(axes, {g.result['ways'] for g in groups}, vertical=True)
    format_as_percent(axes.xaxis)
    axes.set_xlim(min(e[0] for e in edges), max(e[-1] for e in edges))
  if same_bins:
    format_as_percent(axes.yaxis)
  axes.set_ylim(bottom=0)
  return add_legend(figure, axes)


def plot_running_mean(
  groups: Sequence[EvaluationGroup], marks: Sequence[int] = (600,)
) -> Figure | None:
  """Plots the mean of the first n tasks and its 95 % interval against n.

  Args:
    groups: evaluations with the same primary metric.
    marks: numbers of tasks to mark with a vertical line.

  Returns:
    The figure; None if there are too few tasks.
  """
  metric = groups[0].metric
  figure, axes = make_axes(
    'Mean of the first n tasks', 'n, number of tasks', f'mean {metric}'
  )
  limits = []
  for group in groups:
    values = group.array(metric)
    if values is None or values.shape[1] < MIN_RUNNING_TASKS:
      continue
    color, dashes = line_style(group.number)
    mean, half_width = running_interval(values.mean(0))
    n = np.unique(np.geomspace(10, len(mean), MAX_POINTS).astype(int))
    mean, half_width = mean[n - 1], half_width[n - 1]
    low, high = mean - half_width, mean + half_width
    plot_band(axes, n, low, high, color)
    axes.plot(
      n, mean, color=color, linestyle=dashes, linewidth=1.6, label=group.name
    )
    axes.axhline(mean[-1], color=color, linewidth=0.7, linestyle=':')
    limits += [low[n >= 30].min(), high[n >= 30].max()]
  if not limits:
    return None
  axes.set_xscale('log')
  axes.set_ylim(min(limits), max(limits))
  format_as_count(axes.xaxis)
  _mark_counts(axes, marks)
  if metric == 'accuracy':
    format_as_percent(axes.yaxis, None)
  return add_legend(figure, axes)


def plot_adaptation(
  groups: Sequence[EvaluationGroup], name: str
) -> Figure | None:
  """Plots a metric after each inner step, on support and query set.

  Args:
    groups: the evaluations, one color each.
    name: 'accuracy' or 'loss'.

  Returns:
    The figure; None if no evaluation has the metric.
  """
  figure, axes = make_axes(
    f'{name.capitalize()} during adaptation', 'inner steps'
  )
  for group in groups:
    curves = [result.get('curve') for result in group.results]
    curves = [
      c for c in curves if c and name in c['query'] and name in c['support']
    ]
    if len({len(c['query'][name]) for c in curves}) == 1:
      _plot_adaptation_curves(axes, group, curves, name)
  axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  if name == 'accuracy':
    plot_chance(axes, {g.result.get('ways', 1) for g in groups}, vertical=False)
    format_as_percent(axes.yaxis)
    axes.set_ylim(0, 1.03)
  else:
    axes.set_ylim(bottom=0)
  return add_legend(figure, axes)


def plot_differences(
  rows: Sequence[tuple[str, float, float | None]], xlabel: str
) -> Figure:
  """Plots differences with their intervals, one per row, and a line at zero.

  Args:
    rows: name, difference, and half the width of its interval.
    xlabel: the label of the x axis.
  """
  figure = Figure(
    figsize=(FIGURE_SIZE[0], 1.0 + 0.4 * len(rows)),
    dpi=150,
    layout='constrained',
  )
  axes = figure.add_subplot()
  style_axes(axes)
  color, _ = line_style(0)
  for i, (_, difference, half_width) in enumerate(rows):
    is_finite = half_width is not None and np.isfinite(half_width)
    axes.errorbar(
      difference,
      i,
      xerr=half_width if is_finite else None,
      color=color,
      capsize=3,
      markersize=6,
      marker='o',
      linewidth=1.6,
    )
  axes.axvline(0, color=INK, linewidth=1)
  axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
  axes.tick_params(axis='y', labelcolor=INK)
  axes.set_ylim(len(rows) - 0.5, -0.5)
  axes.set_xlabel(xlabel, color=MUTED)
  return figure


def _bin_edges(group: EvaluationGroup) -> np.ndarray:
  if group.metric == 'accuracy':
    result = group.result
    return statistics.accuracy_bins(result['ways'] * result['queries'])
  # The last bin also counts all larger losses.
  highest = np.quantile(group.array('loss'), LOSS_QUANTILE)
  return np.linspace(0, highest or 1, LOSS_BINS + 1)


def _plot_bars(axes, group: EvaluationGroup, bins, share, *, fill) -> None:
  """Plots histograms, share [seeds, bins]: their mean and range."""
  color, dashes = line_style(group.number)
  axes.stairs(
    share.mean(0),
    bins,
    color=color,
    linestyle=dashes,
    linewidth=1.6,
    label=group.name,
  )
  if len(share) > 1:
    axes.stairs(
      share.max(0),
      bins,
      baseline=share.min(0),
      fill=True,
      color=color,
      alpha=0.25,
    )
  elif fill:
    axes.stairs(share[0], bins, fill=True, color=color, alpha=0.25)


def _mark_counts(axes, marks: Sequence[int]) -> None:
  """Draws a labeled vertical line at each mark within the axes."""
  low, high = axes.get_xlim()
  for n in marks:
    if low < n < high:
      axes.axvline(n, color=MUTED, linewidth=1, linestyle='--')
      axes.annotate(
        f'{n:,} ',
        (n, 1),
        xycoords=('data', 'axes fraction'),
        ha='right',
        va='top',
        color=MUTED,
        fontsize=9,
      )


def _plot_adaptation_curves(
  axes, group: EvaluationGroup, curves: Sequence[dict], name: str
) -> None:
  """Plots query and support curves of one group, averaged over seeds."""
  color, _ = line_style(group.number)
  n = np.arange(len(curves[0]['query'][name]))
  for part, style in ('query', '-'), ('support', (0, (4, 1.5))):
    values = np.array([c[part][name] for c in curves])
    low, high = values.min(0), values.max(0)
    if part == 'query' and len(values) == 1:
      low, high = _adaptation_interval(group.evaluations[0], name)
    plot_band(axes, n, low, high, color)
    axes.plot(
      n,
      values.mean(0),
      color=color,
      linestyle=style,
      marker='o',
      markersize=3.5,
      linewidth=1.7,
      markerfacecolor=color if part == 'query' else 'none',
      label=f'{group.name}, {part}',
    )


def _adaptation_interval(evaluation: Evaluation, name: str):
  """Returns both ends of the interval after each inner step, [K + 1] each."""
  curve = evaluation.result['curve']['query']
  values, half_width = np.array(curve[name]), curve.get('interval')
  tasks = evaluation.arrays.get(f'curve_query_{name}')
  if tasks is not None:
    half_width = [mean_interval(column)[1] for column in tasks.T]
  elif name != evaluation.metric or half_width is None:
    half_width = np.zeros(len(values))
  half_width = mask_infinite(half_width)
  return values - half_width, values + half_width
