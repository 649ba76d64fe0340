"""What one needs to judge MAML by: simpler ways to use the same encoder.

Each takes features of the support set and the query set and gives logits for
the query set; features are [N, D], labels [N] int, 0..W-1.
"""

import jax
import jax.numpy as jnp
from jax import lax

NUM_ITERATIONS = 500  # of gradient descent, for the linear head


def nearest_centroid(support, label, query, ways):
  """Minus the squared distance to the mean of each class.

  The classifier of prototypical networks, Snell et al. 2017, arXiv 1703.05175,
  equation 2, on an encoder that was not trained for it.

  Args:
    support: features of the support set.
    label: its labels.
    query: features of the query set.
    ways: W.

  Returns:
    Logits [N, W] of the query set.
  """
  one_hot = jax.nn.one_hot(label, ways, dtype=support.dtype)
  means = (one_hot.T @ support) / one_hot.sum(0)[:, None]
  return -jnp.square(query[:, None] - means[None]).sum(-1)


def linear_head(support, label, query, ways, *, strength=1.0):
  """Multinomial logistic regression, trained to convergence.

  The `Baseline` of Chen et al. 2019, arXiv 1904.04232, and Tian et al. 2020,
  arXiv 2003.11539: the encoder is frozen, and a new head is fitted. Minimises
  the sum of cross entropies plus strength / 2 times the squared norm of the
  weights, of the biases too, by Nesterov's accelerated gradient descent. It
  works on products of features, of which there are N x N.

  Args:
    support: features of the support set.
    label: its labels.
    query: features of the query set.
    ways: W.
    strength: of the regularisation.

  Returns:
    Logits [N, W] of the query set.
  """
  centre = support.mean(0)[None]
  support, query = (
      jnp.pad(x - centre, ((0, 0), (0, 1)), constant_values=1)
      for x in (support, query)
  )
  products = support @ support.T
  one_hot = jax.nn.one_hot(label, ways, dtype=support.dtype)
  # With weights = support.T @ dual the gradient by the weights is support.T @
  # slope. A softmax's second derivative is at most 1/2, and the largest
  # eigenvalue of `products` at most its Frobenius norm.
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
    'nearest_mean': (nearest_centroid, 'nearest class mean of the features'),
    'linear_head': (linear_head, 'logistic regression on frozen features'),
}
