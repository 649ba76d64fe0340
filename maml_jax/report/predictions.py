"""The parts of the page on single answers: by class, and task by task."""

from collections.abc import Sequence

import numpy as np

from maml_jax import data
from maml_jax.experiment import checkpoint
from maml_jax.report import episodes, figures, formatting, statistics
from maml_jax.report.demo_plots import draw_episode, draw_regression
from maml_jax.report.figure_writer import FigureWriter
from maml_jax.report.markup import (
  Html,
  element,
  folded,
  join,
  note,
  paragraph,
  table,
)
from maml_jax.report.runs import (
  Evaluation,
  EvaluationGroup,
  RunGroup,
  first_evaluations_with,
  has_predictions,
)
from maml_jax.utils.errors import UserError

MAX_MATRIX_CLASSES = 40  # of a matrix that can be read
MAX_ROWS = 8  # of the tables
MIN_TASKS = 5  # tasks of a class that is ranked
MIN_PAIR_IMAGES = 10  # of a pair of classes
MAX_EPISODES = 8  # in the page, for it is to stay small


def classes(groups: Sequence[RunGroup], album: FigureWriter) -> Html:
  """Which classes are hard, and what they are taken for."""
  found = first_evaluations_with(groups, has_predictions)
  if not found:
    return Html()
  parts = [(m.name, _classes(m, album)) for m in found.values()]
  return join([element('h2', 'Hard classes'), folded(parts, 1)])


def tasks(groups: Sequence[RunGroup], album: FigureWriter) -> Html:
  """The tasks that went best and worst."""
  found = list(first_evaluations_with(groups, has_predictions).values())
  if not found:
    return Html()
  each = 2 if len(found) <= MAX_EPISODES // 4 else 1
  shown = found[: MAX_EPISODES // (2 * each)]
  left_out = [m.name for m in found[len(shown) :]]
  text = f'Not shown, to keep the page small: {", ".join(left_out)}.'
  return join(
    [
      element('h2', 'Best and worst tasks'),
      paragraph(
        'Left of the line: the support images of a class. Right of it: query '
        'images with the letter that each was given, after a tick in a solid '
        'frame where it is right, after a cross in a dashed one where not.'
      ),
      *(_tasks(m, album, each, len(found) > 1) for m in shown),
      note(text) if left_out else '',
    ]
  )


def regressions(groups: Sequence[RunGroup], album: FigureWriter) -> Html:
  """Curves fitted to the first test tasks of each regression."""
  shown = []
  for group in groups:
    run = group.runs[0]
    if run.config.get('data.name') not in data.REGRESSIONS:
      continue
    try:
      saved = checkpoint.load(run.path)
    except UserError as error:
      shown.append(note(f'{group.name}: no fitted curves: {error}'))
      continue
    figure = draw_regression(saved.config, saved, 3, columns=1, width=6)
    shown.append(
      album.show(
        f'regression_{group.number}',
        figure,
        'Curves fitted to test tasks before and after the inner steps',
        f'{group.name}: three tasks and what is fitted to each.',
      )
    )
  if not shown:
    return Html()
  return join(
    [element('h2', 'Fitted curves'), element('div', *shown, class_='panels')]
  )


def _classes(measured: EvaluationGroup, album: FigureWriter) -> Html:
  rows = measured.array('classes')[0]
  predicted = measured.array('predicted')
  if np.any(measured.array('classes') != rows[None]):
    predicted = predicted[:1]  # the seeds had other tasks
  stacked = predicted.reshape(-1, predicted.shape[-1])
  owner = np.tile(rows, (len(predicted), 1))
  dataset, names, trouble = _data(measured.evaluations[0])
  if not names:
    names = [f'class {c}' for c in range(owner.max() + 1)]
  accuracy = statistics.class_accuracy(stacked, owner)
  answered, offered = statistics.confusion(stacked, owner, len(names))
  figure = _matrix(answered, offered, names)
  alt = 'How often an image of each class was taken for each other class'
  caption = (
    'Of the images of a class, the share that was taken for another '
    'when that was among the answers of the task.'
  )
  return join(
    [
      paragraph(
        'In ',
        formatting.describe_setup(measured.facts),
        '. The extremes of many are '
        'extreme by chance, too: other tasks would show less of it.',
      ),
      note(trouble) if trouble else '',
      element(
        'div',
        _hardest(accuracy, names, dataset),
        _confused(answered, offered, names),
        class_='panels',
      ),
      album.show(f'confusion_{measured.number}', figure, alt, caption),
    ]
  )


def _data(evaluation: Evaluation):
  """The data set, its names, and what is wrong if it cannot be had."""
  try:
    return *episodes.load_split(evaluation), ''
  except UserError as error:
    reason = str(error).partition('\n')[0]
    return None, [], f'No images and no names of classes: {reason}'


def _hardest(accuracy: dict, names: Sequence[str], dataset) -> Html:
  ranked = sorted(
    (c for c in accuracy if accuracy[c][2] >= MIN_TASKS),
    key=lambda c: accuracy[c][0],
  )
  if not ranked:
    return Html()
  ends = ranked[:MAX_ROWS] + ranked[MAX_ROWS:][-2:]
  pictures, style = ['' for _ in ends], None
  if dataset is not None:
    tiles = np.stack([dataset.images[dataset.index[c, 0]] for c in ends])
    style = episodes.sprite_style(tiles[:, None])
    pictures = [
      episodes.tile((i, 0), (len(ends), 1), names[c])
      for i, c in enumerate(ends)
    ]
  rows = [
    [
      element('span', picture, names[c], class_='class'),
      formatting.format_number('accuracy', *accuracy[c][:2]),
      accuracy[c][2],
    ]
    for picture, c in zip(pictures, ends, strict=True)
  ]
  easiest = ', and the easiest at the end' * (len(ends) > MAX_ROWS)
  caption = (
    f'The hardest of {len(ranked)} classes that were part of '
    f'{MIN_TASKS} tasks or more{easiest}.'
  )
  columns = ('class', 'answered right', 'tasks')
  body = table(columns, rows, numbers=(1, 2), stack=False, caption=caption)
  return element('div', body, class_='faces', style=style)


def _confused(answered, offered, names: Sequence[str]) -> Html:
  """The pairs with the most wrong answers."""
  wrong = np.where(np.eye(len(answered), dtype=bool), 0, answered)
  often = np.where(offered >= MIN_PAIR_IMAGES, wrong, 0)
  order = np.argsort(-often, axis=None, kind='stable')[:MAX_ROWS]
  pairs = [np.unravel_index(i, often.shape) for i in order]
  rows = [
    [
      f'{names[a]} → {names[b]}',
      f'{wrong[a, b]} of {offered[a, b]}',
      formatting.format_share(wrong[a, b] / offered[a, b]),
    ]
    for a, b in pairs
    if often[a, b]
  ]
  if not rows:
    return note(
      'No class met another one often enough to say what it is '
      f'taken for: with {MIN_PAIR_IMAGES} images or more.'
    )
  caption = (
    f'What was most often taken for what, of {MIN_PAIR_IMAGES} images or '
    'more that could be.'
  )
  columns = ('class → answer', 'images', 'share')
  return element(
    'div', table(columns, rows, numbers=(1, 2), stack=False, caption=caption)
  )


def _matrix(answered, offered, names: Sequence[str]):
  present = np.flatnonzero(offered.any(1))
  if len(present) > MAX_MATRIX_CLASSES:
    return None
  cells = np.ix_(present, present)
  with np.errstate(invalid='ignore'):
    rate = answered[cells] / offered[cells]
  shown = [names[c] for c in present]
  shown = [name if len(name) < 20 else f'{name[:18]}…' for name in shown]
  return figures.matrix(rate, shown)


def _tasks(
  measured: EvaluationGroup, album: FigureWriter, each: int, named: bool
) -> Html:
  evaluation = measured.evaluations[0]
  accuracy, loss = (evaluation.arrays[n] for n in ('accuracy', 'loss'))
  best, worst = statistics.best_and_worst(accuracy, loss, each)
  seed = f', seed {evaluation.facts.get("seed", "?")}'
  head = element('h3', measured.name, seed * (len(measured.evaluations) > 1))
  dataset, names, trouble = _data(evaluation)
  if not trouble:
    try:
      drawn = episodes.rebuild_tasks(evaluation, dataset, names, best + worst)
    except UserError as error:
      trouble = f'No pictures of tasks: {error}'
  if trouble:
    return join([head if named else '', note(trouble)])
  total = len(accuracy)
  shown = []
  for i, task in enumerate(drawn):
    end, rank = ('best', i) if i < len(best) else ('worst', i - len(best))
    place = f'{end} {rank + 1} of {total:,}'
    share = formatting.format_number('accuracy', accuracy[task.number])
    title = join(
      [element('b', f'{place}: {share}'), f' right, task {task.number + 1}']
    )
    shown.append(episodes.render_task(task, title))
    figure = draw_episode(
      task.episode, task.predicted.ravel(), class_names=task.names
    )
    album.keep(f'task_{measured.number}_{end}{rank + 1}', figure)
  cut = ''
  if task.predicted.shape[1] > episodes.MAX_QUERIES:
    cut = f', of which the first {episodes.MAX_QUERIES} are shown'
  count = formatting.pluralize(task.predicted.shape[1], 'query image')
  text = (
    f'{formatting.describe_setup(evaluation.facts)}; {count} per class{cut}.'
  )
  return join(
    [
      head if named else '',
      paragraph(text, class_='fine'),
      element('div', *shown, class_='episodes'),
    ]
  )
