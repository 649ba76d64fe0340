"""Baselines: learners without the inner loop, on the same tasks."""

from collections.abc import Sequence

from maml_jax.report import figures, formatting, statistics
from maml_jax.report.figure_writer import FigureWriter
from maml_jax.report.formatting import format_difference, format_number
from maml_jax.report.markup import (
  Html,
  collapse_after,
  element,
  join,
  paragraph,
  table,
)
from maml_jax.report.run_groups import (
  EvaluationGroup,
  RunGroup,
  first_evaluations_with,
)

__all__ = ['baselines']


def baselines(
  run_groups: Sequence[RunGroup], figure_writer: FigureWriter
) -> Html:
  """Returns the baselines of each run compared with MAML."""
  found = first_evaluations_with(
    run_groups, lambda group: bool(group.result.get('baselines'))
  )
  if not found:
    return Html()
  parts = [(g.name, _comparison(g, figure_writer)) for g in found.values()]
  return join([element('h2', 'Baselines'), collapse_after(3, parts)])


def _comparison(group: EvaluationGroup, figure_writer: FigureWriter) -> Html:
  """Returns a table and a figure; MAML is the first row."""
  metric = group.metric
  scale, unit = 1, ''
  if metric == 'accuracy':
    scale, unit = 100, ', percentage points'
  value = format_number(metric, *formatting.mean_with_interval(group))
  rows = [['MAML', 'adapted by the inner loop', value, '–']]
  plotted = []
  for name, seeds in _by_name(group).items():
    title = name.replace('_', ' ')
    description = seeds[0].get('about', '')
    value = _combine(seeds, metric, 'interval')
    difference = _combine(seeds, 'difference', 'difference_interval')
    plotted.append((title, *(x and scale * x for x in difference)))
    value = format_number(metric, *value)
    difference = format_difference(metric, *difference)
    rows.append([title, description, value, difference])
  figure = figures.plot_differences(
    plotted, f'{metric} minus that of MAML{unit}'
  )
  return join(
    [
      paragraph(
        'All learners use the same tasks: '
        f'{formatting.describe_setup(group.result)}. Differences are paired by '
        'task.'
      ),
      table(
        ('learner', 'description', metric, f'minus MAML{unit}'),
        rows,
        numbers=(2, 3),
      ),
      figure_writer.embed(
        f'baselines_{group.number}',
        figure,
        f'{metric.capitalize()} of each baseline minus that of MAML, '
        'with intervals',
        f'± is the {formatting.describe_interval(group)}.',
      ),
    ]
  )


def _combine(
  seeds: Sequence[dict], field: str, interval: str
) -> tuple[float, float | None]:
  """Combines a field and the field of its interval over seeds."""
  return statistics.combine_seeds(
    [seed[field] for seed in seeds], [seed.get(interval) for seed in seeds]
  )


def _by_name(group: EvaluationGroup) -> dict[str, list[dict]]:
  """Returns the result of each baseline, one per seed that has it."""
  seeds = [
    {b['name']: b for b in r.get('baselines') or () if group.metric in b}
    for r in group.results
  ]
  return {
    name: [found[name] for found in seeds if name in found] for name in seeds[0]
  }
