"""Curves: meta-training, and adaptation by inner step."""

from collections.abc import Sequence

from maml_jax.report import figures, formatting
from maml_jax.report.figure_writer import FigureWriter
from maml_jax.report.learning_curves import plot_learning_curves
from maml_jax.report.markup import Html, element, join, note, paragraph
from maml_jax.report.run_groups import (
  EvaluationGroup,
  RunGroup,
  first_evaluations_with,
)

__all__ = ['adaptation', 'learning']


def learning(
  run_groups: Sequence[RunGroup], figure_writer: FigureWriter
) -> Html:
  """Returns the learning curves."""
  missing = [g.name for g in run_groups if not any(r.records for r in g.runs)]
  shown = [group for group in run_groups if group.name not in missing]
  if not shown:
    return Html()
  several = any(len(group.runs) > 1 for group in run_groups)
  text = (
    'Thin line: training tasks, smoothed. Thick line: validation; the band is '
    'the 95 % confidence interval over tasks'
  )
  text += ', or the range of several seeds' * several
  names = ', '.join(group.name for group in shown)
  panels = [
    figure_writer.embed(
      f'learning_{name}',
      plot_learning_curves(shown, name),
      f'Query {name} of {names} during meta-training',
      f'{text}. The star marks the best validation.',
    )
    for name in ('accuracy', 'loss')
  ]
  text = f'No learning curves for {", ".join(missing)}: no metrics.jsonl.'
  return join(
    [
      element('h2', 'Learning curves'),
      element('div', *panels, class_='panels'),
      note(text) if missing else '',
    ]
  )


def adaptation(
  run_groups: Sequence[RunGroup], figure_writer: FigureWriter
) -> Html:
  """Returns accuracy and loss after each inner step."""
  found = first_evaluations_with(
    run_groups, lambda group: bool(group.result.get('curve'))
  )
  if not found:
    return Html()
  groups = list(found.values())
  panels = [
    figure_writer.embed(
      f'adaptation_{name}',
      figures.plot_adaptation(groups, name),
      f'{name.capitalize()} on support and query set after each inner step',
    )
    for name in ('accuracy', 'loss')
  ]
  several = any(len(g.evaluations) > 1 for g in groups)
  band = '95 % confidence interval over tasks'
  band += ', or the range of several seeds' * several
  return join(
    [
      element('h2', 'Adaptation by inner step'),
      paragraph(
        f'Solid line: query set; the band is the {band}. Dashed line, open '
        'markers: support set. Step 0 is the meta-learned initialization.'
      ),
      element('div', *panels, class_='panels'),
      paragraph('; '.join(map(_describe, groups)), '.', class_='fine'),
    ]
  )


def _describe(group: EvaluationGroup) -> str:
  """Returns the name and the setup of a curve; it may have fewer tasks."""
  result = group.result
  num_tasks = result['curve'].get('num_tasks', result['num_tasks'])
  setup = formatting.describe_setup(result | {'num_tasks': num_tasks})
  return f'{group.name}: {setup}'
