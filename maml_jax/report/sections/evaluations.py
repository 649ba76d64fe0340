"""All evaluations, the missing ones, and their provenance."""

from collections.abc import Sequence

from maml_jax.experiment.formatting import describe_data
from maml_jax.report import formatting
from maml_jax.report.figure_writer import FigureWriter
from maml_jax.report.formatting import format_number
from maml_jax.report.markup import Html, details, element, join, note, table
from maml_jax.report.run_groups import (
  EvaluationGroup,
  RunGroup,
  has_predictions,
  main_evaluations,
)
from maml_jax.report.sections.single_tasks import task_panels

__all__ = ['evaluations', 'missing', 'provenance']

EVALUATION_COLUMNS = (
  'run',
  'task',
  'protocol',
  'queries',
  'steps',
  'norm',
  'tasks',
  'result',
  'median',
  'at chance',
)
PROVENANCE_COLUMNS = (
  'run',
  'file in eval/',
  'checkpoint',
  'seed',
  'precision',
  'version',
  'devices',
)


def evaluations(
  run_groups: Sequence[RunGroup], figure_writer: FigureWriter
) -> Html:
  """Returns a table of all evaluations, and figures of those not shown yet."""
  shown = {g.evaluations[0].path for g in main_evaluations(run_groups)}
  rows, others = [], []
  for run_group in run_groups:
    for i, group in enumerate(run_group.evaluation_groups):
      rows.append(_evaluation_row(run_group, group))
      is_shown = group.evaluations[0].path in shown
      if not is_shown and group.has(group.metric):
        prefix = f'more_{run_group.number}_{i}_'
        others.append(_collapsed_panels(group, figure_writer, prefix))
  if not rows:
    return Html()
  caption = (
    'Per run, newest first. ± is the 95 % confidence interval: over tasks for '
    'one seed, over seeds for several. Queries: query images per class. Steps: '
    'inner steps. At chance: share of tasks with at most chance accuracy.'
  )
  return join(
    [
      element('h2', 'All evaluations'),
      table(
        EVALUATION_COLUMNS,
        rows,
        numbers=(3, 4, 6, 7, 8, 9),
        caption=caption,
      ),
      *others,
    ]
  )


def missing(
  run_groups: Sequence[RunGroup], figure_writer: FigureWriter
) -> Html:
  """Returns the missing evaluations, with the commands that create them."""
  del figure_writer
  lines = [
    note(
      f'{group.name}: no {name}. Evaluate with:',
      formatting.eval_command(group, *flags),
    )
    for group in run_groups
    for name, flags in _missing_results(group).items()
  ]
  if not lines:
    return Html()
  return join([element('h2', 'Missing results'), *lines])


def provenance(
  run_groups: Sequence[RunGroup], figure_writer: FigureWriter
) -> Html:
  """Returns checkpoint, seed, version and devices of each evaluation."""
  del figure_writer
  rows = [
    [
      group.name,
      e.path.stem,
      f'{e.result.get("checkpoint", "?")}, step {e.result.get("step", "?")}',
      e.result.get('seed', '?'),
      e.result.get('precision', '?'),
      formatting.describe_version(e.result),
      e.result.get('devices', '?'),
    ]
    for group in run_groups
    for run in group.runs
    for e in (*run.evaluations, *run.grids)
  ]
  if not rows:
    return Html()
  return join(
    [
      element('h2', 'Provenance'),
      details(
        'Checkpoint, seed, version and devices of each evaluation',
        table(PROVENANCE_COLUMNS, rows),
      ),
    ]
  )


def _evaluation_row(run_group: RunGroup, group: EvaluationGroup) -> list:
  result, metric = group.result, group.metric
  median = formatting.average_field(group.results, 'median')
  at_chance = formatting.average_field(group.results, 'at_chance')
  classifies = metric == 'accuracy'
  return [
    run_group.name,
    f'{describe_data(result)}, {formatting.describe_task(result)}',
    formatting.protocol_tag(result) if classifies else '–',
    result['queries'],
    result['num_steps'],
    formatting.format_norm(result['norm']) if classifies else '–',
    f'{result["num_tasks"]:,}',
    format_number(metric, *formatting.mean_with_interval(group)),
    '–' if median is None else format_number(metric, median),
    '–' if at_chance is None else formatting.format_share(at_chance),
  ]


def _collapsed_panels(
  group: EvaluationGroup, figure_writer: FigureWriter, prefix: str
) -> Html:
  """Returns the collapsed figures of one evaluation."""
  panels = task_panels([group], figure_writer, prefix)
  value = format_number(group.metric, *formatting.mean_with_interval(group))
  setup = formatting.describe_setup(group.result)
  summary = f'{group.name}: {setup}: {value}'
  return details(summary, element('div', *panels, class_='panels'))


def _missing_results(run_group: RunGroup) -> dict[str, tuple[str, ...]]:
  """Returns the missing results of a run, with the flags that create them."""
  groups = run_group.evaluation_groups
  if not groups:
    return {'evaluation': ()}
  found = {}
  classifies = any(g.metric == 'accuracy' for g in groups)
  if classifies and not run_group.grid_groups:
    found['grid'] = ('--eval.grid',)
  if classifies and not any(g.result.get('baselines') for g in groups):
    found['baselines'] = ('--eval.baselines',)
  if not any(g.result.get('curve') for g in groups):
    found['adaptation curve'] = ('--eval.curve_tasks=100',)
  if classifies and not any(has_predictions(g) for g in groups):
    found['predictions per task'] = ()
  return found
