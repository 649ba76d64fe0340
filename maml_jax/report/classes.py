"""The accuracy of classes, and which classes are confused."""

import numpy as np

from maml_jax.evaluation.statistics import class_accuracy, confusion_counts
from maml_jax.report.run_groups import EvaluationGroup
from maml_jax.report.tasks import load_split

__all__ = ['classes_of']

MAX_MATRIX_CLASSES = 40  # a larger confusion matrix is not readable
MAX_ROWS = 8  # of the tables of classes
NUM_EASIEST = 2  # rows for the easiest classes
MIN_TASKS = 5  # of a class in the table
MIN_PAIR_IMAGES = 10  # of a pair of classes in the table


def classes_of(group: EvaluationGroup) -> dict:
  """Returns the hardest classes and the confusions of an evaluation.

  `rates` are the arguments of `figures.plot_confusion_matrix`, None for too
  many classes.
  """
  classes, predicted = group.arrays['classes'], group.arrays['predicted']
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
  present = np.flatnonzero(possible.any(1)).tolist()
  cells = np.ix_(present, present)
  with np.errstate(invalid='ignore'):
    rates = confused[cells] / possible[cells], [names[c] for c in present]
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
    'rates': rates if len(present) <= MAX_MATRIX_CLASSES else None,
  }
