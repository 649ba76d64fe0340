"""Second derivatives of a loss in forward-over-reverse mode."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from maml_jax.utils.trees import combine, is_inexact, partition

__all__ = ['mixed_mode_value_and_grad']


def mixed_mode_value_and_grad(loss_fn: Callable) -> Callable:
  """Returns `value_and_grad` whose derivative is taken forward-over-reverse.

  MixFlow-MG, Kemaev et al. 2025, arXiv 2505.00793. Let p be the adapted
  parameters, o everything else, and `pull(p, c)` the vector-Jacobian product
  that maps cotangents c of (loss, stats) to gradients with respect to (p, o).
  Because the Hessian is symmetric, the outer gradient needs the derivative of
  `pull(p, (1, 0))` along the cotangent of the gradient; because `pull` is
  linear in c, the cotangents of loss and statistics enter as a direction of c.
  Only the arguments have to be stored.

  Args:
    loss_fn: `loss_fn(adapted, others) -> (loss [], stats)`. Everything to be
      differentiated must be an argument, not a closed-over value.

  Returns:
    `fn(adapted, others) -> ((loss, stats), gradient with respect to adapted)`.
  """

  @jax.custom_vjp
  def loss_and_grad(adapted, others):
    return jax.value_and_grad(loss_fn, has_aux=True)(adapted, others)

  def forward(adapted, others):
    return loss_and_grad(adapted, others), (adapted, others)

  def backward(arguments, cotangents):
    adapted, others = arguments
    others, fixed = partition(is_inexact(others), others)
    (loss, stats), direction = cotangents
    stats, _ = partition(is_inexact(stats), stats)

    def loss_of(adapted, others):
      loss, stats = loss_fn(adapted, combine(others, fixed))
      return loss, partition(is_inexact(stats), stats)[0]

    def pull(adapted, cotangents):
      return jax.vjp(loss_of, adapted, others)[1](cotangents)

    one = jnp.ones_like(loss), jax.tree.map(jnp.zeros_like, stats)
    return jax.jvp(pull, (adapted, one), (direction, (loss, stats)))[1]

  loss_and_grad.defvjp(forward, backward)
  return loss_and_grad
