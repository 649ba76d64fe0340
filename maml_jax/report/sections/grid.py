"""Grids: norm modes x query images per class x inner steps."""

import json
from collections.abc import Sequence

from maml_jax.report import formatting, statistics
from maml_jax.report.figure_writer import FigureWriter
from maml_jax.report.formatting import (
  describe_queries,
  format_norm,
  format_number,
  pluralize,
)
from maml_jax.report.heat_maps import plot_heat_map, scale_to_unit
from maml_jax.report.markup import (
  Html,
  collapse_after,
  element,
  join,
  paragraph,
)
from maml_jax.report.run_groups import EvaluationGroup, RunGroup

__all__ = ['Grid', 'grids']


class Grid:
  """The cells of a grid, averaged over seeds.

  Attributes:
    cells: (norm as JSON, queries, steps) -> the cell of each seed.
    rows: (norm as JSON, queries), in order of appearance.
    steps: numbers of inner steps, the columns, ascending.
    metric: the primary metric, 'accuracy' or 'loss'.
    base: the key of the base cell; None if unknown.
  """

  def __init__(self, group: EvaluationGroup):
    self.cells: dict[tuple, list[dict]] = {}
    for result in group.results:
      for cell in result['cells']:
        self.cells.setdefault(self._key(cell), []).append(cell)
    self.rows = list(dict.fromkeys(key[:2] for key in self.cells))
    self.steps = sorted({key[2] for key in self.cells})
    first = next(iter(self.cells.values()))[0]
    self.metric = 'accuracy' if 'accuracy' in first else 'loss'
    base = group.result.get('base')
    self.base = self._key(base) if base else None

  @staticmethod
  def _key(cell: dict) -> tuple:
    return json.dumps(cell['norm']), cell['queries'], cell['num_steps']

  def value(self, key: tuple) -> tuple[float, float | None]:
    """Returns the metric of a cell with its interval."""
    cells = self.cells[key]
    return statistics.combine_seeds(
      [c[self.metric] for c in cells], [c.get('interval') for c in cells]
    )

  def format_difference(self, key: tuple) -> str:
    """Formats the difference from the base cell.

    Returns 'base' for the base cell, and '' if the difference is not known.
    """
    if key == self.base:
      return 'base'
    cells = self.cells[key]
    if any(c.get('difference') is None for c in cells):
      return ''
    return formatting.format_difference(
      self.metric,
      *statistics.combine_seeds(
        [c['difference'] for c in cells],
        [c.get('difference_interval') for c in cells],
      ),
    )

  def protocol(self, row: tuple) -> str:
    """Returns 'transductive' or 'inductive'."""
    cell = next(c[0] for key, c in self.cells.items() if key[:2] == row)
    return formatting.protocol(cell)

  def describe_row(self, row: tuple) -> str:
    """Returns, for example, 'batch, transductive, 15 queries'."""
    norm, queries = row
    return (
      f'{format_norm(json.loads(norm))}, {self.protocol(row)}, '
      f'{describe_queries(queries)}'
    )


def grids(run_groups: Sequence[RunGroup], figure_writer: FigureWriter) -> Html:
  """Returns the grids of all runs; all but the first are collapsed."""
  parts = [
    (
      f'{group.name}, step {group.result.get("step", "?")}',
      _heat_table(group, figure_writer, f'grid_{run_group.number}_{i}'),
    )
    for run_group in run_groups
    for i, group in enumerate(run_group.grid_groups)
  ]
  if not parts:
    return Html()
  return join(
    [
      element('h2', 'Norm modes, query images and inner steps'),
      paragraph(
        'All cells use the same checkpoint and the same tasks. ',
        formatting.protocol_tag({'transductive': True}),
        f' {formatting.TRANSDUCTIVE}; ',
        formatting.protocol_tag({'transductive': False}),
        f' {formatting.INDUCTIVE}.',
      ),
      collapse_after(1, parts),
    ]
  )


def _heat_table(
  group: EvaluationGroup, figure_writer: FigureWriter, name: str
) -> Html:
  """Returns a grid as a table, and saves it as a figure."""
  grid = Grid(group)
  columns = [pluralize(k, 'step') for k in grid.steps]
  values = [
    [
      grid.value((*row, k))[0] if (*row, k) in grid.cells else float('nan')
      for k in grid.steps
    ]
    for row in grid.rows
  ]
  texts = [[_text(grid, (*row, k)) for k in grid.steps] for row in grid.rows]
  labels = [grid.describe_row(row) for row in grid.rows]
  figure_writer.save(name, plot_heat_map(columns, labels, values, texts))
  head = element(
    'tr',
    element('th', 'norm, queries'),
    *(element('th', column, scope='col') for column in columns),
  )
  body = [
    _row(grid, row, shades)
    for row, shades in zip(grid.rows, scale_to_unit(values), strict=True)
  ]
  return element(
    'table',
    element('caption', _caption(grid, group)),
    element('thead', head),
    element('tbody', *body),
    class_='heat',
  )


def _caption(grid: Grid, group: EvaluationGroup) -> str:
  unit = ' in %' if grid.metric == 'accuracy' else ''
  return (
    f'{formatting.describe_conditions(group.result)}. Query '
    f'{grid.metric}{unit}, ± {formatting.describe_interval(group)}. Below it: '
    'the difference from the framed cell, paired by task, with its interval. '
    f'A stronger color means a higher {grid.metric}. {_range(grid)}'
  )


def _row(grid: Grid, row: tuple, shades) -> Html:
  """Returns a table row.

  Args:
    grid: all cells.
    row: the key of the row.
    shades: color strengths of the cells in 0..1, [columns].
  """
  norm, queries = row
  head = element(
    'th',
    format_norm(json.loads(norm)),
    element('small', f'{describe_queries(queries)}, {grid.protocol(row)}'),
    scope='row',
  )
  shown = []
  for steps, shade in zip(grid.steps, shades, strict=True):
    key = norm, queries, steps
    if key not in grid.cells:
      shown.append(element('td', '–'))
      continue
    mean, margin = formatting.format_digits(grid.metric, *grid.value(key))
    shown.append(
      element(
        'td',
        element('b', mean),
        element('small', margin) if margin else '',
        element('small', grid.format_difference(key)),
        class_='base' if key == grid.base else None,
        style=f'--heat:{4 + 56 * shade:.0f}',
      )
    )
  return element('tr', head, *shown)


def _text(grid: Grid, key: tuple) -> str:
  """Returns the text of a cell in the figure."""
  if key not in grid.cells:
    return ''
  value = ''.join(formatting.format_digits(grid.metric, *grid.value(key)))
  return '\n'.join(filter(None, (value, grid.format_difference(key))))


def _range(grid: Grid) -> str:
  """Returns a sentence about the lowest and the highest cell."""
  order = sorted(grid.cells, key=lambda key: grid.value(key)[0])
  low, high = (
    f'{format_number(grid.metric, *grid.value(key))} '
    f'({grid.describe_row(key[:2])}, {pluralize(key[2], "step")})'
    for key in (order[0], order[-1])
  )
  return f'Lowest: {low}. Highest: {high}.'
