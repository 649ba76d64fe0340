"""Baselines that use the encoder without the inner loop.

Each maps features of the support set and the query set to logits of the query
set; features are [N, D], targets [N] int, 0..W-1.
"""

import jax
import jax.numpy as jnp
from jax import lax

from maml_jax.models.layers import normalize
from maml_jax.types import Array

__all__ = [
  'FEATURE_BASELINES',
  'cosine_head',
  'linear_head',
  'nearest_centroid',
  'simple_shot',
]

NUM_ITERATIONS = 500  # of gradient descent, for the linear head
COSINE_ITERATIONS = 100  # the same for the cosine head
COSINE_SCALE = 10.0  # factor on cosines
COSINE_LR = 0.1


def simple_shot(
  support: Array, targets: Array, query: Array, ways: int
) -> Array:
  """Returns the logits of `nearest_centroid` on normalized features.

  SimpleShot, Wang et al. 2019, arXiv 1911.04623, CL2N.

  Args:
    support: features of the support set minus their mean over the training set.
    targets: classes of the support set.
    query: features of the query set minus the same mean.
    ways: W.
  """
  return nearest_centroid(normalize(support), targets, normalize(query), ways)


def cosine_head(
  support: Array, targets: Array, query: Array, ways: int
) -> Array:
  """Returns the logits of a cosine classifier trained on the support set.

  The `Baseline++` of Chen et al. 2019, arXiv 1904.04232, equation 2, but
  trained by gradient descent on all support images from the class means.

  Args:
    support: features of the support set.
    targets: classes of the support set.
    query: features of the query set.
    ways: W.

  Returns:
    Logits [N, W] of the query set.
  """
  support, query = normalize(support), normalize(query)
  one_hot = jax.nn.one_hot(targets, ways, dtype=support.dtype)

  def logits(weights, features):
    return COSINE_SCALE * features @ normalize(weights).T

  def loss(weights):
    log_p = jax.nn.log_softmax(logits(weights, support))
    return -(one_hot * log_p).sum(1).mean()

  def step(_, weights):
    return weights - COSINE_LR * jax.grad(loss)(weights)

  means = (one_hot.T @ support) / one_hot.sum(0)[:, None]
  weights = lax.fori_loop(0, COSINE_ITERATIONS, step, normalize(means))
  return logits(weights, query)


def nearest_centroid(
  support: Array, targets: Array, query: Array, ways: int
) -> Array:
  """Returns the negative squared distance to the mean of each class.

  The classifier of prototypical networks, Snell et al. 2017, arXiv 1703.05175,
  equation 2, on an encoder that was not trained for it.

  Args:
    support: features of the support set.
    targets: classes of the support set.
    query: features of the query set.
    ways: W.

  Returns:
    Logits [N, W] of the query set.
  """
  one_hot = jax.nn.one_hot(targets, ways, dtype=support.dtype)
  means = (one_hot.T @ support) / one_hot.sum(0)[:, None]
  return -jnp.square(query[:, None] - means[None]).sum(-1)


def linear_head(
  support: Array,
  targets: Array,
  query: Array,
  ways: int,
  *,
  strength: float = 1.0,
) -> Array:
  """Returns the logits of a logistic regression trained to convergence.

  The `Baseline` of Chen et al. 2019, arXiv 1904.04232, and Tian et al. 2020,
  arXiv 2003.11539: a new head on a frozen encoder. It minimizes the sum of
  cross entropies plus strength / 2 times the squared norm of weights and
  biases, by Nesterov's accelerated gradient descent on the N x N matrix of
  products of features.

  Args:
    support: features of the support set.
    targets: classes of the support set.
    query: features of the query set.
    ways: W.
    strength: of the regularization.

  Returns:
    Logits [N, W] of the query set.
  """
  center = support.mean(0)[None]
  support, query = (
    jnp.pad(x - center, ((0, 0), (0, 1)), constant_values=1)
    for x in (support, query)
  )
  products = support @ support.T
  one_hot = jax.nn.one_hot(targets, ways, dtype=support.dtype)
  # With weights = support.T @ dual, the gradient with respect to the weights is
  # support.T @ slope. The second derivative of a softmax is at most 1/2, and
  # the largest eigenvalue of `products` at most its Frobenius norm.
  smoothness = jnp.linalg.norm(products) / 2 + strength
  rate = (smoothness**0.5 - strength**0.5) / (smoothness**0.5 + strength**0.5)

  def step(_, carry):
    dual, ahead = carry
    slope = jax.nn.softmax(products @ ahead) - one_hot + strength * ahead
    new = ahead - slope / smoothness
    return new, new + rate * (new - dual)

  start = (one_hot - 1 / ways) / smoothness  # the first step from zero
  dual, _ = lax.fori_loop(0, NUM_ITERATIONS, step, (start, start))
  return query @ (support.T @ dual)


FEATURE_BASELINES = {
  'nearest_centroid': (
    nearest_centroid,
    'nearest class mean of the features',
  ),
  'linear_head': (linear_head, 'logistic regression on frozen features'),
  'cosine_head': (cosine_head, 'cosine classifier on frozen features'),
}
