"""The part of the page on grids: norm modes x queries per class x inner steps."""

import json
from collections.abc import Sequence

from maml_jax.report import figures, formatting, statistics
from maml_jax.report.figure_writer import FigureWriter
from maml_jax.report.formatting import format_number
from maml_jax.report.markup import Html, element, folded, join, paragraph
from maml_jax.report.runs import EvaluationGroup, RunGroup


def grid(groups: Sequence[RunGroup], album: FigureWriter) -> Html:
  """The newest grid of each group, and others folded away."""
  found = [(group, i, m) for group in groups for i, m in enumerate(group.grids)]
  if not found:
    return Html()
  parts = [
    (
      f'{measured.name}, step {measured.facts.get("step", "?")}',
      _grid(measured, album, f'grid_{group.number}_{i}'),
    )
    for group, i, measured in found
  ]
  return join(
    [
      element('h2', 'Norm modes, query images and inner steps'),
      paragraph(
        'The same checkpoint and the same tasks in every cell. ',
        formatting.protocol_tag({'transductive': True}),
        f' {formatting.TRANSDUCTIVE}; ',
        formatting.protocol_tag({'transductive': False}),
        f' {formatting.INDUCTIVE}.',
      ),
      folded(parts, 1),
    ]
  )


class Cells:
  """The cells of a grid by row and column, averaged over seeds.

  Attributes:
    rows: (norm as JSON, queries), in order.
    steps: the columns.
    score: 'accuracy' or 'loss'.
    cells: (norm, queries, steps) -> one dict a seed.
    base: the key of the base cell, or None.
  """

  def __init__(self, measured: EvaluationGroup):
    self.cells: dict[tuple, list[dict]] = {}
    for evaluation in measured.evaluations:
      for cell in evaluation.facts['cells']:
        self.cells.setdefault(self._key(cell), []).append(cell)
    self.rows = list(dict.fromkeys(key[:2] for key in self.cells))
    self.steps = sorted({key[2] for key in self.cells})
    first = next(iter(self.cells.values()))[0]
    self.score = 'accuracy' if 'accuracy' in first else 'loss'
    base = measured.facts.get('base')
    self.base = self._key(base) if base else None

  @staticmethod
  def _key(cell: dict) -> tuple:
    return json.dumps(cell['norm']), cell['queries'], cell['num_steps']

  def value(self, key: tuple) -> tuple[float, float | None]:
    cells = self.cells[key]
    return statistics.over_seeds(
      [c[self.score] for c in cells], [c.get('interval') for c in cells]
    )

  def difference(self, key: tuple) -> str:
    """From the base cell; 'base' of that one, '' where it is not known."""
    if key == self.base:
      return 'base'
    cells = self.cells[key]
    if any(c.get('difference') is None for c in cells):
      return ''
    return formatting.format_difference(
      self.score,
      *statistics.over_seeds(
        [c['difference'] for c in cells],
        [c.get('difference_interval') for c in cells],
      ),
    )

  def kind(self, row: tuple) -> str:
    found = next(c[0] for key, c in self.cells.items() if key[:2] == row)
    return formatting.protocol(found)


def _grid(measured: EvaluationGroup, album: FigureWriter, name: str) -> Html:
  cells = Cells(measured)
  values = [
    [
      cells.value((*row, k))[0] if (*row, k) in cells.cells else float('nan')
      for k in cells.steps
    ]
    for row in cells.rows
  ]
  texts = [[_text(cells, (*row, k)) for k in cells.steps] for row in cells.rows]
  labels = [
    f'{formatting.format_norm(json.loads(norm))}, {cells.kind((norm, queries))}, '
    f'{_queries(queries)}'
    for norm, queries in cells.rows
  ]
  columns = [formatting.pluralize(k, 'step') for k in cells.steps]
  album.keep(name, figures.heat_map(columns, labels, values, texts))
  heat = figures.scaled(values)
  body = [
    _row(cells, row, shade) for row, shade in zip(cells.rows, heat, strict=True)
  ]
  head = element(
    'tr',
    element('th', 'norm, queries'),
    *(
      element('th', formatting.pluralize(k, 'step'), scope='col')
      for k in cells.steps
    ),
  )
  unit = ' in %' if cells.score == 'accuracy' else ''
  caption = (
    f'{formatting.describe_conditions(measured.facts)}. Query {cells.score}{unit} '
    f'± {formatting.describe_interval(measured)}; below, the '
    'difference from the framed cell, taken task by task, with its interval. '
    'The stronger the colour, the more. ' + _extremes(cells)
  )
  return element(
    'table',
    element('caption', caption),
    element('thead', head),
    element('tbody', *body),
    class_='heat',
  )


def _row(cells: Cells, row: tuple, shades) -> Html:
  norm, queries = row
  kind = cells.kind(row)
  head = element(
    'th',
    formatting.format_norm(json.loads(norm)),
    element('small', f'{_queries(queries)}, {kind}'),
    scope='row',
  )
  shown = []
  for steps, shade in zip(cells.steps, shades, strict=True):
    key = norm, queries, steps
    if key not in cells.cells:
      shown.append(element('td', '–'))
      continue
    value, half = cells.value(key)
    mean, around = formatting.format_digits(cells.score, value, half)
    shown.append(
      element(
        'td',
        element('b', mean),
        element('small', around) if around else '',
        element('small', cells.difference(key)),
        class_='base' if key == cells.base else None,
        style=f'--heat:{4 + 56 * shade:.0f}',
      )
    )
  return element('tr', head, *shown)


def _text(cells: Cells, key: tuple) -> str:
  if key not in cells.cells:
    return ''
  value = ''.join(formatting.format_digits(cells.score, *cells.value(key)))
  lines = value, cells.difference(key)
  return '\n'.join(filter(None, lines))


def _queries(count: int) -> str:
  return 'one query' if count == 1 else f'{count} queries'


def _extremes(cells: Cells) -> str:
  """The cells at both ends in words."""
  order = sorted(cells.cells, key=lambda key: cells.value(key)[0])
  low, high = (
    f'{format_number(cells.score, *cells.value((norm, queries, steps)))} '
    f'({formatting.format_norm(json.loads(norm))}, {cells.kind((norm, queries))}, '
    f'{_queries(queries)}, {formatting.pluralize(steps, "step")})'
    for norm, queries, steps in (order[0], order[-1])
  )
  return f'From {low} to {high}.'
