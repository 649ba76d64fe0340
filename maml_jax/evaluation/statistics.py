"""Confidence intervals, paired differences and chance levels.

Tasks are independent draws, so intervals are over tasks, and two learners are
compared on the same tasks, pair by pair.
"""

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, stdtrit

from maml_jax.experiment.metrics import primary_metric

__all__ = [
  'CONFIDENCE_LEVEL',
  'expected_at_chance',
  'mean_interval',
  'paired_difference',
  'prefix_difference',
  'running_interval',
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


def _t_quantile(n: int) -> float:
  return stdtrit(n - 1, (1 + CONFIDENCE_LEVEL) / 2)
