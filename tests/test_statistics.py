"""Compares statistics of evaluations with SciPy and simulations."""

import numpy as np
import pytest
import scipy.stats

from maml_jax.evaluation import statistics


def draw_accuracies(rng, shape, num_images):
  """Returns accuracies of tasks of different difficulty, with mean 1/2."""
  return rng.binomial(num_images, rng.beta(5, 5, shape)) / num_images


def test_mean_interval_equals_scipy():
  values = np.random.default_rng(0).normal(size=12)
  mean, half_width = statistics.mean_interval(values)
  expected = scipy.stats.t.interval(
    0.95, 11, values.mean(), scipy.stats.sem(values)
  )
  np.testing.assert_allclose([mean - half_width, mean + half_width], expected)


def test_mean_interval_of_one_or_equal_values():
  assert statistics.mean_interval([0.25]) == (0.25, np.inf)
  assert statistics.mean_interval(np.ones(5, np.float32)) == (1.0, 0.0)


@pytest.mark.parametrize('num_tasks, queries', [(30, 75), (600, 5)])
def test_mean_interval_covers_the_mean_in_95_percent_of_cases(
  num_tasks, queries
):
  rng = np.random.default_rng(0)
  accuracies = draw_accuracies(rng, (4000, num_tasks), queries)
  results = [statistics.mean_interval(row) for row in accuracies]
  covered = np.mean([abs(mean - 0.5) <= half for mean, half in results])
  assert 0.94 < covered < 0.96


def test_summarize_returns_means_and_interval_of_the_primary_metric():
  rng = np.random.default_rng(0)
  metrics = {name: rng.uniform(size=20) for name in ('loss', 'support_loss')}
  loss, interval = statistics.mean_interval(metrics['loss'])
  expected = {'loss': loss, 'interval': interval}
  assert statistics.summarize(metrics) == pytest.approx(expected)
  metrics['accuracy'] = rng.uniform(size=20)
  accuracy, interval = statistics.mean_interval(metrics['accuracy'])
  expected = {'loss': loss, 'accuracy': accuracy, 'interval': interval}
  assert statistics.summarize(metrics) == pytest.approx(expected)


@pytest.mark.parametrize('trials', [1, 7, 200])
def test_wilson_interval_solves_the_equation_of_the_score_test(trials):
  for successes in {0, 1, trials // 3, trials}:
    share = successes / trials
    low, high = interval = statistics.wilson_interval(successes, trials)
    assert 0 <= low <= share <= high <= 1
    p = np.array(interval)
    distance = 1.959964 * np.sqrt(p * (1 - p) / trials)
    np.testing.assert_allclose(abs(p - share), distance, atol=1e-6)
    assert high - low > 0.01


def test_paired_difference_equals_scipy():
  rng = np.random.default_rng(0)
  a = rng.normal(size=12)
  b = a + rng.normal(0.1, 0.2, size=12)
  mean, half_width = statistics.paired_difference(a, b)
  expected = scipy.stats.ttest_rel(a, b).confidence_interval(0.95)
  np.testing.assert_allclose([mean - half_width, mean + half_width], expected)


def test_paired_difference_of_constant_shift_has_zero_width():
  values = np.random.default_rng(0).uniform(size=50)
  mean, half_width = statistics.paired_difference(values + 0.25, values)
  np.testing.assert_allclose([mean, half_width], [0.25, 0], atol=1e-12)


def test_paired_interval_covers_the_difference_in_95_percent_of_cases():
  """Compares two learners; the second is better by 0.1 on every task."""
  rng = np.random.default_rng(1)
  difficulty = rng.uniform(0.2, 0.7, (4000, 60))
  a, b = (rng.binomial(15, p) / 15 for p in (difficulty, difficulty + 0.1))
  covered = [
    abs(mean - 0.1) <= half
    for mean, half in map(statistics.paired_difference, b, a)
  ]
  assert 0.94 < np.mean(covered) < 0.96


def test_prefix_difference_has_variance_of_a_part_of_the_whole():
  """cov(mean of n, mean of N) = s^2/N, so the variance is s^2 (1/n - 1/N)."""
  values = np.random.default_rng(0).normal(size=20)
  difference, margin = statistics.prefix_difference(values, 5)
  assert difference == pytest.approx(values[:5].mean() - values.mean())
  error = values.std(ddof=1) * np.sqrt(1 / 5 - 1 / 20)
  assert margin == pytest.approx(scipy.stats.t.ppf(0.975, 19) * error)
  assert statistics.prefix_difference(values, 20) == (0, 0)
  assert statistics.prefix_difference([1.0], 1) == (0, np.inf)


def test_prefix_difference_is_within_its_margin_in_95_percent_of_cases():
  rng = np.random.default_rng(2)
  within = [
    abs(difference) <= margin
    for difference, margin in (
      statistics.prefix_difference(row, 60)
      for row in draw_accuracies(rng, (4000, 600), 75)
    )
  ]
  assert 0.94 < np.mean(within) < 0.96


@pytest.mark.parametrize('offset', [0.0, 1e6])
def test_running_interval_equals_mean_interval_of_each_prefix(offset):
  values = offset + draw_accuracies(np.random.default_rng(3), 40, 75)
  mean, half_width = statistics.running_interval(values)
  expected = [statistics.mean_interval(values[:n]) for n in range(1, 41)]
  np.testing.assert_allclose(mean, [m for m, _ in expected])
  np.testing.assert_allclose(half_width, [h for _, h in expected], rtol=1e-6)


def test_running_interval_of_equal_values():
  mean, half_width = statistics.running_interval([0.5] * 4)
  assert (mean == 0.5).all()
  assert half_width.tolist() == [np.inf, 0, 0, 0]


def test_share_at_chance_allows_for_float32_rounding():
  fifth = np.float32(1) / np.float32(5)
  above = np.float32(2) / np.float32(5)
  assert statistics.share_at_chance(np.array([0, fifth, above, 1]), 5) == 0.5


@pytest.mark.parametrize('num_images, ways', [(75, 5), (5, 5), (7, 3)])
def test_expected_at_chance_equals_binomial_and_simulation(num_images, ways):
  expected = statistics.expected_at_chance(num_images, ways)
  binomial = scipy.stats.binom(num_images, 1 / ways)
  terms = [binomial.pmf(k) for k in range(num_images // ways + 1)]
  assert expected == pytest.approx(sum(terms))
  rng = np.random.default_rng(4)
  guesses = rng.integers(ways, size=(20_000, num_images))
  simulated = statistics.share_at_chance((guesses == 0).mean(1), ways)
  assert simulated == pytest.approx(expected, abs=0.012)
