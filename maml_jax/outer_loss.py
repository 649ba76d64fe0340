"""Losses of the outer loop: multi-step, Reptile and implicit gradients.

A gradient that is not the derivative of the query
loss is that of a surrogate, a function with the value of the query loss.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.scipy.sparse.linalg import cg

from maml_jax import inner_loop
from maml_jax.learner_config import InnerConfig, OuterConfig
from maml_jax.types import SUPPORT, Array, PyTree
from maml_jax.utils.errors import UserError

__all__ = [
  'implicit_loss',
  'reptile_surrogate',
  'step_weights',
]

# The smallest weight of a step in the multi-step loss, times K.
MIN_STEP_WEIGHT = 0.03


def step_weights(num_steps: int, epoch: int | Array, loss_epochs: int) -> Array:
  """Returns the weights of the query losses after each inner step: [K].

  MAML++, Antoniou et al. 2019, arXiv 1810.09502, section 4, as in its authors'
  code: at epoch e of E, each step but the last has max(1/K - e/(K E), 0.03/K),
  and the last one the rest; from epoch E on the last one has all.

  Args:
    num_steps: K.
    epoch: e, a number or a traced array.
    loss_epochs: E.
  """
  # A traced int32 would be divided in float32, whatever the default dtype.
  epoch = jnp.asarray(epoch, jnp.result_type(float))
  share = 1 - epoch / loss_epochs
  early = jnp.maximum(share, MIN_STEP_WEIGHT) / num_steps
  early = jnp.where(epoch < loss_epochs, early, 0.0)
  last = 1 - (num_steps - 1) * early
  return jnp.append(jnp.full(num_steps - 1, early), last)


def reptile_surrogate(start: PyTree, adapted: PyTree) -> jax.Array:
  """Returns 0 with the gradient `start - adapted` with respect to `start`.

  Reptile, Nichol et al. 2018, arXiv 1803.02999, algorithm 2.
  """
  difference = jax.tree.map(
    lambda x, y: lax.stop_gradient(x - y), start, adapted
  )
  return _zero_with_gradient(difference, start)


def implicit_loss(
  support_loss: Callable,
  score_query: Callable,
  first: tuple[PyTree, PyTree],
  adapted: tuple[PyTree, PyTree],
  inner: InnerConfig,
  outer: OuterConfig,
) -> tuple[Array, Array]:
  """Returns the outer loss of iMAML, and the residual of its linear system.

  The residual is relative to the right-hand side, see `_implicit_surrogate`.

  Args:
    support_loss: `support_loss(params, stats) -> (loss [], stats)`.
    score_query: `score_query(params, stats) -> (loss [], metrics)`.
    first: parameters and statistics that the task starts from.
    adapted: those after the inner loop.
    inner: the settings of the inner loop.
    outer: the settings of the outer loss.

  Raises:
    UserError: no parameter is adapted, or a statistic depends on the
      parameters with a derivative.
  """
  (first_params, first_stats), (params, stats) = first, adapted
  combine, start_adapted, others = inner_loop.split_adapted(inner, first_params)
  if not start_adapted:
    raise UserError(
      f'outer.gradient=implicit: inner.frozen={inner.frozen} leaves no '
      'parameter to adapt'
    )
  _require_constant_stats(
    lambda *args: support_loss(combine(*args), first_stats)[1],
    start_adapted,
    others,
  )
  return _implicit_surrogate(
    lambda *args: support_loss(combine(*args), stats)[0],
    lambda *args: score_query(combine(*args), stats)[0],
    start_adapted,
    inner_loop.split_adapted(inner, params)[1],
    others,
    inner.proximal,
    outer,
  )


def _implicit_surrogate(
  support_loss: Callable,
  query_loss: Callable,
  start: PyTree,
  adapted: PyTree,
  others: PyTree,
  proximal: float,
  outer: OuterConfig,
) -> tuple[jax.Array, jax.Array]:
  """Returns the query loss with the implicit gradient, and the residual.

  iMAML, Rajeswaran et al. 2019, arXiv 1909.04630, equation 6. With H the
  Hessian of the support loss at the adapted parameters phi and lambda =
  `proximal`, conjugate gradients solve

      (I + H / lambda + damping I) v = gradient of the query loss at phi.

  v is the gradient with respect to the initial parameters, and -v / lambda
  times the mixed second derivative that with respect to parameters which are
  not adapted. Memory does not depend on the number of inner steps.

  Args:
    support_loss: `support_loss(phi, others) -> []`, without the proximal term.
    query_loss: `query_loss(phi, others) -> []`.
    start: the adapted parameters before the inner loop.
    adapted: phi, the same after it.
    others: the parameters that are not adapted.
    proximal: lambda.
    outer: with `cg_steps` and `cg_damping`.

  Returns:
    The query loss; and the norm of the residual of the linear system relative
    to that of its right-hand side.
  """
  slope = jax.grad(support_loss)
  phi, fixed = lax.stop_gradient((adapted, others))

  def system(v):
    hv = jax.jvp(lambda phi: slope(phi, fixed), (phi,), (v,))[1]
    return jax.tree.map(
      lambda v, hv: (1 + outer.cg_damping) * v + hv / proximal, v, hv
    )

  target = jax.grad(query_loss)(phi, fixed)
  tolerance = float(jnp.finfo(jnp.result_type(*jax.tree.leaves(phi))).eps)
  v, _ = cg(system, target, target, tol=tolerance, maxiter=outer.cg_steps)
  v = lax.stop_gradient(v)
  error = jax.tree.map(jnp.subtract, system(v), target)
  residual = _norm(error) / jnp.maximum(_norm(target), 1e-30)
  loss = query_loss(phi, others) + _zero_with_gradient(v, start)
  if others:
    mixed = jax.tree.map(lambda v: -v / proximal, v)
    loss += _zero_with_gradient(mixed, slope(phi, others))
  return loss, lax.stop_gradient(residual)


def _require_constant_stats(
  stats_fn: Callable, adapted: PyTree, others: PyTree
) -> None:
  """Checks that statistics have no derivative, which 'implicit' would drop.

  Statistics under `types.SUPPORT` are not checked, because they are computed
  again after the inner loop.

  Args:
    stats_fn: `stats_fn(adapted, others) -> stats` of one support pass.
    adapted: the parameters that the inner loop adapts.
    others: all other parameters.

  Raises:
    UserError: a statistic depends on the parameters with a derivative.
  """

  def checked(*params):
    stats = stats_fn(*params)
    if isinstance(stats, dict):
      stats = {key: x for key, x in stats.items() if key != SUPPORT}
    return jax.tree.map(_require_no_tangent, stats)

  params = adapted, others
  jax.eval_shape(lambda: jax.jvp(checked, params, params))


@jax.custom_jvp
def _require_no_tangent(x):
  return x


def _raise_if_tangent(primals, tangents):
  if not isinstance(tangents[0], SymbolicZero):
    raise UserError(
      'outer.gradient=implicit cannot be combined with statistics that carry '
      'derivatives: apply jax.lax.stop_gradient to them in Model.apply'
    )
  return primals[0], tangents[0]


_require_no_tangent.defjvp(_raise_if_tangent, symbolic_zeros=True)


def _zero_with_gradient(gradient: PyTree, x: PyTree) -> jax.Array:
  """Returns 0, whose gradient with respect to `x` is `gradient`."""
  products = jax.tree.map(
    lambda g, x: (g * (x - lax.stop_gradient(x))).sum(), gradient, x
  )
  return jax.tree.reduce(jnp.add, products)


def _norm(tree: PyTree) -> jax.Array:
  return jnp.sqrt(sum(jnp.vdot(x, x) for x in jax.tree.leaves(tree)))
