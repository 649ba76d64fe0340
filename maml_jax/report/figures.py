"""Figures of evaluations and of meta-training, one panel each.

They are drawn under `style.RC` in the light colors; see `page`. Functions
return None if there is nothing to draw.
"""

from collections.abc import Sequence

import matplotlib.colors
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import (
  FuncFormatter,
  LogLocator,
  MaxNLocator,
  NullLocator,
  PercentFormatter,
)

from maml_jax.evaluation.statistics import mean_interval, running_interval
from maml_jax.experiment.metrics import primary_metric
from maml_jax.report.run_groups import EvaluationGroup, RunGroup
from maml_jax.report.style import INK, MUTED, PALETTE, line_style

__all__ = [
  'COUNT_FORMAT',
  'accuracy_bins',
  'plot_adaptation',
  'plot_confusion_matrix',
  'plot_differences',
  'plot_heat_map',
  'plot_histogram',
  'plot_learning_curves',
  'plot_running_mean',
  'scale_to_unit',
]

COUNT_FORMAT = FuncFormatter(lambda x, _: f'{x:,.0f}')
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
    values = np.clip(group.array(metric), bins[0], bins[-1])
    share = np.array([np.histogram(row, bins)[0] / len(row) for row in values])
    share = share if same_bins else share / np.diff(bins)
    style = line_style(group.number)
    axes.stairs(share.mean(0), bins, label=group.name, **style)
    if len(share) > 1 or len(groups) == 1:
      low = share.min(0) if len(share) > 1 else 0
      fill = {'color': style['color'], 'alpha': 0.25, 'fill': True}
      axes.stairs(share.max(0), bins, baseline=low, **fill)
  if metric == 'accuracy':
    _plot_chance(axes.axvline, groups)
    _show_percent(axes.xaxis)
    axes.set_xlim(min(e[0] for e in edges), max(e[-1] for e in edges))
  if same_bins:
    _show_percent(axes.yaxis)
  axes.set_ylim(bottom=0)
  return _with_legend(figure)


def plot_running_mean(groups: Sequence[EvaluationGroup]) -> Figure | None:
  """Plots the mean of the first n tasks and its 95 % interval against n.

  Args:
    groups: evaluations with the same primary metric.
  """
  metric = groups[0].metric
  title = 'Mean of the first n tasks'
  figure, axes = _axes(title, 'n, number of tasks', f'mean {metric}')
  axes.set_xscale('log')
  shown = []  # values within the limits of the y axis
  for group in groups:
    values = group.task_means()
    if len(values) < MIN_RUNNING_TASKS:
      continue
    style = line_style(group.number)
    n = np.geomspace(10, len(values), MAX_POINTS).round().astype(int)
    mean, half_width = (x[n - 1] for x in running_interval(values))
    low, high = mean - half_width, mean + half_width
    axes.fill_between(n, low, high, color=style['color'], **BAND)
    axes.plot(n, mean, label=group.name, **style)
    axes.axhline(mean[-1], color=style['color'], linewidth=0.7, linestyle=':')
    shown += [*mean, *low[n >= 30], *high[n >= 30]]
  if not shown:
    return None
  margin = 0.03 * np.ptp(shown)
  axes.set_ylim(min(shown) - margin, max(shown) + margin)
  axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
  axes.xaxis.set_minor_locator(NullLocator())
  axes.xaxis.set_major_formatter(COUNT_FORMAT)
  if axes.get_xlim()[1] > USUAL_NUM_TASKS:
    axes.axvline(USUAL_NUM_TASKS, color=MUTED, linewidth=1, linestyle='--')
    style = {'color': MUTED, 'fontsize': 9, 'ha': 'right'}
    place = USUAL_NUM_TASKS, 0.95, f'{USUAL_NUM_TASKS} '
    axes.text(*place, transform=axes.get_xaxis_transform(), **style)
  if metric == 'accuracy':
    _show_percent(axes.yaxis, None)
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
    _plot_chance(axes.axhline, groups)
    _show_percent(axes.yaxis)
  axes.set_ylim(0, 1.03 if name == 'accuracy' else None)
  return _with_legend(figure)


def plot_differences(rows: Sequence[tuple], metric: str) -> Figure:
  """Plots the rows of `tables.compare_baselines`, and a line at zero."""
  scale, unit = (
    (100, ', percentage points') if metric == 'accuracy' else (1, '')
  )
  label = f'{metric} minus that of MAML{unit}'
  figure, axes = _axes('', label, size=(6, 1 + 0.4 * len(rows)))
  values = scale * np.array([row[3] for row in rows], float).T
  style = {'fmt': 'o', 'color': line_style(0)['color'], 'capsize': 3}
  names = [row[0] for row in rows]
  axes.errorbar(values[0], names, xerr=_finite(values[1]), **style)
  axes.axvline(0, color=INK, linewidth=1)
  axes.tick_params(axis='y', labelcolor=INK)
  axes.set_ylim(len(rows) - 0.5, -0.5)
  return figure


def plot_learning_curves(
  run_groups: Sequence[RunGroup], name: str
) -> Figure | None:
  """Plots 'accuracy' or 'loss' (`name`) against the meta-iteration.

  Training tasks are a thin, smoothed line. Validation is a line with a band,
  the 95 % interval of a single seed or the range of several seeds, and a star
  at its best value.
  """
  figure, axes = _axes(f'Query {name}', 'meta-iteration')
  for group in run_groups:
    style = line_style(group.number)
    train, val = (_group_curve(group, part, name) for part in ('train', 'val'))
    if train:
      label = f'{group.name}, training'
      axes.plot(*train[:2], label=label, linewidth=0.9, alpha=0.55, **style)
    if val:
      step, value, low, high = val
      axes.fill_between(step, low, high, color=style['color'], **BAND)
      label = f'{group.name}, validation'
      marker = 'o' if len(step) < MAX_MARKED_POINTS else None
      points = {'marker': marker, 'markersize': 3.5}
      axes.plot(step, value, label=label, **points, **style)
      best = (np.argmax if name == 'accuracy' else np.argmin)(value)
      star = {'color': style['color'], 'markersize': 11}
      axes.plot(step[best], value[best], '*', **star)
  axes.xaxis.set_major_formatter(COUNT_FORMAT)
  if name == 'accuracy':
    _show_percent(axes.yaxis)
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
  rate = np.where(np.eye(len(rate), dtype=bool), np.nan, rate)
  highest = np.nanmax(rate) if np.isfinite(rate).any() else 1
  size = 2 + 0.24 * len(names), 2 + 0.24 * len(names)
  scaled = 0.9 * rate / (highest or 1)
  figure, axes = _matrix_axes(size, scaled, names, names, 'series1')
  axes.tick_params(axis='x', rotation=90)
  axes.set(xlabel='predicted class', ylabel='true class')
  axes.spines[:].set_visible(True)
  style = {'color': MUTED, 'fontsize': 9}
  figure.text(0.01, 0.01, f'maximum: {100 * highest:.3g} %', **style)
  return figure


def scale_to_unit(values) -> np.ndarray:
  """Scales values linearly to 0..1 from the minimum to the maximum."""
  low, high = np.nanmin(values), np.nanmax(values)
  return (np.asarray(values) - low) / ((high - low) or 1)


def accuracy_bins(num_queries: int, max_bins: int = 26) -> np.ndarray:
  """Returns histogram edges, with equally many possible accuracies per bin.

  The accuracy of a task with n query images is 0, 1/n, ..., or 1.
  """
  values_per_bin = -(-(num_queries + 1) // max_bins)
  num_bins = -(-(num_queries + 1) // values_per_bin)
  return (np.arange(num_bins + 1) * values_per_bin - 0.5) / num_queries


def _axes(title: str, xlabel: str, ylabel: str = '', size=None) -> tuple:
  figure = Figure(figsize=size)
  return figure, figure.add_subplot(title=title, xlabel=xlabel, ylabel=ylabel)


def _with_legend(figure: Figure) -> Figure | None:
  """Adds a legend above the axes; returns None if the axes are empty."""
  handles, labels = figure.axes[0].get_legend_handles_labels()
  if not handles:
    return None
  labels = [x if len(x) < 45 else f'…{x[-43:]}' for x in labels]
  columns = 1 if max(map(len, labels)) > 30 else 2
  figure.legend(handles, labels, loc='outside upper left', ncols=columns)
  return figure


def _show_percent(axis, decimals: int | None = 0) -> None:
  axis.set_major_formatter(PercentFormatter(1, decimals, ' %'))


def _plot_chance(draw_line, groups: Sequence[EvaluationGroup]) -> None:
  """Draws a line at chance accuracy for each number of ways above 1."""
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
  highest = np.quantile(group.array('loss'), LOSS_QUANTILE)
  return np.linspace(0, highest or 1, LOSS_BINS + 1)


def _adaptation_half_width(group: EvaluationGroup, name: str) -> np.ndarray:
  """Returns half the width of the interval after each inner step."""
  tasks = group.evaluations[0].arrays.get(f'curve_query_{name}')
  if tasks is not None:
    return _finite([mean_interval(column)[1] for column in tasks.T])
  curve = group.result['curve']['query'] if name == group.metric else {}
  return _finite(curve.get('interval') or 0)


def _group_curve(group: RunGroup, part: str, name: str) -> tuple | None:
  """Returns step, mean, lowest and highest value of the seeds, [n] each.

  For a single seed, the last two are the ends of its interval.
  """
  curves = [_run_curve(run.records, part, name) for run in group.runs]
  curves = [curve for curve in curves if curve]
  if not curves:
    return None
  steps = [curve[0] for curve in curves]
  step = np.unique(np.concatenate(steps))
  first, last = max(s[0] for s in steps), min(s[-1] for s in steps)
  step = step[(step >= first) & (step <= last)]
  if len(curves) == 1 or not len(step):
    return curves[0]
  values = np.stack([np.interp(step, *curve[:2]) for curve in curves])
  return step, values.mean(0), values.min(0), values.max(0)


def _run_curve(records: list[dict], part: str, name: str) -> tuple | None:
  kept = [r for r in records if r['split'] == part and name in r]
  if not kept:
    return None
  step, value = (np.array([r[key] for r in kept]) for key in ('step', name))
  half_width = np.zeros(len(value))
  if part == 'train':
    size = max(1, len(value) // 30)
    value = np.convolve(value, np.full(size, 1 / size), 'valid')
    step = step[size // 2 :][: len(value)]
  elif name == primary_metric(kept[0]):
    half_width = _finite([r.get('interval', 0) for r in kept])
  chosen = np.unique(np.linspace(0, len(step) - 1, MAX_POINTS).astype(int))
  step, value, half_width = step[chosen], value[chosen], half_width[chosen]
  return step, value, value - half_width, value + half_width


def _matrix_axes(size, scaled, columns, rows, color: str = 'series0') -> tuple:
  """Draws cells in a color with opacity 6 to 70 % for 0..1, 0 % for NaN."""
  figure, axes = _axes('', '', size=size)
  image = np.zeros((*scaled.shape, 4))
  image[..., :3] = matplotlib.colors.to_rgb(PALETTE[color][0])
  image[..., 3] = np.where(np.isfinite(scaled), 0.06 + 0.64 * scaled, 0)
  axes.imshow(image, interpolation='none')
  axes.grid(False)
  axes.set_xticks(range(len(columns)), columns)
  axes.set_yticks(range(len(rows)), rows)
  axes.tick_params(length=0, labelsize=9, labelcolor=INK)
  return figure, axes
