"""Accuracy by class, and the most frequent confusions."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from maml_jax.report import episodes, formatting, statistics
from maml_jax.report.figure_writer import FigureWriter
from maml_jax.report.heat_maps import plot_confusion_matrix
from maml_jax.report.markup import (
  Html,
  collapse_after,
  element,
  join,
  note,
  paragraph,
  table,
)
from maml_jax.report.run_groups import (
  EvaluationGroup,
  RunGroup,
  first_evaluations_with,
  has_predictions,
)
from maml_jax.types import Dataset

__all__ = ['classes']

MAX_MATRIX_CLASSES = 40  # a larger confusion matrix is not readable
MAX_ROWS = 8  # of the tables
NUM_EASIEST = 2  # rows for the easiest classes
MIN_TASKS = 5  # of a class in the table
MIN_PAIR_IMAGES = 10  # of a pair of classes in the table


def classes(
  run_groups: Sequence[RunGroup], figure_writer: FigureWriter
) -> Html:
  """Returns the accuracy by class and the confusions of each run."""
  found = first_evaluations_with(run_groups, has_predictions)
  if not found:
    return Html()
  parts = [(g.name, _classes(g, figure_writer)) for g in found.values()]
  return join([element('h2', 'Accuracy by class'), collapse_after(1, parts)])


def _classes(group: EvaluationGroup, figure_writer: FigureWriter) -> Html:
  task_classes = group.array('classes')[0]
  predicted = group.array('predicted')
  if np.any(group.array('classes') != task_classes[None]):
    predicted = predicted[:1]  # the seeds have different tasks
  all_predicted = predicted.reshape(-1, predicted.shape[-1])
  all_classes = np.tile(task_classes, (len(predicted), 1))
  dataset, names, error = episodes.try_load_split(group.evaluations[0])
  if not names:
    names = [f'class {c}' for c in range(all_classes.max() + 1)]
  accuracy = statistics.class_accuracy(all_predicted, all_classes)
  confused, possible = statistics.confusion_counts(
    all_predicted, all_classes, len(names)
  )
  return join(
    [
      paragraph(
        f'{formatting.describe_setup(group.result)}. The extremes among many '
        'classes are partly due to chance: expect less extreme values on other '
        'tasks.'
      ),
      note(error) if error else '',
      element(
        'div',
        _hardest_classes(accuracy, names, dataset),
        _confused_pairs(confused, possible, names),
        class_='panels',
      ),
      figure_writer.embed(
        f'confusion_{group.number}',
        _confusion_matrix(confused, possible, names),
        'How often images of each class were predicted as each other class',
        'Share of the images of a class that were predicted as another class, '
        'over the tasks that contain both classes.',
      ),
    ]
  )


def _hardest_classes(
  accuracy: dict, names: Sequence[str], dataset: Dataset | None
) -> Html:
  """Returns a table of the hardest classes and, at its end, the easiest."""
  ranked = sorted(
    (c for c in accuracy if accuracy[c][2] >= MIN_TASKS),
    key=lambda c: accuracy[c][0],
  )
  if not ranked:
    return Html()
  shown = ranked[:MAX_ROWS] + ranked[MAX_ROWS:][-NUM_EASIEST:]
  images, style = ['' for _ in shown], None
  if dataset is not None:
    tiles = np.stack([dataset.images[dataset.index[c, 0]] for c in shown])
    style = episodes.sprite_style(tiles[:, None])
    images = [
      episodes.render_tile((i, 0), (len(shown), 1), names[int(c)])
      for i, c in enumerate(shown)
    ]
  rows = [
    [
      element('span', image, names[c], class_='class'),
      formatting.format_number('accuracy', *accuracy[c][:2]),
      accuracy[c][2],
    ]
    for image, c in zip(images, shown, strict=True)
  ]
  easiest = ', followed by the easiest' * (len(ranked) > MAX_ROWS)
  caption = (
    f'The hardest of the {len(ranked)} classes that occur in at least '
    f'{MIN_TASKS} tasks{easiest}.'
  )
  columns = ('class', 'accuracy', 'tasks')
  body = table(columns, rows, numbers=(1, 2), stack=False, caption=caption)
  return element('div', body, class_='faces', style=style)


def _confused_pairs(confused, possible, names: Sequence[str]) -> Html:
  """Returns a table of the pairs of classes with the most wrong predictions."""
  wrong = np.where(np.eye(len(confused), dtype=bool), 0, confused)
  counts = np.where(possible >= MIN_PAIR_IMAGES, wrong, 0)
  order = np.argsort(-counts, axis=None, kind='stable')[:MAX_ROWS]
  pairs = [np.unravel_index(i, counts.shape) for i in order]
  rows = [
    [
      f'{names[a]} → {names[b]}',
      f'{wrong[a, b]} of {possible[a, b]}',
      formatting.format_share(wrong[a, b] / possible[a, b]),
    ]
    for a, b in pairs
    if counts[a, b]
  ]
  if not rows:
    return note(
      'No confusions: no pair of classes with at least '
      f'{MIN_PAIR_IMAGES} images has wrong predictions.'
    )
  caption = (
    'The most frequent confusions, for pairs of classes with at least '
    f'{MIN_PAIR_IMAGES} images in common tasks.'
  )
  columns = ('true class → prediction', 'images', 'share')
  return element(
    'div', table(columns, rows, numbers=(1, 2), stack=False, caption=caption)
  )


def _confusion_matrix(confused, possible, names: list[str]) -> Figure | None:
  """Plots the classes that occur; returns None if there are too many."""
  present = np.flatnonzero(possible.any(1))
  if len(present) > MAX_MATRIX_CLASSES:
    return None
  cells = np.ix_(present, present)
  with np.errstate(invalid='ignore'):
    rate = confused[cells] / possible[cells]
  shown = [names[c] for c in present]
  shown = [name if len(name) < 20 else f'{name[:18]}…' for name in shown]
  return plot_confusion_matrix(rate, shown)
