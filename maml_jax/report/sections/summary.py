"""The summary: one card per run, and a comparison of the runs."""

from collections.abc import Sequence

from maml_jax.evaluation.statistics import paired_difference
from maml_jax.report import formatting
from maml_jax.report.figure_writer import FigureWriter
from maml_jax.report.formatting import format_number, format_share
from maml_jax.report.markup import (
  Html,
  details,
  element,
  join,
  note,
  paragraph,
  table,
)
from maml_jax.report.run_groups import (
  EvaluationGroup,
  RunGroup,
  differing_fields,
  main_evaluations,
)
from maml_jax.report.style import css_color

__all__ = ['summary']

# Fields in which evaluations must agree to be compared task by task.
SAME_TASK_FIELDS = (
  'data',
  'data_root',
  'split',
  'ways',
  'shots',
  'queries',
)


def summary(
  run_groups: Sequence[RunGroup], figure_writer: FigureWriter
) -> Html:
  """Returns the main result of each run and their differences."""
  del figure_writer
  main = {e.number: e for e in main_evaluations(run_groups)}
  cards = [_card(group, main.get(group.number)) for group in run_groups]
  notes = [line for g in run_groups for run in g.runs for line in run.notes]
  return join(
    [
      element('div', *cards, class_='cards'),
      *map(note, notes),
      _comparison(list(main.values())),
      _config_differences(run_groups),
    ]
  )


def _card(run_group: RunGroup, group: EvaluationGroup | None) -> Html:
  """Returns the main result of one run."""
  style = f'--accent:{css_color(run_group.number)}'
  head = element('h3', run_group.name)
  if group is None:
    text = 'Not evaluated yet.'
    if run_group.grid_groups:
      text = 'Only evaluated on a grid; see below.'
    missing = note(text, formatting.eval_command(run_group))
    return element('article', head, missing, class_='card', style=style)
  result, metric = group.result, group.metric
  name = 'Mean squared error of the query points'
  if metric == 'accuracy':
    name = 'Query accuracy'
  value = format_number(metric, *formatting.mean_with_interval(group))
  texts = [
    paragraph(value, class_='headline'),
    paragraph(f'{name}; ± is the {formatting.describe_interval(group)}.'),
    paragraph(f'Evaluated on {formatting.describe_conditions(result)}.'),
  ]
  if metric == 'accuracy':
    meaning = formatting.INDUCTIVE
    if result['transductive']:
      meaning = formatting.TRANSDUCTIVE
    texts.append(paragraph(formatting.protocol_tag(result), f' {meaning}.'))
  texts += [_distribution(group), _origin(group)]
  return element('article', head, *texts, class_='card', style=style)


def _distribution(group: EvaluationGroup) -> Html:
  """Returns the median, the share of tasks at chance, and each seed."""
  results, metric = group.results, group.metric
  sentences = []
  median = formatting.average_field(results, 'median')
  if median is not None:
    sentences.append(f'Median over tasks: {format_number(metric, median)}.')
  at_chance = formatting.average_field(results, 'at_chance')
  if at_chance is not None:
    chance = format_share(1 / results[0]['ways'])
    text = f'Tasks at or below chance ({chance}): {format_share(at_chance)}'
    if 'expected_at_chance' in results[0]:
      expected = format_share(results[0]['expected_at_chance'])
      text += f'; expected for random guesses: {expected}'
    sentences.append(f'{text}.')
  if len(results) > 1:
    seeds = ', '.join(
      f'{format_number(metric, r[metric])} (seed {r.get("seed", "?")})'
      for r in results
    )
    sentences.append(f'Per seed: {seeds}.')
  return paragraph(' '.join(sentences)) if sentences else Html()


def _origin(group: EvaluationGroup) -> Html:
  """Returns the checkpoint, seeds, precision, devices and versions."""
  results = group.results
  seeds = ', '.join(str(r.get('seed', '?')) for r in results)
  steps = [f'{r["step"]:,}' for r in results if 'step' in r]
  steps = steps[:1] if len({*steps}) == 1 else steps
  parts = [
    f'Checkpoint of step {", ".join(steps) or "?"}',
    f'seed{"s" * (len(results) > 1)} {seeds}',
    results[0].get('precision', ''),
    results[0].get('devices', ''),
    formatting.describe_version(results[0]),
  ]
  return paragraph(', '.join(filter(None, parts)), '.', class_='fine')


def _comparison(groups: Sequence[EvaluationGroup]) -> Html:
  """Returns a table that compares the runs with the first one, by task."""
  groups = [
    g
    for g in groups
    if g.has(g.metric)
    and all(
      g.result.get(f) == groups[0].result.get(f) for f in SAME_TASK_FIELDS
    )
  ]
  if len(groups) < 2:
    return Html()
  first, metric = groups[0], groups[0].metric
  unit = ', in percentage points,' if metric == 'accuracy' else ''
  several = any(len(g.evaluations) > 1 for g in groups)
  caption = (
    f'Differences{unit} are paired by task'
    f'{" and averaged over seeds" * several}; their ± is the 95 % confidence '
    'interval over tasks.'
  )
  columns = ('run', 'protocol', metric, f'minus {first.name}', 'tasks')
  rows = [_comparison_row(group, first) for group in groups]
  return table(columns, rows, numbers=(2, 3, 4), caption=caption)


def _comparison_row(group: EvaluationGroup, first: EvaluationGroup) -> list:
  metric = group.metric
  reference, values = (g.array(metric).mean(0) for g in (first, group))
  num_tasks = min(len(reference), len(values))
  difference = paired_difference(values[:num_tasks], reference[:num_tasks])
  return [
    group.name,
    formatting.protocol_tag(group.result) if metric == 'accuracy' else '–',
    format_number(metric, *formatting.mean_with_interval(group)),
    '–'
    if group is first
    else formatting.format_difference(metric, *difference),
    f'{num_tasks:,}',
  ]


def _config_differences(run_groups: Sequence[RunGroup]) -> Html:
  rows = [
    [field, *map(str, values)]
    for field, values in differing_fields(run_groups).items()
  ]
  if len(run_groups) < 2 or not rows:
    return Html()
  names = [group.name for group in run_groups]
  title = f'Config fields that differ between the runs: {len(rows)}'
  return details(title, table(['field', *names], rows))
