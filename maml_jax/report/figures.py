"""Figures of evaluations and of meta-training, one panel each.

They are drawn under `style.RC` in the light colors; see `page`. Functions
return None if there is nothing to draw.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from maml_jax.evaluation.statistics import (
  accuracy_bins,
  combine_curves,
  mean_interval,
  moving_average,
  running_interval,
  scale_to_unit,
)
from maml_jax.experiment.metrics import primary_metric
from maml_jax.report.run_groups import EvaluationGroup, RunGroup
from maml_jax.report.style import INK, MUTED, SERIES, line_style

__all__ = [
  'plot_adaptation',
  'plot_confusion_matrix',
  'plot_differences',
  'plot_heat_map',
  'plot_histogram',
  'plot_learning_curves',
  'plot_running_mean',
]

COUNT_FORMAT = FuncFormatter(lambda x, _: f'{x:,.0f}')
PERCENT_FORMAT = FuncFormatter(lambda x, _: f'{100 * x:.4g} %')
MAX_POINTS = 300  # of a curve
MAX_MARKED_POINTS = 40  # longer curves have no markers
MIN_RUNNING_TASKS = 20  # for a running mean
USUAL_NUM_TASKS = 600  # marked in a running mean
LOSS_BINS, LOSS_QUANTILE = 30, 0.98  # bins, and where the last one ends
BAND = {'alpha': 0.2, 'linewidth': 0}


def plot_histogram(groups: Sequence[EvaluationGroup]) -> Figure | None:
  """Plots the distribution of the primary metric over tasks, with chance level.

  With several seeds it shows their mean and range.
  """
  metric = groups[0].metric
  edges = [_bin_edges(group) for group in groups]
  same_bins = all(np.array_equal(e, edges[0]) for e in edges)
  ylabel = 'share of tasks' + f' per unit of {metric}' * (not same_bins)
  title = f'{metric.capitalize()} per task'
  figure, axes = _axes(title, f'query {metric} of a task', ylabel)
  for group, bins in zip(groups, edges, strict=True):
    values = np.clip(group.arrays[metric], bins[0], bins[-1])
    count = np.stack([np.histogram(row, bins)[0] for row in values])
    share = count / values.shape[1] / (1 if same_bins else np.diff(bins))
    style = line_style(group.number)
    axes.stairs(share.mean(0), bins, label=group.name, **style)
    if len(share) > 1 or len(groups) == 1:
      low = share.min(0) if len(share) > 1 else 0
      fill = {'color': style['color'], 'alpha': 0.25, 'fill': True}
      axes.stairs(share.max(0), bins, baseline=low, **fill)
  if metric == 'accuracy':
    _show_accuracy(axes.xaxis, axes.axvline, groups)
    axes.set_xlim(min(e[0] for e in edges), max(e[-1] for e in edges))
  if same_bins:
    axes.yaxis.set_major_formatter(PERCENT_FORMAT)
  axes.set_ylim(bottom=0)
  return _with_legend(figure)


def plot_running_mean(groups: Sequence[EvaluationGroup]) -> Figure | None:
  """Plots the mean of the first n tasks and its 95 % interval against n.

  All groups have the same primary metric.
  """
  metric = groups[0].metric
  groups = [g for g in groups if len(g.values) >= MIN_RUNNING_TASKS]
  title = 'Mean of the first n tasks'
  figure, axes = _axes(title, 'n, number of tasks', f'mean {metric}')
  for group in groups:
    total, style = len(group.values), line_style(group.number)
    n = np.geomspace(min(30, total // 2), total, MAX_POINTS).astype(int)
    mean, half_width = (x[n - 1] for x in running_interval(group.values))
    band = {'color': style['color'], **BAND}
    axes.fill_between(n, mean - half_width, mean + half_width, **band)
    axes.semilogx(n, mean, label=group.name, **style)
    axes.axhline(mean[-1], color=style['color'], linewidth=0.7, linestyle=':')
  if any(len(group.values) > USUAL_NUM_TASKS for group in groups):
    line = {'color': MUTED, 'linewidth': 1, 'linestyle': '--'}
    axes.axvline(USUAL_NUM_TASKS, label=f'{USUAL_NUM_TASKS} tasks', **line)
  axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
  axes.minorticks_off()
  axes.xaxis.set_major_formatter(COUNT_FORMAT)
  if metric == 'accuracy':
    axes.yaxis.set_major_formatter(PERCENT_FORMAT)
  return _with_legend(figure)


def plot_adaptation(
  groups: Sequence[EvaluationGroup], name: str
) -> Figure | None:
  """Plots 'accuracy' or 'loss' (`name`) after each inner step."""
  figure, axes = _axes(f'{name.capitalize()} during adaptation', 'inner steps')
  for group in groups:
    curves = [r['curve'] for r in group.results if r.get('curve')]
    curves = [c for c in curves if name in c['query'] and name in c['support']]
    if len({len(c['query'][name]) for c in curves}) != 1:
      continue
    color = line_style(group.number)['color']
    lines = ('query', '-', color), ('support', (0, (4, 1.5)), 'none')
    for part, dashes, face in lines:
      values = np.array([c[part][name] for c in curves])
      low, high = values.min(0), values.max(0)
      if part == 'query' and len(values) == 1:
        half_width = _adaptation_half_width(group, name)
        low, high = low - half_width, high + half_width
      axes.fill_between(range(len(low)), low, high, color=color, **BAND)
      style = {'color': color, 'linestyle': dashes, 'markerfacecolor': face}
      label = f'{group.name}, {part}'
      axes.plot(values.mean(0), 'o', markersize=3.5, label=label, **style)
  axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  if name == 'accuracy':
    _show_accuracy(axes.yaxis, axes.axhline, groups)
  axes.set_ylim(0, 1.03 if name == 'accuracy' else None)
  return _with_legend(figure)


def plot_differences(rows: Sequence[tuple], metric: str) -> Figure:
  """Plots the rows of `tables.compare_baselines`, and a line at zero."""
  scale, unit = 1, ''
  if metric == 'accuracy':
    scale, unit = 100, ', percentage points'
  label = f'{metric} minus that of MAML{unit}'
  figure, axes = _axes('', label, size=(6, 1 + 0.4 * len(rows)))
  names, _, _, differences = zip(*rows, strict=True)
  value, half_width = scale * np.array(differences, float).T
  style = {'fmt': 'o', 'color': SERIES[0], 'capsize': 3}
  axes.errorbar(value, names, xerr=_finite(half_width), **style)
  axes.axvline(0, color=INK, linewidth=1)
  axes.tick_params(axis='y', labelcolor=INK)
  axes.set_ylim(len(rows) - 0.5, -0.5)
  return figure


def plot_learning_curves(
  run_groups: Sequence[RunGroup], *names: str, size=None
) -> Figure | None:
  """Plots 'accuracy' and 'loss' against the meta-iteration, one panel each.

  Training tasks are a thin, smoothed line. Validation is a line with a band,
  the 95 % interval of a single seed or the range of several seeds, and a star
  at its best value.
  """
  figure = Figure(figsize=size)
  panels = figure.subplots(1, len(names), squeeze=False)[0]
  for axes, name in zip(panels, names, strict=True):
    axes.set(title=f'Query {name}', xlabel='meta-iteration')
    axes.xaxis.set_major_formatter(COUNT_FORMAT)
    if name == 'accuracy':
      axes.yaxis.set_major_formatter(PERCENT_FORMAT)
    for group in run_groups:
      _draw_curves(axes, group, name)
  return _with_legend(figure)


def plot_heat_map(
  columns: Sequence[str], rows: Sequence[str], values, texts
) -> Figure:
  """Plots values [rows, columns], NaN for none, with the text of each cell."""
  size = 2.4 + 1.5 * len(columns), 0.7 + 0.5 * len(rows)
  figure, axes = _matrix_axes(size, scale_to_unit(values), columns, rows)
  for i, j in np.argwhere(np.isfinite(values)):
    place = {'ha': 'center', 'va': 'center', 'fontsize': 8.5, 'color': INK}
    axes.text(j, i, texts[i][j], **place)
  axes.set_aspect('auto')
  axes.tick_params(top=False, labeltop=True, labelbottom=False)
  axes.spines[:].set_visible(False)
  return figure


def plot_confusion_matrix(rate, names: Sequence[str]) -> Figure:
  """Plots how often each class was predicted as each other class.

  Args:
    rate: [C, C] in [0, 1]; rows are true classes, columns predictions. NaN
      where no task contains both classes.
    names: C class names.
  """
  names = [name if len(name) < 20 else f'{name[:18]}…' for name in names]
  rate = np.where(np.eye(len(rate), dtype=bool), np.nan, rate)
  highest = np.nanmax(rate) if np.isfinite(rate).any() else 1
  size = 2 + 0.24 * len(names), 2 + 0.24 * len(names)
  scaled = 0.9 * rate / (highest or 1)
  figure, axes = _matrix_axes(size, scaled, names, names, SERIES[1])
  axes.tick_params(axis='x', rotation=90)
  axes.set(xlabel='predicted class', ylabel='true class')
  axes.spines[:].set_visible(True)
  style = {'color': MUTED, 'fontsize': 9}
  figure.text(0.01, 0.01, f'maximum: {100 * highest:.3g} %', **style)
  return figure


def _with_legend(figure: Figure) -> Figure | None:
  """Adds a legend above the axes; returns None if the axes are empty."""
  handles, labels = figure.axes[0].get_legend_handles_labels()
  if not handles:
    return None
  labels = [x if len(x) < 45 else f'…{x[-43:]}' for x in labels]
  columns = 1 if max(map(len, labels)) > 30 else 2
  figure.legend(handles, labels, loc='outside upper left', ncols=columns)
  return figure


def _axes(title: str, xlabel: str, ylabel: str = '', size=None) -> tuple:
  figure = Figure(figsize=size)
  return figure, figure.add_subplot(title=title, xlabel=xlabel, ylabel=ylabel)


def _show_accuracy(axis, draw_line, groups: Sequence[EvaluationGroup]) -> None:
  """Labels an axis in percent and draws a line at each chance accuracy."""
  axis.set_major_formatter(PERCENT_FORMAT)
  for n in sorted({group.result['ways'] for group in groups} - {1}):
    label = f'chance, {100 / n:.3g} %'
    draw_line(1 / n, color=MUTED, linewidth=1.2, linestyle='-.', label=label)


def _finite(half_width) -> np.ndarray:
  """Replaces infinite and unknown half-widths by 0."""
  return np.nan_to_num(np.asarray(half_width, float), posinf=0)


def _bin_edges(group: EvaluationGroup) -> np.ndarray:
  if group.metric == 'accuracy':
    return accuracy_bins(group.result['ways'] * group.result['queries'])
  # The last bin also counts all larger losses.
  highest = np.quantile(group.arrays['loss'], LOSS_QUANTILE)
  return np.linspace(0, highest or 1, LOSS_BINS + 1)


def _adaptation_half_width(group: EvaluationGroup, name: str) -> np.ndarray:
  """Returns half the width of the interval after each inner step."""
  tasks = group.evaluations[0].arrays.get(f'curve_query_{name}')
  if tasks is not None:
    return _finite([mean_interval(column)[1] for column in tasks.T])
  curve = group.result['curve']['query'] if name == group.metric else {}
  return _finite(curve.get('interval') or 0)


def _draw_curves(axes, group: RunGroup, name: str) -> None:
  style = line_style(group.number)
  if train := _curve(group, 'train', name):
    label = f'{group.name}, training'
    axes.plot(*train[:2], label=label, linewidth=0.9, alpha=0.55, **style)
  if val := _curve(group, 'val', name):
    step, value, low, high = val
    axes.fill_between(step, low, high, color=style['color'], **BAND)
    label = f'{group.name}, validation'
    marker = 'o' if len(step) < MAX_MARKED_POINTS else None
    points = {'marker': marker, 'markersize': 3.5}
    axes.plot(step, value, label=label, **points, **style)
    best = (np.argmax if name == 'accuracy' else np.argmin)(value)
    axes.plot(step[best], value[best], '*', color=style['color'], markersize=11)


def _curve(group: RunGroup, part: str, name: str) -> tuple | None:
  """Returns step, mean, lowest and highest value of the seeds, [n] each.

  Training is smoothed. For a single seed, the last two are the ends of the
  interval of its validation.
  """
  seeds = [
    [r for r in run.records if r['split'] == part and name in r]
    for run in group.runs
  ]
  seeds = [records for records in seeds if records]
  if not seeds:
    return None
  points = [np.array([(r['step'], r[name]) for r in seed]).T for seed in seeds]
  step, values = combine_curves(points)
  mean, low, high = values.mean(0), values.min(0), values.max(0)
  if part == 'val' and len(seeds) == 1 and name == primary_metric(seeds[0][0]):
    half_width = _finite([r.get('interval', 0) for r in seeds[0]])
    half_width = np.interp(step, points[0][0], half_width)
    low, high = (mean + s * half_width for s in (-1, 1))
  if part == 'train':  # a centered moving average
    step, mean = moving_average(step, mean, len(step) // 50)
    low = high = mean
  chosen = np.unique(np.linspace(0, len(step) - 1, MAX_POINTS).astype(int))
  return step[chosen], mean[chosen], low[chosen], high[chosen]


def _matrix_axes(size, scaled, columns, rows, color=SERIES[0]) -> tuple:
  """Draws cells in a color with opacity 6 to 70 % for 0..1, 0 % for NaN."""
  figure, axes = _axes('', '', size=size)
  opacity = np.where(np.isfinite(scaled), 0.06 + 0.64 * scaled, 0)
  style = {'cmap': ListedColormap([color]), 'interpolation': 'none'}
  axes.imshow(np.zeros_like(opacity), alpha=opacity, **style)
  axes.grid(False)
  axes.set_xticks(range(len(columns)), columns)
  axes.set_yticks(range(len(rows)), rows)
  axes.tick_params(length=0, labelsize=9, labelcolor=INK)
  return figure, axes
