"""Confidence intervals, paired differences and chance levels.

Tasks are independent draws, so intervals are over tasks, and two learners are
compared on the same tasks, pair by pair.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, stdtrit

from maml_jax.experiment.metrics import primary_metric

__all__ = [
  'CONFIDENCE_LEVEL',
  'accuracy_bins',
  'best_and_worst_tasks',
  'class_accuracy',
  'combine_curves',
  'combine_seeds',
  'confusion_counts',
  'expected_at_chance',
  'mean_interval',
  'moving_average',
  'paired_difference',
  'prefix_difference',
  'running_interval',
  'scale_to_unit',
  'share_at_chance',
  'summarize',
  'wilson_interval',
]

CONFIDENCE_LEVEL = 0.95


def mean_interval(values: npt.ArrayLike) -> tuple[float, float]:
  """Returns a mean and half the width of its 95 % confidence interval.

  Student's t interval: exact for normal values, and the usual interval for
  accuracies of tasks. It is infinite for a single value.

  Args:
    values: [n] independent values, n >= 1.
  """
  values = np.asarray(values, np.float64)
  n = len(values)
  if n == 1:
    return float(values[0]), math.inf
  error = values.std(ddof=1) / math.sqrt(n)
  return float(values.mean()), float(_t_quantile(n) * error)


def paired_difference(
  a: npt.ArrayLike, b: npt.ArrayLike
) -> tuple[float, float]:
  """Returns the mean of a - b and half the width of its 95 % interval.

  Args:
    a: [n], one value per task.
    b: [n], of the same tasks in the same order. Variation that both share,
      such as the difficulty of a task, does not widen the interval.
  """
  a, b = (np.asarray(values, np.float64) for values in (a, b))
  return mean_interval(a - b)


def prefix_difference(values: npt.ArrayLike, n: int) -> tuple[float, float]:
  """Compares the mean of the first n values with the mean of all N.

  The first n are part of the N, hence the variance s^2 (1/n - 1/N).

  Args:
    values: [N] values of independent tasks.
    n: 1 <= n <= N.

  Returns:
    The difference, and the margin it stays within in 95 % of all samples;
    infinite for N = 1.
  """
  values = np.asarray(values, np.float64)
  total = len(values)
  difference = float(values[:n].mean() - values.mean())
  if total == 1:
    return difference, math.inf
  error = values.std(ddof=1) * math.sqrt(1 / n - 1 / total)
  return difference, float(_t_quantile(total) * error)


def running_interval(values: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
  """Returns `mean_interval` of the first 1, 2, ..., n values: [n] each."""
  values = np.asarray(values, np.float64)
  count = np.arange(1, len(values) + 1)
  mean = values.cumsum() / count
  # Centered on the overall mean to avoid cancellation.
  centered = values - values.mean()
  squares = np.square(centered).cumsum() - count * np.square(
    centered.cumsum() / count
  )
  with np.errstate(divide='ignore', invalid='ignore'):
    error = np.sqrt(np.maximum(squares, 0) / (count - 1) / count)
    half_width = stdtrit(count - 1, (1 + CONFIDENCE_LEVEL) / 2) * error
  half_width[0] = math.inf
  return mean, half_width


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
  """Returns the 95 % confidence interval of a probability.

  Wilson 1927, "Probable inference, the law of succession, and statistical
  inference". It stays within 0..1 and has a positive width even if all trials
  succeed.

  Args:
    successes: number of successes.
    trials: number of trials, at least 1.
  """
  from scipy.stats import binomtest  # takes a second

  test = binomtest(successes, trials)
  interval = test.proportion_ci(CONFIDENCE_LEVEL, method='wilson')
  return float(interval.low), float(interval.high)


def share_at_chance(accuracy: npt.ArrayLike, ways: int) -> float:
  """Returns the share of tasks, in [0, 1], with an accuracy of at most 1/W.

  Args:
    accuracy: [T], in [0, 1].
    ways: W.
  """
  # Accuracies are float32 sums: allow for rounding above 1/W.
  return float(np.mean(np.asarray(accuracy) <= 1 / ways + 1e-6))


def expected_at_chance(num_images: int, ways: int) -> float:
  """Returns the expected `share_at_chance` of random guesses.

  Args:
    num_images: query images of a task.
    ways: W.
  """
  return float(bdtr(num_images // ways, num_images, 1 / ways))


def summarize(metrics: Mapping[str, np.ndarray]) -> dict[str, float]:
  """Returns mean loss, mean primary metric and the interval of the latter.

  Args:
    metrics: [T] each, one value per task.
  """
  name = primary_metric(metrics)
  mean, interval = mean_interval(metrics[name])
  values = {'loss': float(metrics['loss'].mean()), name: mean}
  return values | {'interval': interval}


def combine_seeds(
  results: Sequence[Mapping], field: str, interval: str = 'interval'
) -> tuple[float, float | None]:
  """Combines a number in the results of several seeds, and its interval.

  For one seed, the interval is over tasks and has the name `interval`; for
  several seeds, it is the t interval over seeds.
  """
  if len(results) == 1:
    return results[0][field], results[0].get(interval)
  return mean_interval([result[field] for result in results])


def combine_curves(
  curves: Sequence[np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
  """Interpolates curves at all steps within the range that they share.

  Args:
    curves: increasing steps and the values at these steps, [2, m] each.

  Returns:
    The steps, [n], and the values, [curves, n].
  """
  steps = [np.asarray(step) for step, _ in curves]
  first, last = max(s[0] for s in steps), min(s[-1] for s in steps)
  step = np.unique(np.concatenate(steps))
  if first <= last:
    step = step[(step >= first) & (step <= last)]
  return step, np.stack([np.interp(step, *curve) for curve in curves])


def moving_average(
  step: np.ndarray, values: np.ndarray, half: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the steps, and the means over 2 * half + 1 values around each."""
  window = np.full(2 * half + 1, 1 / (2 * half + 1))
  return step[half : len(step) - half], np.convolve(values, window, 'valid')


def scale_to_unit(values) -> np.ndarray:
  """Scales values linearly to 0..1 from the minimum to the maximum."""
  low, high = np.nanmin(values), np.nanmax(values)
  return (np.asarray(values) - low) / ((high - low) or 1)


def best_and_worst_tasks(
  accuracy, loss, count: int
) -> tuple[list[int], list[int]]:
  """Returns the indices of the best tasks, and of the worst, worst first.

  Args:
    accuracy: [T].
    loss: [T], breaks ties.
    count: maximum number of best and of worst tasks; no task is both. A single
      task is the best.
  """
  order = np.lexsort((loss, -np.asarray(accuracy))).tolist()
  count = min(count, len(order) // 2)
  return order[: max(count, 1)], order[::-1][:count]


def accuracy_bins(num_queries: int, max_bins: int = 26) -> np.ndarray:
  """Returns histogram edges, with equally many possible accuracies per bin.

  The accuracy of a task with n query images is 0, 1/n, ..., or 1.
  """
  values_per_bin = -(-(num_queries + 1) // max_bins)
  num_bins = -(-(num_queries + 1) // values_per_bin)
  return (np.arange(num_bins + 1) * values_per_bin - 0.5) / num_queries


def class_accuracy(predicted, classes) -> dict[int, tuple[float, float, int]]:
  """Returns class -> mean accuracy, half of its interval, number of tasks.

  Args:
    predicted: [T, W * Q] predicted labels of T tasks with W ways and Q query
      images per class, sorted by true label.
    classes: [T, W] the class of each label.
  """
  label = np.arange(classes.shape[1])[:, None]
  accuracy = (predicted.reshape(*classes.shape, -1) == label).mean(-1)
  by_class = {int(c): accuracy[classes == c] for c in np.unique(classes)}
  return {c: (*mean_interval(x), len(x)) for c, x in by_class.items()}


def confusion_counts(predicted, classes, num_classes: int):
  """Counts images by true class and predicted class.

  Args:
    predicted: see `class_accuracy`.
    classes: see `class_accuracy`.
    num_classes: C, those of the split.

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


def _t_quantile(n: int) -> float:
  return stdtrit(n - 1, (1 + CONFIDENCE_LEVEL) / 2)
