"""The arithmetic of honest numbers: intervals, differences, what luck allows.

Tasks are independent draws, so a task is what is counted: intervals are over
tasks, and two ways of learning are compared on the same tasks, pair by pair.
"""

import math

import numpy as np
from scipy.special import bdtr, stdtrit

CONFIDENCE_LEVEL = 0.95


def mean_interval(values) -> tuple[float, float]:
  """The mean of independent values, and half the width of its 95 % interval.

  Student's t interval, which is exact for normal values and the usual one for
  accuracies of tasks. It is infinite for a single value.

  Args:
    values: [n], n >= 1.
  """
  values = np.asarray(values, np.float64)
  n = len(values)
  if n == 1:
    return float(values[0]), math.inf
  error = values.std(ddof=1) / math.sqrt(n)
  return float(values.mean()), float(_quantile(n) * error)


def paired_difference(a, b) -> tuple[float, float]:
  """The mean of a - b, and half the width of its 95 % interval.

  Args:
    a: [n], one value of each task.
    b: [n], of the same tasks in the same order. What makes a task hard for
      both does not widen the interval.
  """
  a, b = (np.asarray(values, np.float64) for values in (a, b))
  return mean_interval(a - b)


def prefix_difference(values, n: int) -> tuple[float, float]:
  """How far the mean of the first n values lies above that of all N, and luck.

  The first n are among the N, hence the variance s^2 (1/n - 1/N).

  Args:
    values: [N] of independent tasks.
    n: 1 <= n <= N.

  Returns:
    The difference, and what it stays below in 95 of 100 cases by luck alone;
    infinite for N = 1.
  """
  values = np.asarray(values, np.float64)
  total = len(values)
  difference = float(values[:n].mean() - values.mean())
  if total == 1:
    return difference, math.inf
  error = values.std(ddof=1) * math.sqrt(1 / n - 1 / total)
  return difference, float(_quantile(total) * error)


def running_interval(values) -> tuple[np.ndarray, np.ndarray]:
  """`mean_interval` of the first 1, 2, ..., n values: [n] each."""
  values = np.asarray(values, np.float64)
  count = np.arange(1, len(values) + 1)
  mean = values.cumsum() / count
  # Around the mean of all, or squares would cancel.
  centred = values - values.mean()
  squares = np.square(centred).cumsum() - count * np.square(
      centred.cumsum() / count
  )
  with np.errstate(divide='ignore', invalid='ignore'):
    error = np.sqrt(np.maximum(squares, 0) / (count - 1) / count)
    half = stdtrit(count - 1, (1 + CONFIDENCE_LEVEL) / 2) * error
  half[0] = math.inf
  return mean, half


def share_at_chance(accuracy, ways: int) -> float:
  """The share of tasks, in [0, 1], no better than a guess: at most 1/W right.

  Args:
    accuracy: [T], in [0, 1].
    ways: W.
  """
  # Accuracies are float32 sums: a rounding above 1/W is still 1/W.
  return float(np.mean(np.asarray(accuracy) <= 1 / ways + 1e-6))


def expected_at_chance(num_images: int, ways: int) -> float:
  """What `at_chance` is of one who guesses: a binomial probability.

  Args:
    num_images: query images of a task.
    ways: W.
  """
  return float(bdtr(num_images // ways, num_images, 1 / ways))


def _quantile(n: int) -> float:
  return stdtrit(n - 1, (1 + CONFIDENCE_LEVEL) / 2)
