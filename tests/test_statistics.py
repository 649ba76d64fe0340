"""The arithmetic of evaluations against closed forms and simulation."""

import numpy as np
import pytest
import scipy.stats

from maml_jax.evaluation import statistics


def accuracies(rng, num_tasks, num_images, runs=None):
  """Tasks of unlike difficulty, answered with binomial luck; mean 1/2."""
  shape = (num_tasks,) if runs is None else (runs, num_tasks)
  return rng.binomial(num_images, rng.beta(5, 5, shape)) / num_images


def test_paired_difference_is_students():
  rng = np.random.default_rng(0)
  a = rng.normal(size=12)
  b = a + rng.normal(0.1, 0.2, size=12)
  mean, half = statistics.paired_difference(a, b)
  low, high = scipy.stats.ttest_rel(a, b).confidence_interval(0.95)
  np.testing.assert_allclose([mean - half, mean + half], [low, high])


def test_a_shift_of_all_tasks_is_certain():
  values = np.random.default_rng(0).uniform(size=50)
  mean, half = statistics.paired_difference(values + 0.25, values)
  np.testing.assert_allclose([mean, half], [0.25, 0], atol=1e-12)


def test_paired_interval_covers_the_truth():
  """Two learners, the second better by 0.1 on every class of task."""
  rng = np.random.default_rng(1)
  difficulty = rng.uniform(0.2, 0.7, (4000, 60))
  a, b = (rng.binomial(15, p) / 15 for p in (difficulty, difficulty + 0.1))
  covered = [
    abs(mean - 0.1) <= half
    for mean, half in map(statistics.paired_difference, b, a)
  ]
  assert 0.94 < np.mean(covered) < 0.96


def test_first_against_all_is_the_variance_of_a_part_of_a_whole():
  """cov(mean of n, mean of N) = s^2/N, so the variance is s^2 (1/n - 1/N)."""
  values = np.random.default_rng(0).normal(size=20)
  difference, half = statistics.prefix_difference(values, 5)
  assert difference == pytest.approx(values[:5].mean() - values.mean())
  error = values.std(ddof=1) * np.sqrt(1 / 5 - 1 / 20)
  assert half == pytest.approx(scipy.stats.t.ppf(0.975, 19) * error)
  assert statistics.prefix_difference(values, 20) == (0, 0)
  assert statistics.prefix_difference([1.0], 1) == (0, np.inf)


def test_luck_of_the_first_tasks_is_exceeded_in_5_of_100_cases():
  rng = np.random.default_rng(2)
  within = [
    abs(difference) <= half
    for difference, half in (
      statistics.prefix_difference(row, 60)
      for row in accuracies(rng, 600, 75, runs=4000)
    )
  ]
  assert 0.94 < np.mean(within) < 0.96


@pytest.mark.parametrize('offset', [0.0, 1e6])
def test_running_interval_is_that_of_each_prefix(offset):
  values = offset + accuracies(np.random.default_rng(3), 40, 75)
  mean, half = statistics.running_interval(values)
  expected = [statistics.mean_interval(values[:n]) for n in range(1, 41)]
  np.testing.assert_allclose(mean, [m for m, _ in expected])
  np.testing.assert_allclose(half, [h for _, h in expected], rtol=1e-6)


def test_running_interval_of_equal_values():
  mean, half = statistics.running_interval([0.5] * 4)
  assert (mean == 0.5).all() and (half[1:] == 0).all() and half[0] == np.inf


def test_at_chance_counts_a_guess_and_less():
  fifth = np.float32(1) / np.float32(5)
  above = np.float32(2) / np.float32(5)
  assert statistics.share_at_chance(np.array([0, fifth, above, 1]), 5) == 0.5


@pytest.mark.parametrize('num_images, ways', [(75, 5), (5, 5), (7, 3)])
def test_who_guesses_is_at_chance_as_the_binomial_says(num_images, ways):
  share = statistics.expected_at_chance(num_images, ways)
  binomial = scipy.stats.binom(num_images, 1 / ways)
  terms = [binomial.pmf(k) for k in range(num_images // ways + 1)]
  assert share == pytest.approx(sum(terms))
  rng = np.random.default_rng(4)
  guesses = rng.integers(ways, size=(20_000, num_images))
  simulated = statistics.share_at_chance((guesses == 0).mean(1), ways)
  assert simulated == pytest.approx(share, abs=0.012)
