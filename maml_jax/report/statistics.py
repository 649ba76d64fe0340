"""Statistics over tasks, classes and seeds for the report.

Shape legend: T tasks, W ways, Q queries per class, C classes of the split.
"""

from collections.abc import Sequence

import numpy as np

from maml_jax.evaluation.statistics import mean_interval

__all__ = [
  'accuracy_bins',
  'best_and_worst_tasks',
  'class_accuracy',
  'combine_seeds',
  'confusion_counts',
]


def combine_seeds(
  results: Sequence[dict], field: str, interval: str = 'interval'
) -> tuple[float, float | None]:
  """Combines a field of the results of several seeds.

  Args:
    results: one per seed.
    field: the name of a number.
    interval: the name of its interval over tasks.

  Returns:
    For one seed, its value and interval; for several seeds, their mean and the
    t interval over seeds.
  """
  if len(results) == 1:
    return results[0][field], results[0].get(interval)
  return mean_interval([result[field] for result in results])


def accuracy_bins(num_queries: int, max_bins: int = 26) -> np.ndarray:
  """Returns histogram edges, with equally many possible accuracies per bin.

  Args:
    num_queries: query images of a task; its accuracy is 0, 1/n, ..., or 1.
    max_bins: maximum number of bins.
  """
  values_per_bin = -(-(num_queries + 1) // max_bins)
  num_bins = -(-(num_queries + 1) // values_per_bin)
  return (np.arange(num_bins + 1) * values_per_bin - 0.5) / num_queries


def class_accuracy(predicted, classes) -> dict[int, tuple[float, float, int]]:
  """Returns the accuracy on the images of each class.

  Args:
    predicted: [T, W * Q] predicted labels, sorted by true label.
    classes: [T, W] the class of each label.

  Returns:
    class -> mean accuracy over the tasks that contain the class, half the width
    of its 95 % interval, and the number of these tasks.
  """
  label = np.arange(classes.shape[1])[:, None]
  accuracy = (predicted.reshape(*classes.shape, -1) == label).mean(-1)
  return {
    int(c): (*mean_interval(values), len(values))
    for c in np.unique(classes)
    for values in [accuracy[classes == c]]
  }


def confusion_counts(predicted, classes, num_classes: int):
  """Counts images by true class and predicted class.

  Args:
    predicted: [T, W * Q] predicted labels, sorted by true label.
    classes: [T, W] the class of each label.
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


def best_and_worst_tasks(
  accuracy, loss, count: int
) -> tuple[list[int], list[int]]:
  """Returns the tasks with the best and the worst accuracy.

  Args:
    accuracy: [T].
    loss: [T], which breaks ties.
    count: maximum number of best and of worst tasks; no task is both. A single
      task is the best.

  Returns:
    The indices of the best tasks, best first, and of the worst, worst first.
  """
  order = np.lexsort((loss, -np.asarray(accuracy))).tolist()
  count = min(count, len(order) // 2)
  return order[: max(count, 1)], order[::-1][:count]
