"""The figures of the page, one panel each, small enough for a phone.

Each is a `Figure` that can be saved as a PNG, in the colours of the light
scheme, or put into the page by `svg`, where it follows the reader's scheme.
"""

import io
import re
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from maml_jax.evaluation.statistics import mean_interval, running_interval
from maml_jax.experiment import metrics
from maml_jax.report import markup, statistics
from maml_jax.report.runs import Evaluation, EvaluationGroup, RunGroup
from maml_jax.report.style import INK, LINE, MUTED, PALETTE, series

SIZE = (6.0, 3.7)  # inches
MAX_POINTS = 300  # of a curve
MAX_MARKED_POINTS = 40  # so many are marked one by one


def figure_to_svg(figure: Figure, alt: str) -> markup.Html:
  """A figure as part of a page.

  Args:
    figure: in colours of `style.PALETTE`.
    alt: what it shows, for those who cannot see it.
  """
  file = io.StringIO()
  salt = {'svg.fonttype': 'none', 'svg.hashsalt': alt}
  with matplotlib.rc_context(salt):
    figure.savefig(
      file, format='svg', transparent=True, metadata={'Date': None}
    )
  _, _, text = file.getvalue().partition('<svg ')
  text = re.sub(r'<metadata>.*?</metadata>|<!--.*?-->', '', text, flags=re.S)
  text = re.sub(r'<style type="text/css">.*?</style>', '', text, flags=re.S)
  text = re.sub(r'<g id="[^"]*"', '<g', text)
  text = re.sub(r'-?\d+\.\d{2,}', lambda m: f'{float(m[0]):.2f}', text)
  for name, (light, _) in PALETTE.items():
    text = text.replace(light, f'var(--{name})')
  text = re.sub(r'\n\s*', '\n', text)
  shape = re.search(r'viewBox="[^"]*"', text)[0]
  head = markup.element('title', alt)
  body = text[text.index('>') + 1 :].strip()
  return markup.Html(
    f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {shape} role="img" '
    f'aria-label="{markup.escape(alt)}">{head}{body}'
  )


def learning(groups: Sequence[RunGroup], name: str) -> Figure | None:
  """Accuracy or loss against the meta-iteration; None if no run has any.

  Training tasks: a thin line, smoothed. Validation: a line over a band, the
  95 % interval of a single seed, or from the lowest of several to the highest.
  """
  figure, axes = _panel(f'Query {name}', 'meta-iteration')
  for group in groups:
    color, dashes = series(group.number)
    train, val = (_over_runs(group, split, name) for split in ('train', 'val'))
    if train:
      step, mean, _, _ = train
      axes.plot(
        step,
        mean,
        linestyle=dashes,
        color=color,
        alpha=0.55,
        linewidth=0.9,
        label=f'{group.name}, training',
      )
    if val:
      _band(axes, val[0], *val[2:], color)
      marker = 'o' if len(val[0]) < MAX_MARKED_POINTS else None
      axes.plot(
        *val[:2],
        linestyle=dashes,
        color=color,
        marker=marker,
        markersize=3.5,
        linewidth=1.8,
        label=f'{group.name}, validation',
      )
      best = (np.argmax if name == 'accuracy' else np.argmin)(val[1])
      axes.plot(val[0][best], val[1][best], '*', color=color, markersize=11)
  axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:,.0f}'))
  if name == 'accuracy':
    _percent(axes.yaxis)
  return _finish(figure, axes)


def histogram(measured: Sequence[EvaluationGroup]) -> Figure | None:
  """How many tasks have which accuracy (or loss), with the line of chance."""
  score = measured[0].score
  shown = [m for m in measured if m.array(score) is not None]
  edges = [_edges(m) for m in shown]
  alike = all(np.array_equal(e, edges[0]) for e in edges)
  figure, axes = _panel(
    f'{score.capitalize()} of single tasks',
    f'query {score} of a task',
    'share of tasks' if alike else f'share of tasks per unit of {score}',
  )
  for m, bins in zip(shown, edges, strict=True):
    color, dashes = series(m.number)
    values = np.clip(m.array(score), bins[0], bins[-1])
    share = np.array([np.histogram(row, bins)[0] / len(row) for row in values])
    share = share if alike else share / np.diff(bins)[None]
    axes.stairs(
      share.mean(0),
      bins,
      color=color,
      linestyle=dashes,
      linewidth=1.6,
      label=m.name,
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
    elif len(shown) == 1:
      axes.stairs(share[0], bins, fill=True, color=color, alpha=0.25)
  if score == 'accuracy':
    _chance(axes, [m.facts for m in shown], vertical=True)
    _percent(axes.xaxis)
    axes.set_xlim(min(e[0] for e in edges), max(e[-1] for e in edges))
  if alike:
    _percent(axes.yaxis)
  axes.set_ylim(bottom=0)
  return _finish(figure, axes)


def running(measured: Sequence[EvaluationGroup], marks=(600,)) -> Figure | None:
  """Mean of the first n tasks with its 95 % interval, against n."""
  score = measured[0].score
  figure, axes = _panel(
    'Mean of the first n tasks', 'n, number of tasks', f'mean {score}'
  )
  limits = []
  for m in measured:
    if (found := m.array(score)) is None or found.shape[1] < 20:
      continue
    color, dashes = series(m.number)
    mean, half = running_interval(found.mean(0))
    n = np.unique(np.geomspace(10, len(mean), MAX_POINTS).astype(int))
    mean, half = mean[n - 1], half[n - 1]
    _band(axes, n, mean - half, mean + half, color)
    axes.plot(
      n, mean, color=color, linestyle=dashes, linewidth=1.6, label=m.name
    )
    axes.axhline(mean[-1], color=color, linewidth=0.7, linestyle=':')
    late = n >= 30
    limits += [(mean - half)[late].min(), (mean + half)[late].max()]
  if not limits:
    return None
  axes.set_xscale('log')
  axes.set_ylim(min(limits), max(limits))
  axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:,.0f}'))
  for n in marks:
    if axes.get_xlim()[0] < n < axes.get_xlim()[1]:
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
  if score == 'accuracy':
    _percent(axes.yaxis, None)
  return _finish(figure, axes)


def adaptation(measured: Sequence[EvaluationGroup], name: str) -> Figure | None:
  """Accuracy or loss after each inner step, on support and query set."""
  figure, axes = _panel(f'{name.capitalize()} while adapting', 'inner steps')
  for m in measured:
    color, _ = series(m.number)
    found = [e.facts.get('curve') for e in m.evaluations]
    found = [
      c for c in found if c and name in c['query'] and name in c['support']
    ]
    steps = {len(c['query'][name]) for c in found}
    if len(steps) != 1:
      continue
    n = np.arange(*steps)
    for part, style in ('query', '-'), ('support', (0, (4, 1.5))):
      values = np.array([c[part][name] for c in found])
      low, high = values.min(0), values.max(0)
      if part == 'query' and len(values) == 1:
        low, high = _curve_interval(m.evaluations[0], name)
      _band(axes, n, low, high, color)
      axes.plot(
        n,
        values.mean(0),
        color=color,
        linestyle=style,
        marker='o',
        markersize=3.5,
        linewidth=1.7,
        markerfacecolor=color if part == 'query' else 'none',
        label=f'{m.name}, {part}',
      )
  axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  if name == 'accuracy':
    _chance(axes, [m.facts for m in measured], vertical=False)
    _percent(axes.yaxis)
    axes.set_ylim(0, 1.03)
  else:
    axes.set_ylim(bottom=0)
  return _finish(figure, axes)


def differences(
  rows: Sequence[tuple[str, float, float | None]], xlabel: str
) -> Figure:
  """A dot with its interval a row, beside the line of no difference.

  Args:
    rows: a name, the difference, half the width of its interval.
    xlabel: says of what.
  """
  figure = Figure(
    figsize=(SIZE[0], 1.0 + 0.4 * len(rows)), dpi=150, layout='constrained'
  )
  axes = figure.add_subplot()
  style_axes(axes)
  color, _ = series(0)
  for i, (_, value, half) in enumerate(rows):
    half = half if half is None or np.isfinite(half) else None
    axes.errorbar(
      value,
      i,
      xerr=half,
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


def heat_map(
  columns: Sequence[str], rows: Sequence[str], values, texts
) -> Figure:
  """A heat map with its numbers.

  Args:
    columns: their names.
    rows: theirs.
    values: [rows, columns] in [0, 1], NaN where there is none.
    texts: [rows][columns], to be written into the cells.
  """
  size = (2.4 + 1.5 * len(columns), 0.7 + 0.5 * len(rows))
  figure = Figure(figsize=size, dpi=150, layout='constrained')
  axes = figure.add_subplot()
  share = scaled(values)
  axes.imshow(_tint(share), aspect='auto', interpolation='none')
  for i, j in np.ndindex(share.shape):
    if np.isfinite(share[i, j]):
      axes.text(
        j, i, texts[i][j], ha='center', va='center', fontsize=8.5, color=INK
      )
  axes.set_xticks(range(len(columns)), columns)
  axes.set_yticks(range(len(rows)), rows)
  axes.tick_params(
    length=0, top=False, labeltop=True, labelbottom=False, labelcolor=INK
  )
  axes.spines[:].set_visible(False)
  return figure


def matrix(rate, names: Sequence[str]) -> Figure:
  """How often each class was taken for which, in rates in [0, 1].

  Args:
    rate: [C, C], NaN where the two never met.
    names: C.
  """
  size = 2.0 + 0.24 * len(names)
  figure = Figure(figsize=(size, size), dpi=150, layout='constrained')
  axes = figure.add_subplot()
  off = rate[~np.eye(len(rate), dtype=bool)]
  most = np.nanmax(off) if np.isfinite(off).any() else 1
  scaled = np.where(np.eye(len(rate), dtype=bool), np.nan, rate / (most or 1))
  axes.imshow(_tint(0.9 * scaled, 'series1'), interpolation='none')
  for spine in axes.spines.values():
    spine.set_color(LINE)
  axes.set_xticks(range(len(names)), names, rotation=90)
  axes.set_yticks(range(len(names)), names)
  axes.tick_params(length=0, labelsize=9, labelcolor=INK)
  axes.set_xlabel('taken for', color=MUTED)
  axes.set_ylabel('image of', color=MUTED)
  figure.text(
    0.01, 0.01, f'strongest: {100 * most:.3g} %', color=MUTED, fontsize=9
  )
  return figure


def _panel(title: str, xlabel: str, ylabel: str = '') -> tuple:
  figure = Figure(figsize=SIZE, dpi=150, layout='constrained')
  axes = figure.add_subplot()
  style_axes(axes)
  axes.set_title(title, loc='left', fontweight='bold', fontsize=11, color=INK)
  axes.set_xlabel(xlabel, color=MUTED)
  axes.set_ylabel(ylabel, color=MUTED)
  return figure, axes


def style_axes(axes) -> None:
  """Thin grey lines, and none at the top and at the right."""
  axes.grid(color=LINE, linewidth=0.8)
  axes.set_axisbelow(True)
  axes.spines[['top', 'right']].set_visible(False)
  axes.spines[['left', 'bottom']].set_color(LINE)
  axes.tick_params(which='both', color=LINE, labelcolor=MUTED)
  axes.patch.set_visible(False)


def _finish(figure, axes) -> Figure | None:
  """Adds a legend above; None if nothing was drawn."""
  handles, labels = axes.get_legend_handles_labels()
  if not handles:
    return None
  labels = [s if len(s) < 45 else f'…{s[-43:]}' for s in labels]
  columns = 1 if max(map(len, labels)) > 30 else 2
  figure.legend(
    handles,
    labels,
    loc='outside upper left',
    frameon=False,
    ncols=columns,
    fontsize=9,
    labelcolor=INK,
  )
  return figure


def _percent(axis, decimals: int | None = 0) -> None:
  axis.set_major_formatter(PercentFormatter(1, decimals=decimals, symbol=' %'))


def _band(axes, x, low, high, color) -> None:
  axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)


def _chance(axes, facts: Sequence[dict], *, vertical: bool) -> None:
  for ways in sorted({f['ways'] for f in facts if f.get('ways', 1) > 1}):
    draw = axes.axvline if vertical else axes.axhline
    draw(
      1 / ways,
      color=MUTED,
      linewidth=1.2,
      linestyle='-.',
      label=f'chance, {100 / ways:.3g} %',
    )


def _edges(measured: EvaluationGroup) -> np.ndarray:
  if measured.score == 'accuracy':
    facts = measured.facts
    return statistics.accuracy_bins(facts['ways'] * facts['queries'])
  # The last bar holds what is beyond, too.
  values = measured.array('loss')
  return np.linspace(0, np.quantile(values, 0.98) or 1, 31)


def _over_runs(group: RunGroup, split: str, name: str):
  """Steps, mean over the seeds, and the ends of the band; None without any."""
  curves = [
    curve
    for run in group.runs
    if (curve := _curve(run.records, split, name)) is not None
  ]
  if not curves:
    return None
  if len(curves) == 1:
    return curves[0]
  step = np.unique(np.concatenate([c[0] for c in curves]))
  step = step[step <= min(c[0][-1] for c in curves)]
  step = step[step >= max(c[0][0] for c in curves)]
  if not len(step):
    return curves[0]
  mean = np.stack([np.interp(step, *c[:2]) for c in curves])
  return step, mean.mean(0), mean.min(0), mean.max(0)


def _curve(records: list[dict], split: str, name: str):
  """Steps, values, and the ends of their intervals, of a single run."""
  kept = [r for r in records if r['split'] == split and name in r]
  if not kept:
    return None
  step, value = (np.array([r[key] for r in kept]) for key in ('step', name))
  half = np.array([r.get('interval', 0) for r in kept], float)
  counts = split == 'val' and name == metrics.primary_metric(kept[0])
  half = np.where(np.isfinite(half) & counts, half, 0)
  if split == 'train':
    size = max(1, len(value) // 30)
    kernel = np.full(size, 1 / size)
    value = np.convolve(value, kernel, 'valid')
    step, half = step[size // 2 :][: len(value)], half[: len(value)]
  chosen = np.unique(np.linspace(0, len(step) - 1, MAX_POINTS).astype(int))
  step, value, half = step[chosen], value[chosen], half[chosen]
  return step, value, value - half, value + half


def _curve_interval(evaluation: Evaluation, name: str):
  """The ends of the intervals after each inner step."""
  curve = evaluation.facts['curve']['query']
  values, half = np.array(curve[name]), curve.get('interval')
  tasks = evaluation.arrays.get(f'curve_query_{name}')
  if tasks is not None:
    half = [mean_interval(column)[1] for column in tasks.T]
  elif name != evaluation.score or half is None:
    half = np.zeros(len(values))
  half = np.where(np.isfinite(half), half, 0)
  return values - half, values + half


def scaled(values) -> np.ndarray:
  """To 0..1 between the lowest and the highest."""
  values = np.asarray(values, float)
  low, high = np.nanmin(values), np.nanmax(values)
  return (values - low) / ((high - low) or 1)


def _tint(share, name: str = 'series0') -> np.ndarray:
  """RGBA of a colour that covers 8 to 70 % of what lies below it."""
  red_green_blue = matplotlib.colors.to_rgb(PALETTE[name][0])
  share = np.asarray(share, float)
  image = np.zeros((*share.shape, 4))
  image[..., :3] = red_green_blue
  image[..., 3] = np.where(np.isfinite(share), 0.06 + 0.64 * share, 0)
  return image
