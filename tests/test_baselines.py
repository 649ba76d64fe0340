"""Compares the baselines with loops and a SciPy optimizer in float64."""

import jax
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from maml_jax.evaluation import baselines

WAYS = 4


def make_features(shots=3, queries=5, size=6, scale=1.0):
  """Returns support features, support targets and query features."""
  rng = np.random.default_rng(0)
  center = rng.normal(size=(WAYS, size))

  def draw(n):
    targets = rng.permutation(np.repeat(np.arange(WAYS), n))
    noise = rng.normal(size=(len(targets), size))
    x = scale * (3.0 + center[targets] + noise)
    return x.astype(np.float32), targets.astype(np.int32)

  return *draw(shots), draw(queries)[0]


def test_nearest_centroid_is_the_negative_squared_distance():
  support, targets, query = make_features()
  logits = baselines.nearest_centroid(support, targets, query, WAYS)
  for i, x in enumerate(query):
    for c in range(WAYS):
      mean = support[targets == c].astype(np.float64).mean(0)
      distance = ((x - mean) ** 2).sum()
      np.testing.assert_allclose(logits[i, c], -distance, rtol=1e-4)


def test_simple_shot_is_the_nearest_normalized_centroid():
  support, targets, query = make_features()
  logits = baselines.simple_shot(support, targets, query, WAYS)
  support, query = (
    x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True)
    for x in (support, query)
  )
  for c in range(WAYS):
    mean = support[targets == c].mean(0)
    expected = -((query - mean) ** 2).sum(1)
    np.testing.assert_allclose(logits[:, c], expected, rtol=1e-3, atol=1e-6)


def test_cosine_head_is_gradient_descent_on_cosines():
  """Compares with the derivative of cosines written by hand, in float64."""
  support, targets, query = make_features()
  x, q = (
    v.astype(np.float64) / np.linalg.norm(v, axis=1, keepdims=True)
    for v in (support, query)
  )
  y = np.eye(WAYS)[targets]
  w = np.stack([x[targets == c].mean(0) for c in range(WAYS)])
  w /= np.linalg.norm(w, axis=1, keepdims=True)
  for _ in range(baselines.COSINE_ITERATIONS):
    norms = np.linalg.norm(w, axis=1, keepdims=True)
    u = w / norms
    p = scipy.special.softmax(baselines.COSINE_SCALE * x @ u.T, axis=1)
    by_u = baselines.COSINE_SCALE * (p - y).T @ x / len(x)
    by_w = (by_u - (by_u * u).sum(1, keepdims=True) * u) / norms
    w = w - baselines.COSINE_LR * by_w
  u = w / np.linalg.norm(w, axis=1, keepdims=True)
  logits = baselines.cosine_head(support, targets, query, WAYS)
  np.testing.assert_allclose(
    logits, baselines.COSINE_SCALE * q @ u.T, rtol=1e-3, atol=1e-3
  )


@pytest.mark.parametrize('scale, strength', [(1.0, 1.0), (10.0, 1.0), (1, 0.1)])
def test_linear_head_minimizes_the_regularized_loss(scale, strength):
  support, targets, query = make_features(scale=scale)
  x, y = support.astype(np.float64), np.eye(WAYS)[targets]
  center = x.mean(0)
  x = np.pad(x - center, ((0, 0), (0, 1)), constant_values=1)

  def objective(flat):
    weights = flat.reshape(-1, WAYS)
    logits = x @ weights
    log_norm = scipy.special.logsumexp(logits, axis=1, keepdims=True)
    gradient = x.T @ (np.exp(logits - log_norm) - y) + strength * weights
    loss = (log_norm - (logits * y).sum(1, keepdims=True)).sum()
    return loss + strength / 2 * (weights**2).sum(), gradient.ravel()

  found = scipy.optimize.minimize(
    objective,
    np.zeros(x.shape[1] * WAYS),
    jac=True,
    options={'gtol': 1e-9, 'maxiter': 5000},
  )
  weights = found.x.reshape(-1, WAYS)
  expected = np.pad(query - center, ((0, 0), (0, 1)), constant_values=1)
  logits = baselines.linear_head(
    support, targets, query, WAYS, strength=strength
  )
  size = np.abs(expected @ weights).max()
  np.testing.assert_allclose(logits, expected @ weights, atol=3e-3 * size)


@pytest.mark.parametrize('name', baselines.FEATURE_BASELINES)
def test_jitted_baselines_equal_op_by_op_execution(name):
  fn, _ = baselines.FEATURE_BASELINES[name]
  support, targets, query = make_features()
  jitted = jax.jit(fn, static_argnums=3)(support, targets, query, WAYS)
  with jax.disable_jit():
    expected = fn(support, targets, query, WAYS)
  np.testing.assert_allclose(jitted, expected, rtol=1e-3, atol=1e-3)
