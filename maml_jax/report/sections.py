"""Parts of the page: summary, curves, accuracies, and where they are from.

A part is a function of the groups of runs and the album of pictures. What there
is no data for is left out, or named in one line with the command that makes it.
"""

from collections.abc import Sequence

import numpy as np

from maml_jax.evaluation.statistics import (
  mean_interval,
  paired_difference,
  prefix_difference,
)
from maml_jax.report import figures, formatting, statistics
from maml_jax.report.figure_writer import FigureWriter
from maml_jax.report.formatting import format_number
from maml_jax.report.markup import (
  Html,
  details,
  element,
  folded,
  join,
  note,
  paragraph,
  table,
)
from maml_jax.report.runs import (
  EvaluationGroup,
  RunGroup,
  differing_fields,
  first_evaluations_with,
  has_predictions,
  main_evaluations,
)
from maml_jax.report.style import color

SAME_TASKS = ('data', 'split', 'ways', 'shots', 'queries')
COUNTS = (100, 200, 600, 1_000, 2_000, 6_000, 10_000)


def summary(groups: Sequence[RunGroup], album: FigureWriter) -> Html:
  """What was measured and how, in words."""
  del album
  main = {m.number: m for m in main_evaluations(groups)}
  cards = [_card(group, main.get(group.number)) for group in groups]
  unread = [line for g in groups for run in g.runs for line in run.notes]
  return join(
    [
      element('div', *cards, class_='cards'),
      *map(note, unread),
      _side_by_side(list(main.values())),
      _differences(groups),
    ]
  )


def learning(groups: Sequence[RunGroup], album: FigureWriter) -> Html:
  """Learning curves."""
  lacking = [
    group.name for group in groups if not any(run.records for run in group.runs)
  ]
  drawn = [group for group in groups if group.name not in lacking]
  if not drawn:
    return Html()
  several = any(len(group.runs) > 1 for group in groups)
  text = (
    'Thin: training tasks, smoothed. Thick: validation; the band is its 95 % '
    'interval over tasks'
  ) + ', and of several seeds from the lowest to the highest' * several
  text += '. The star: the best'
  names = ', '.join(group.name for group in drawn)
  panels = [
    album.show(
      f'learning_{name}',
      figures.learning(drawn, name),
      f'Query {name} of {names} while meta-training',
      f'{text}.',
    )
    for name in ('accuracy', 'loss')
  ]
  text = f'No metrics.jsonl of {", ".join(lacking)}: trained elsewhere.'
  return join(
    [
      element('h2', 'Learning curves'),
      element('div', *panels, class_='panels'),
      note(text) if lacking else '',
    ]
  )


def single_tasks(groups: Sequence[RunGroup], album: FigureWriter) -> Html:
  """Histogram and running mean; whether there are enough tasks."""
  measured = main_evaluations(groups)
  if not measured:
    return Html()
  panels, texts = [], []
  for score in ('accuracy', 'loss'):
    shown = [
      m for m in measured if m.score == score and m.array(score) is not None
    ]
    if not shown:
      continue
    panels += _panels_of_tasks(shown, album)
    texts.append(_enough([m for m in shown if m.array(score).shape[1] > 1]))
  if not panels:
    return Html()
  return join(
    [
      element('h2', 'Task by task'),
      element('div', *panels, class_='panels'),
      element('h3', 'Are 600 tasks enough?'),
      paragraph(
        'The mean of the first n out of N independent tasks differs from the '
        'mean of all N by luck, with a standard error of sd · √(1/n − 1/N): sd '
        'is the standard deviation of a single task. In 95 of 100 cases luck '
        'allows up to 1.96 of them.'
      ),
      *texts,
    ]
  )


def adaptation(groups: Sequence[RunGroup], album: FigureWriter) -> Html:
  """Accuracy and loss after each inner step."""
  found = first_evaluations_with(groups, lambda m: bool(m.facts.get('curve')))
  if not found:
    return Html()
  measured = list(found.values())
  panels = []
  for name in ('accuracy', 'loss'):
    figure = figures.adaptation(measured, name)
    alt = f'{name.capitalize()} on support and query set after each inner step'
    panels.append(album.show(f'adaptation_{name}', figure, alt))
  texts = [
    f'{m.name}: {formatting.describe_setup(m.facts | {"num_tasks": _curve_tasks(m)})}'
    for m in measured
  ]
  several = any(len(m.evaluations) > 1 for m in measured)
  band = '95 % interval over tasks' + ', or all seeds' * several
  return join(
    [
      element('h2', 'Adaptation, step by step'),
      paragraph(
        'Solid: query set, with its ',
        band,
        '. Dashed, open dots: the support '
        'set that is learned from. Step 0 is the meta-learned initialisation '
        'itself.',
      ),
      element('div', *panels, class_='panels'),
      paragraph('; '.join(texts), '.', class_='fine'),
    ]
  )


def baselines(groups: Sequence[RunGroup], album: FigureWriter) -> Html:
  """What does without the inner loop, on the same tasks."""
  found = first_evaluations_with(
    groups, lambda m: bool(m.facts.get('baselines'))
  )
  if not found:
    return Html()
  parts = [(m.name, _baselines(m, album)) for m in found.values()]
  return join([element('h2', 'MAML beside simpler learners'), folded(parts, 3)])


def evaluations(groups: Sequence[RunGroup], album: FigureWriter) -> Html:
  """All evaluations, newest first, those not shown above with their figures."""
  shown = {m.evaluations[0].path for m in main_evaluations(groups)}
  rows, others = [], []
  for group in groups:
    for i, m in enumerate(group.measured):
      rows.append(_evaluation_row(group, m))
      above = m.evaluations[0].path in shown
      if not above and m.array(m.score) is not None:
        prefix = f'more_{group.number}_{i}_'
        panels = _panels_of_tasks([m], album, prefix)
        value = format_number(m.score, *formatting.mean_with_interval(m))
        head = f'{m.name}: {formatting.describe_setup(m.facts)}: {value}'
        others.append(details(head, element('div', *panels, class_='panels')))
  if not rows:
    return Html()
  columns = (
    'run',
    'task',
    'kind',
    'queries',
    'steps',
    'norm',
    'tasks',
    'result',
    'median',
    'at chance',
  )
  return join(
    [
      element('h2', 'All evaluations'),
      table(
        columns,
        rows,
        numbers=(3, 4, 6, 7, 8, 9),
        caption=(
          'Newest first, run by run. ± is a 95 % interval: over tasks, or over '
          'seeds where there are several. Queries are query images per class; '
          'steps are inner steps; at chance is the share of tasks whose accuracy '
          'is not above chance.'
        ),
      ),
      *others,
    ]
  )


def missing(groups: Sequence[RunGroup], album: FigureWriter) -> Html:
  """What was not measured, with the commands that do."""
  del album
  lines = []
  for group in groups:
    measured = group.measured
    classifies = any(m.score == 'accuracy' for m in measured)
    lacks = {
      'evaluation': () if not measured else None,
      'grid': ('--eval.grid',) if not group.grids and classifies else None,
      'baselines': ('--eval.baselines',),
      'curve of adaptation': ('--eval.curve_tasks=100',),
      'answers of single tasks': (),
    }
    if not classifies or any(m.facts.get('baselines') for m in measured):
      lacks['baselines'] = None
    if not measured or any(m.facts.get('curve') for m in measured):
      lacks['curve of adaptation'] = None
    if not classifies or any(has_predictions(m) for m in measured):
      lacks['answers of single tasks'] = None
    lines += [
      note(f'{group.name}: no {what}.', formatting.eval_command(group, *flags))
      for what, flags in lacks.items()
      if flags is not None
    ]
  if not lines:
    return Html()
  return join([element('h2', 'Not measured yet'), *lines])


def provenance(groups: Sequence[RunGroup], album: FigureWriter) -> Html:
  """Which checkpoint, seed, version and device each number is from."""
  del album
  rows = [
    [
      group.name,
      e.path.stem,
      f'{e.facts.get("checkpoint", "?")}, step {e.facts.get("step", "?")}',
      e.facts.get('seed', '?'),
      e.facts.get('precision', '?'),
      _version(e.facts),
      e.facts.get('devices', '?'),
    ]
    for group in groups
    for run in group.runs
    for e in (*run.evaluations, *run.grids)
  ]
  if not rows:
    return Html()
  columns = (
    'run',
    'file in eval/',
    'checkpoint',
    'seed',
    'precision',
    'version',
    'devices',
  )
  return join(
    [
      element('h2', 'Where the numbers are from'),
      details(
        'Checkpoint, seed, version and devices of each evaluation',
        table(columns, rows),
      ),
    ]
  )


def _card(group: RunGroup, measured: EvaluationGroup | None) -> Html:
  own = f'--own:{color(group.number)}'
  head = element('h3', group.name)
  if measured is None:
    text = 'Not evaluated yet.' if not group.grids else 'Only a grid, below.'
    return element(
      'article',
      head,
      note(text, formatting.eval_command(group)),
      class_='card',
      style=own,
    )
  facts, score = measured.facts, measured.score
  unit = (
    'of query images answered right'
    if score == 'accuracy'
    else ('mean squared error of query points')
  )
  value = format_number(score, *formatting.mean_with_interval(measured))
  texts = [
    paragraph(value, class_='headline'),
    paragraph(unit, '. ± is the ', formatting.describe_interval(measured), '.'),
    paragraph('Measured on ', formatting.describe_conditions(facts), '.'),
  ]
  if score == 'accuracy':
    meaning = formatting.INDUCTIVE
    if formatting.protocol(facts) == 'transductive':
      meaning = formatting.TRANSDUCTIVE
    texts.append(paragraph(formatting.protocol_tag(facts), f' {meaning}.'))
  texts += [_spread(measured), _origin(measured)]
  return element('article', head, *texts, class_='card', style=own)


def _spread(measured: EvaluationGroup) -> Html:
  """Median, share of tasks at chance, and each seed."""
  facts, score = [e.facts for e in measured.evaluations], measured.score
  parts = []
  if (median := formatting.average_field(facts, 'median')) is not None:
    parts.append(f'Median of tasks {format_number(score, median)}.')
  if (share := formatting.average_field(facts, 'at_chance')) is not None:
    text = f'{formatting.format_share(share)} of tasks at or below chance '
    text += f'({formatting.format_share(1 / facts[0]["ways"])} right)'
    if 'at_chance_by_luck' in facts[0]:
      luck = formatting.format_share(facts[0]['at_chance_by_luck'])
      text += f'; guessing puts {luck} there'
    parts.append(f'{text}.')
  if len(facts) > 1:
    each = ', '.join(
      f'{format_number(score, f[score])} (seed {f.get("seed", "?")})'
      for f in facts
    )
    parts.append(f'Seed by seed: {each}.')
  return paragraph(' '.join(parts)) if parts else Html()


def _origin(measured: EvaluationGroup) -> Html:
  facts = [e.facts for e in measured.evaluations]
  seeds = ', '.join(str(f.get('seed', '?')) for f in facts)
  steps = [f'{f["step"]:,}' for f in facts if 'step' in f]
  steps = steps[:1] if len({*steps}) == 1 else steps
  origin = [
    f'Checkpoint of step {", ".join(steps) or "?"}',
    f'seed{"s" * (len(facts) > 1)} {seeds}',
    facts[0].get('precision', ''),
    facts[0].get('devices', ''),
    _version(facts[0]),
  ]
  return paragraph(', '.join(filter(None, origin)), '.', class_='fine')


def _version(facts: dict) -> str:
  version = f'maml_jax {facts.get("version", "?")}'
  if facts.get('commit'):
    version += f' ({facts["commit"]})'
  return f'{version}, jax {facts.get("jax", "?")}'


def _side_by_side(measured: Sequence[EvaluationGroup]) -> Html:
  """Each run against the first, on the tasks that both were measured on."""
  alike = [
    m
    for m in measured
    if m.array(m.score) is not None
    and all(m.facts[f] == measured[0].facts[f] for f in SAME_TASKS)
  ]
  if len(alike) < 2:
    return Html()
  rows = []
  for m in alike:
    first, own = alike[0].array(m.score).mean(0), m.array(m.score).mean(0)
    least = min(len(first), len(own))
    apart = paired_difference(own[:least], first[:least])
    kind = formatting.protocol_tag(m.facts) if m.score == 'accuracy' else '–'
    rows.append(
      [
        m.name,
        kind,
        format_number(m.score, *formatting.mean_with_interval(m)),
        '–' if m is alike[0] else formatting.format_difference(m.score, *apart),
        f'{least:,}',
      ]
    )
  points = ' in points of 1 %' if alike[0].score == 'accuracy' else ''
  seeds = (
    ', of the mean over seeds'
    if any(len(m.evaluations) > 1 for m in alike)
    else ''
  )
  caption = (
    f'Differences{points} are taken task by task{seeds}; their ± is '
    'the 95 % interval over tasks.'
  )
  columns = ('run', 'kind', alike[0].score, f'minus {alike[0].name}', 'tasks')
  return table(columns, rows, numbers=(2, 3, 4), caption=caption)


def _differences(groups: Sequence[RunGroup]) -> Html:
  rows = [
    [field, *map(str, values)]
    for field, values in differing_fields(groups).items()
  ]
  if len(groups) < 2 or not rows:
    return Html()
  names = [group.name for group in groups]
  title = f'What the runs were configured differently in: {len(rows)} fields'
  return details(title, table(['field', *names], rows))


def _panels_of_tasks(
  measured: Sequence[EvaluationGroup], album: FigureWriter, prefix: str = ''
) -> list:
  score = measured[0].score
  names = ', '.join(m.name for m in measured)
  several = any(len(m.evaluations) > 1 for m in measured)
  bars = 'Each bar holds equally many of the accuracies that a task can have.'
  if score == 'loss':
    bars = 'The last bar holds what is beyond it, too.'
  seeds = ' Of several seeds: their mean, from the lowest to the highest.'
  running = 'The band is the 95 % interval; the dotted line is the mean of all.'
  pooled = ' Of several seeds, their mean on each task is taken.'
  return [
    album.show(
      f'{prefix}histogram_{score}',
      figures.histogram(measured),
      f'Histogram of the {score} of single tasks: {names}',
      bars + seeds * several,
    ),
    album.show(
      f'{prefix}running_{score}',
      figures.running(measured),
      f'Mean {score} of the first n tasks with its interval: {names}',
      running + pooled * several,
    ),
  ]


def _enough(measured: Sequence[EvaluationGroup]) -> Html:
  """How well so many tasks tell a mean, and whether the first 600 would do."""
  prefixes = [_prefixes(m) for m in measured]
  if not measured:
    return Html()
  if len(measured) == 1:
    text = f'{measured[0].name}. {_precision(measured[0])}'
    return join([paragraph(text), *prefixes])
  columns = (
    'run',
    'deviation of a task',
    '± of 600 tasks',
    'tasks',
    '± of all',
    'first 600 − all',
    'luck allows',
  )
  rows = []
  for m in measured:
    values = m.array(m.score).mean(0)
    total, deviation = len(values), values.std(ddof=1)
    row = [
      m.name,
      *(
        format_number(m.score, x)
        for x in (deviation, 1.96 * deviation / 600**0.5)
      ),
    ]
    row += [f'{total:,}', format_number(m.score, 1.96 * deviation / total**0.5)]
    row += _against_all(m.score, values, 600)
    rows.append(row)
  return join(
    [
      table(columns, rows, numbers=range(1, len(columns))),
      details(
        'The first n tasks, run by run',
        *(
          join([paragraph(f'{m.name}. {_precision(m)}'), html])
          for m, html in zip(measured, prefixes, strict=True)
        ),
      ),
    ]
  )


def _against_all(score: str, values: np.ndarray, n: int) -> tuple[str, str]:
  """How far the mean of the first n is from that of all, and what luck allows."""
  if n >= len(values):
    return '–', '–'
  apart, luck = prefix_difference(values, n)
  return formatting.format_difference(
    score, apart, None
  ), formatting.format_margin(score, luck)


def _precision(measured: EvaluationGroup) -> str:
  """What the deviation of single tasks means for their mean."""
  score, values = measured.score, measured.array(measured.score).mean(0)
  total, deviation = len(values), values.std(ddof=1)
  half = 1.96 * deviation
  goal = 0.005 if score == 'accuracy' else 0.05 * abs(values.mean())
  text = (
    f'A single task has a standard deviation of {format_number(score, deviation)}, so '
    f'the mean of 600 is known to {formatting.format_margin(score, half / 600**0.5)}'
  )
  if total != 600:
    ours = formatting.format_margin(score, half / total**0.5)
    text += f', and that of these {total:,} to {ours}'
  text += (
    '. Two learners measured on 600 different tasks each must be '
    f'{format_number(score, half * (2 / 600) ** 0.5)} apart to be told apart'
  )
  if goal and deviation:
    needed = f'{(half / goal) ** 2:,.0f}'
    text += f'; {formatting.format_margin(score, goal)} takes {needed} tasks'
  return f'{text}.'


def _prefixes(measured: EvaluationGroup) -> Html:
  """The means of the first n tasks beside that of all."""
  score, values = measured.score, measured.array(measured.score).mean(0)
  counts = sorted({n for n in COUNTS if n < len(values)} | {len(values)})
  rows = [
    [
      f'{n:,}',
      format_number(score, *mean_interval(values[:n])),
      *_against_all(score, values, n),
    ]
    for n in counts
  ]
  columns = ('n', 'mean of the first n', 'minus that of all', 'luck allows')
  return table(columns, rows, numbers=range(len(columns)), stack=False)


def _curve_tasks(measured: EvaluationGroup) -> int:
  curve = measured.facts['curve']
  return curve.get('num_tasks', measured.facts['num_tasks'])


def _baselines(measured: EvaluationGroup, album: FigureWriter) -> Html:
  """A table and a figure; MAML goes first."""
  score = measured.score
  lists = [
    {b['name']: b for b in e.facts.get('baselines') or () if score in b}
    for e in measured.evaluations
  ]
  value, half = formatting.mean_with_interval(measured)
  rows = [
    [
      'MAML',
      'adapted by the inner loop',
      format_number(score, value, half),
      '–',
    ]
  ]
  dots, scale = [], 100 if score == 'accuracy' else 1
  for name, first in lists[0].items():
    every = [found[name] for found in lists if name in found]
    own, apart = (
      statistics.over_seeds([b[f] for b in every], [b.get(i) for b in every])
      for f, i in ((score, 'interval'), ('difference', 'difference_interval'))
    )
    title = name.replace('_', ' ')
    rows.append(
      [
        title,
        first.get('about', ''),
        format_number(score, *own),
        formatting.format_difference(score, *apart),
      ]
    )
    dots.append((title, *(x and scale * x for x in apart)))
  unit = ', points of 1 %' if score == 'accuracy' else ''
  columns = ('learner', 'what it does', score, f'minus MAML{unit}')
  figure = figures.differences(dots, f'{score} minus that of MAML{unit}')
  return join(
    [
      paragraph(
        'All on the same tasks: ',
        formatting.describe_setup(measured.facts),
        '. Differences are taken task by task.',
      ),
      table(columns, rows, numbers=(2, 3)),
      album.show(
        f'baselines_{measured.number}',
        figure,
        f'{score.capitalize()} of each baseline minus that of MAML, '
        'with intervals',
        f'± is the {formatting.describe_interval(measured)}.',
      ),
    ]
  )


def _evaluation_row(group: RunGroup, measured: EvaluationGroup) -> list:
  facts, score = measured.facts, measured.score
  every = [e.facts for e in measured.evaluations]
  median = formatting.average_field(every, 'median')
  share = formatting.average_field(every, 'at_chance')
  classifies = score == 'accuracy'
  return [
    group.name,
    f'{facts["data"]} {facts["split"]}, {formatting.describe_task(facts)}',
    formatting.protocol_tag(facts) if classifies else '–',
    facts['queries'],
    facts['num_steps'],
    formatting.format_norm(facts['norm']) if classifies else '–',
    f'{facts["num_tasks"]:,}',
    format_number(score, *formatting.mean_with_interval(measured)),
    '–' if median is None else format_number(score, median),
    '–' if share is None else formatting.format_share(share),
  ]
