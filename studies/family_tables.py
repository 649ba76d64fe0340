"""The tables and the figure of `studies.family`."""

import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from maml_jax.evaluation.statistics import mean_interval, paired_difference
from maml_jax.report.style import MUTED, RC, SERIES
from maml_jax.utils.files import write_text
from studies.family_cells import Cell, unpack_counts
from studies.family_methods import DATASETS, METHODS, PRETRAINED

__all__ = ['Row', 'draw_figure', 'make_rows', 'markdown', 'write_tables']

PROTOCOLS = ('transductive', 'inductive')
BASE = 'maml'
LABELS = {name: method.label for name, method in METHODS.items()} | PRETRAINED
Cells = Mapping[Cell, dict | None]


class Row(NamedTuple):
  """A row of a table.

  Attributes:
    name: a key of `LABELS`.
    cells: seed -> complete cell.
    accuracy: protocol -> seed -> accuracies [T] of the tasks.
    base: the same of MAML, for the seeds it is complete for.
    timing: the complete cell of its timing, or None.
  """

  name: str
  cells: dict[int, dict]
  accuracy: dict[str, dict[int, np.ndarray]]
  base: dict[str, dict[int, np.ndarray]]
  timing: dict | None


def make_rows(cells: Cells, dataset: str) -> list[Row]:
  """Returns the rows of a data set, highest transductive accuracy first."""
  found: dict[str, dict[int, dict]] = {}
  timings = {}
  for cell, result in cells.items():
    if result and cell.stage == 'run' and cell.dataset == dataset:
      for name in result['rows']:
        found.setdefault(name, {})[cell.seed] = result
        timings[name] = cells.get(cell._replace(seed=0, stage='time'))
  accuracy = {
    name: {
      protocol: {
        seed: _accuracies(result['rows'][name][protocol])
        for seed, result in by_seed.items()
      }
      for protocol in PROTOCOLS
    }
    for name, by_seed in found.items()
  }
  base = accuracy.get(BASE, {protocol: {} for protocol in PROTOCOLS})
  rows = [
    Row(name, found[name], accuracy[name], base, timings[name])
    for name in found
  ]
  return sorted(rows, key=lambda row: -_mean(row, 'transductive'))


def _accuracies(summary: dict) -> np.ndarray:
  return unpack_counts(summary['right']) / summary['queries']


def _mean(row: Row, protocol: str) -> float:
  return float(np.mean([x.mean() for x in row.accuracy[protocol].values()]))


def accuracy_interval(row: Row, protocol: str) -> float:
  """Returns half the width of the interval over tasks of the mean of seeds."""
  return mean_interval(np.mean([*row.accuracy[protocol].values()], 0))[1]


def difference(row: Row, protocol: str) -> tuple[float, float, float] | None:
  """Compares a row with MAML, on the seeds that both have.

  Returns:
    The mean difference, and half the widths of its 95 % intervals: over tasks,
    of the mean of the seeds, and over seeds, which is infinite for a single
    one. None without a common seed.
  """
  own, base = row.accuracy[protocol], row.base[protocol]
  seeds = sorted(own.keys() & base.keys())
  if not seeds:
    return None
  a, b = (np.array([x[seed] for seed in seeds]) for x in (own, base))
  mean, over_tasks = paired_difference(a.mean(0), b.mean(0))
  return mean, over_tasks, paired_difference(a.mean(1), b.mean(1))[1]


def markdown(cells: Cells) -> str:
  """Returns all tables, and which cells are missing, as Markdown."""
  parts = []
  for dataset in DATASETS:
    if rows := make_rows(cells, dataset):
      counts = next(iter(rows[0].cells.values()))['classes']
      counts = ', '.join(f'{n} {split}' for split, n in counts.items())
      parts.append(f'**{dataset}** (classes: {counts})')
      parts.append(_accuracy_table(rows))
      if steps := _steps_table(rows):
        parts.append(steps)
    if tuning := _tuning_table(cells, dataset):
      parts.append(tuning)
  parts.append(_describe_origin(cells))
  return '\n\n'.join(parts)


def _table(head, rows) -> str:
  lines = [head, ['---'] * len(head), *rows]
  return '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)


def _accuracy_table(rows: list[Row]) -> str:
  head = ['method', 'rate', 'K']
  for protocol in PROTOCOLS:
    head += [f'{protocol}, %', 'minus MAML']
  head += ['K=0, %', 's/it', 'MB', 'seeds']
  return _table(head, map(_format_row, rows))


def _format_row(row: Row) -> list[str]:
  first = next(iter(row.cells.values()))
  texts = [LABELS[row.name], _format_rate(first['rate']), first['num_steps']]
  for protocol in PROTOCOLS:
    interval = accuracy_interval(row, protocol)
    mean = _mean(row, protocol)
    texts += [
      f'{100 * mean:.1f} ± {100 * interval:.1f}',
      _format_difference(row, protocol),
    ]
  before = [
    cell['rows'][row.name]['transductive'].get('before')
    for cell in row.cells.values()
  ]
  texts += [
    '' if None in before else f'{100 * np.mean(before):.1f}',
    f'{row.timing["seconds_per_iteration"]:.2f}' if row.timing else '',
    f'{row.timing["megabytes"]:.0f}' if row.timing else '',
    len(row.cells),
  ]
  return texts


def _format_rate(rate: float | None) -> str:
  return '' if rate is None else f'{rate:g}'


def _format_difference(row: Row, protocol: str) -> str:
  found = difference(row, protocol)
  if row.name == BASE or found is None:
    return ''
  mean, over_tasks, over_seeds = (100 * x for x in found)
  text = f'{mean:+.1f} ± {over_tasks:.1f}'
  return text if np.isinf(over_seeds) else f'{text} / {over_seeds:.1f}'


def _steps_table(rows: list[Row]) -> str:
  """Returns the accuracy with more inner steps than in training."""
  shown = [row for row in rows if row.name in METHODS]
  shown = [row for row in shown if METHODS[row.name].more_steps]
  if not shown:
    return ''
  columns = {k for row in shown for c in row.cells.values() for k in c['steps']}
  columns = sorted(columns - {'0'}, key=int)
  lines = []
  for row in shown:
    line = [LABELS[row.name]]
    for k in columns:
      found = [c['steps'][k] for c in row.cells.values() if k in c['steps']]
      line.append(f'{100 * np.mean(found):.1f}' if found else '')
    lines.append(line)
  return _table(['method', *(f'K={k}' for k in columns)], lines)


def _tuning_table(cells: Cells, dataset: str) -> str:
  """Returns the validation accuracy of each rate; the chosen one is bold."""
  lines = []
  for cell, result in cells.items():
    if result and cell.stage == 'tune' and cell.dataset == dataset:
      line = [LABELS[cell.method]]
      for rate, mean in zip(result['rates'], result['accuracy'], strict=True):
        text = f'{rate:g}: {100 * mean:.1f}'
        line.append(f'**{text}**' if rate == result['rate'] else text)
      lines.append(line)
  if not lines:
    return ''
  width = len(lines[0]) - 1
  return _table(['tuned on validation, rate: %', *[''] * width], lines)


def _describe_origin(cells: Cells) -> str:
  """Returns commits, machines and missing cells."""
  complete = [result for result in cells.values() if result]
  missing = [cell.name for cell, result in cells.items() if not result]
  lines = [
    f'{len(complete)} of {len(cells)} cells, '
    f'{sum(r["seconds"] for r in complete) / 3600:.1f} hours'
  ]
  for name, keys in (
    ('commit', ('commit',)),
    ('machine', ('processor', 'cores')),
    ('jax', ('jax',)),
  ):
    values = {' x '.join(str(r[key]) for key in keys) for r in complete}
    lines.append(f'{name} {", ".join(sorted(values))}')
  if missing:
    lines.append(f'missing: {", ".join(missing)}')
  return '; '.join(lines) + '.'


def write_tables(cells: Cells, path: pathlib.Path) -> str:
  """Writes the tables to a file and returns them."""
  text = markdown(cells)
  path.parent.mkdir(parents=True, exist_ok=True)
  write_text(path, text + '\n')
  return text


def draw_figure(cells: Cells, path: pathlib.Path) -> pathlib.Path:
  """Draws the accuracies of all rows, a panel for each data set.

  Returns:
    The path.
  """
  tables = {dataset: make_rows(cells, dataset) for dataset in DATASETS}
  tables = {dataset: rows for dataset, rows in tables.items() if rows}
  height = 1 + 0.28 * max(map(len, tables.values()), default=1)
  with matplotlib.rc_context(RC):
    figure = Figure((5 * max(1, len(tables)), height), 110)
    panels = figure.subplots(1, max(1, len(tables)), squeeze=False)[0]
    for axes, (dataset, rows) in zip(panels, tables.items(), strict=False):
      _draw_panel(axes, rows)
      axes.set_title(f'{dataset}, 20-way 1-shot')
    if tables:
      figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc='outside lower center',
        ncols=3,
      )
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path)
  return path


def _draw_panel(axes, rows: list[Row]) -> None:
  rows = rows[::-1]  # the first one at the top
  y = np.arange(len(rows))
  styles = zip(PROTOCOLS, 'os', SERIES, (0.15, -0.15), strict=False)
  for protocol, marker, color, offset in styles:
    axes.errorbar(
      [_mean(row, protocol) for row in rows],
      y + offset,
      xerr=[accuracy_interval(row, protocol) for row in rows],
      fmt=marker,
      color=color,
      markersize=4,
      label=protocol,
    )
  before = [
    np.mean(
      [
        cell['rows'][row.name]['transductive'].get('before', np.nan)
        for cell in row.cells.values()
      ]
    )
    for row in rows
  ]
  axes.plot(before, y, 'x', color=MUTED, label='before adaptation')
  axes.set_yticks(y, [LABELS[row.name] for row in rows])
  axes.set_xlabel('test accuracy')
  axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=' %'))
