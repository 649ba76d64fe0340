"""What the page computes from the results of single tasks.

Legend: T tasks, W ways, Q queries per class, C classes of the split.
"""

from collections.abc import Sequence

import numpy as np

from maml_jax.evaluation.statistics import mean_interval


def over_seeds(
  values: Sequence[float], intervals: Sequence[float | None]
) -> tuple[float, float | None]:
  """One number with its interval out of those of several seeds.

  Args:
    values: one for each seed.
    intervals: over the tasks of each.

  Returns:
    Of a single seed, its own two; of more, the mean over them with the t
    interval over seeds.
  """
  if len(values) == 1:
    return values[0], intervals[0]
  return mean_interval(values)


def accuracy_bins(num_queries: int, most: int = 26) -> np.ndarray:
  """Edges of bars that each hold equally many of the accuracies there can be.

  Args:
    num_queries: query images of a task; accuracies are 0, 1/n, ... 1.
    most: bars.
  """
  each = -(-(num_queries + 1) // most)
  count = -(-(num_queries + 1) // each)
  return (np.arange(count + 1) * each - 0.5) / num_queries


def class_accuracy(predicted, classes) -> dict[int, tuple[float, float, int]]:
  """How well the images of each class were told from those of their tasks.

  Args:
    predicted: [T, W * Q] labels, class after class.
    classes: [T, W] row of the class of each label.

  Returns:
    class -> mean over the tasks that it was part of, half the width of its 95 %
    interval, and how many tasks they are.
  """
  ways = classes.shape[1]
  label = np.repeat(np.arange(ways), predicted.shape[1] // ways)
  right = (predicted == label).reshape(*classes.shape, -1).mean(-1)
  return {
    int(c): (*mean_interval(values), len(values))
    for c in np.unique(classes)
    for values in [right[classes == c]]
  }


def confusion(predicted, classes, num_classes: int):
  """Counts answers by true class and class of the answer.

  Args:
    predicted: [T, W * Q] labels, class after class.
    classes: [T, W] row of the class of each label.
    num_classes: C.

  Returns:
    answered [C, C]: images of class a that were taken for b; offered [C, C]:
    those in whose task b was one of the answers. Both are whole numbers.
  """
  queries = predicted.shape[1] // classes.shape[1]
  answered = np.zeros((num_classes, num_classes), np.int64)
  offered = np.zeros_like(answered)
  answer = np.take_along_axis(classes, predicted.astype(np.int64), axis=1)
  np.add.at(answered, (classes.repeat(queries, axis=1), answer), 1)
  np.add.at(offered, (classes[:, :, None], classes[:, None]), queries)
  return answered, offered


def best_and_worst(accuracy, loss, count: int) -> tuple[list[int], list[int]]:
  """Tasks at both ends; of equal accuracies the loss decides.

  Args:
    accuracy: [T].
    loss: [T].
    count: how many at each end; no task is at both.

  Returns:
    The best, best first; the worst, worst first.
  """
  order = np.lexsort((loss, -np.asarray(accuracy))).tolist()
  count = min(count, len(order) // 2)
  return order[:count], order[::-1][:count]
