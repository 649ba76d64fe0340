"""The accuracy of classes, and which classes are confused.

Shape legend: T tasks, W ways, Q queries per class, C classes of the split.
"""

from collections.abc import Sequence

import numpy as np

from maml_jax.evaluation.statistics import mean_interval
from maml_jax.report.run_groups import EvaluationGroup
from maml_jax.report.tasks import load_split

__all__ = ['class_accuracy', 'classes_of', 'confusion_counts']

MAX_MATRIX_CLASSES = 40  # a larger confusion matrix is not readable
MAX_ROWS = 8  # of the tables of classes
NUM_EASIEST = 2  # rows for the easiest classes
MIN_TASKS = 5  # of a class in the table
MIN_PAIR_IMAGES = 10  # of a pair of classes in the table


def classes_of(group: EvaluationGroup) -> dict:
  """Returns the hardest classes and the confusions of an evaluation."""
  classes, predicted = group.array('classes'), group.array('predicted')
  if np.any(classes != classes[:1]):  # the seeds have different tasks
    classes, predicted = classes[:1], predicted[:1]
  classes = classes.reshape(-1, classes.shape[-1])
  predicted = predicted.reshape(len(classes), -1)
  dataset, names, error = load_split(group.evaluations[0])
  names = names or [f'class {c}' for c in range(classes.max() + 1)]
  accuracy = class_accuracy(predicted, classes)
  confused, possible = confusion_counts(predicted, classes, len(names))
  known = (c for c in accuracy if accuracy[c][2] >= MIN_TASKS)
  ranked = sorted(known, key=lambda c: accuracy[c][0])
  is_shown = (possible >= MIN_PAIR_IMAGES) & ~np.eye(len(names), dtype=bool)
  counts = np.where(is_shown, confused, 0)
  order = np.argsort(-counts, axis=None, kind='stable')[:MAX_ROWS]
  pairs = np.stack(np.unravel_index(order, counts.shape), 1).tolist()
  return {
    'error': error,
    'num_classes': len(ranked),
    'hardest': [
      (names[c], dataset and dataset.images[dataset.index[c, 0]], *accuracy[c])
      for c in ranked[:MAX_ROWS] + ranked[MAX_ROWS:][-NUM_EASIEST:]
    ],
    'confusions': [
      (names[a], names[b], confused[a, b], possible[a, b])
      for a, b in pairs
      if counts[a, b]
    ],
    'rates': _confusion_rates(confused, possible, names),
  }


def class_accuracy(predicted, classes) -> dict[int, tuple[float, float, int]]:
  """Returns class -> mean accuracy, half of its interval, number of tasks.

  Args:
    predicted: [T, W * Q] predicted labels, sorted by true label.
    classes: [T, W] the class of each label.
  """
  label = np.arange(classes.shape[1])[:, None]
  accuracy = (predicted.reshape(*classes.shape, -1) == label).mean(-1)
  by_class = {int(c): accuracy[classes == c] for c in np.unique(classes)}
  return {c: (*mean_interval(x), len(x)) for c, x in by_class.items()}


def confusion_counts(predicted, classes, num_classes: int):
  """Counts images by true class and predicted class.

  Args:
    predicted, classes: see `class_accuracy`.
    num_classes: C.

  Returns:
    confused [C, C]: the number of images of class a that were predicted as b;
    possible [C, C]: the number of images of class a in tasks that contain b.
  """
  queries = predicted.shape[1] // classes.shape[1]
  confused = np.zeros((num_classes, num_classes), np.int64)
  possible = np.zeros_like(confused)
  answer = np.take_along_axis(classes, predicted.astype(np.int64), axis=1)
  np.add.at(confused, (classes.repeat(queries, axis=1), answer), 1)
  np.add.at(possible, (classes[:, :, None], classes[:, None]), queries)
  return confused, possible


def _confusion_rates(confused, possible, names: Sequence[str]) -> tuple | None:
  """Returns the arguments of `figures.plot_confusion_matrix`.

  They are limited to the classes that occur; None if there are too many.
  """
  present = np.flatnonzero(possible.any(1))
  if len(present) > MAX_MATRIX_CLASSES:
    return None
  cells = np.ix_(present, present)
  with np.errstate(invalid='ignore'):
    rate = confused[cells] / possible[cells]
  shown = [names[c] for c in present.tolist()]
  return rate, [name if len(name) < 20 else f'{name[:18]}…' for name in shown]
