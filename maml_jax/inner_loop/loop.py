"""Adaptation to one support set: a scan over inner steps."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from maml_jax.inner_loop.learned import split_learned, split_per_step
from maml_jax.inner_loop.mixed_mode import mixed_mode_value_and_grad
from maml_jax.inner_loop.parameters import param_labels, split_adapted
from maml_jax.inner_loop.updates import make_update
from maml_jax.learner_config import InnerConfig
from maml_jax.types import Array, PyTree

__all__ = ['adapt', 'adapt_and_observe']


def adapt(
  loss_fn: Callable,
  config: InnerConfig,
  params: PyTree,
  stats: PyTree,
  support: PyTree,
  *,
  first_order: bool = False,
  observe: Callable | None = None,
) -> tuple[PyTree, PyTree, Array, PyTree]:
  """Fits `params` to one support set.

  Args:
    loss_fn: `loss_fn(params, stats, support) -> (loss [], stats)`, the mean
      loss over the support set and the statistics after this pass.
    config: the settings of the inner loop.
    params: the meta-parameters.
    stats: the statistics at the start of the task.
    support: a `Batch` of W*S images, or any pytree that `loss_fn` takes.
    first_order: treat the inner gradients as constants in derivatives (FOMAML).
      Weight decay and momentum still carry derivatives.
    observe: `observe(params, stats) -> pytree of arrays`, called after each
      step and differentiable; recomputed with its step if `config.remat`.

  Returns:
    params (without learned quantities) and stats after K steps; losses [K],
    each before its step; and the observations, each leaf with a leading axis K,
    or None.

  Raises:
    UserError: a pattern of `config.frozen` matches no parameter.
  """
  loop = _make_loop(loss_fn, config, params, stats, support, first_order)

  def step(carry, rows):
    carry, loss = loop.step(carry, rows)
    seen = observe and observe(*loop.unpack(carry, rows))
    return carry, (loss, seen)

  if not config.num_steps:  # op by op, scans cannot be empty
    return *loop.unpack(loop.carry, {}), jnp.zeros(0), None
  step = _checkpoint(config, step)
  carry, (losses, seen) = lax.scan(
    step,
    loop.carry,
    loop.rows,
    length=config.num_steps,
    unroll=config.num_steps if config.unroll and not config.remat else 1,
  )
  last_row = jax.tree.map(lambda x: x[-1], loop.rows)
  return *loop.unpack(carry, last_row), losses, seen


def adapt_and_observe(
  loss_fn: Callable,
  config: InnerConfig,
  params: PyTree,
  stats: PyTree,
  support: PyTree,
  observe: Callable,
  at: tuple[int, ...] | None = None,
) -> PyTree:
  """Fits `params` to one support set and observes intermediate steps.

  Args:
    loss_fn: see `adapt`.
    config: see `adapt`.
    params: see `adapt`.
    stats: see `adapt`.
    support: see `adapt`.
    observe: `observe(params, stats) -> pytree of arrays`.
    at: the step counts after which to observe, ascending, in 0..K; default
      all of them.

  Returns:
    The observations; each leaf has a leading axis of the length of `at`.

  Raises:
    UserError: a pattern of `config.frozen` matches no parameter.
  """
  at = tuple(range(config.num_steps + 1)) if at is None else tuple(at)
  loop = _make_loop(loss_fn, config, params, stats, support, False)
  step = _checkpoint(config, loop.step)

  def step_and_observe(carry, xs):
    (inner, last), (is_observed, rows) = carry, xs
    inner, _ = step(inner, rows)
    seen = lax.cond(
      is_observed,
      lambda inner: observe(*loop.unpack(inner, rows)),
      lambda _: last,
      inner,
    )
    return (inner, seen), seen

  seen = observe(*loop.unpack(loop.carry, {}))
  is_observed = jnp.isin(jnp.arange(1, max(at) + 1), jnp.array(at))
  rows = jax.tree.map(lambda x: x[: max(at)], loop.rows)
  _, later = lax.scan(step_and_observe, (loop.carry, seen), (is_observed, rows))
  return jax.tree.map(
    lambda x, y: jnp.concatenate([x[None], y])[jnp.array(at)], seen, later
  )


class _Loop(NamedTuple):
  """The parts of the scan over inner steps.

  Attributes:
    step: `step(carry, rows) -> (carry, loss)`.
    carry: the first carry.
    rows: learned quantities of each step, {path: [K, ...]}.
    unpack: `unpack(carry, rows) -> (params, stats)`, as the model takes them,
      with the parameters that belong to a step from its `rows`, or else from
      the first.
  """

  step: Callable
  carry: tuple
  rows: dict[str, Array]
  unpack: Callable


def _make_loop(loss_fn, config, params, stats, support, first_order) -> _Loop:
  params, learned = split_learned(params)
  constant, rows = split_per_step(config, learned)
  combine, start, frozen = split_adapted(config, params)
  update = make_update(config, param_labels(config, params))

  def loss_of(adapted, others):
    frozen, stats, support = others
    return loss_fn(combine(adapted, frozen), stats, support)

  loss_and_grad = jax.value_and_grad(loss_of, has_aux=True)
  if config.mixed_mode and not first_order:
    loss_and_grad = mixed_mode_value_and_grad(loss_of)

  def frozen_at(rows):
    """Returns the frozen parameters, with those that belong to a step."""
    return {p: rows.get(f'per_step/{p}', x) for p, x in frozen.items()}

  def step(carry, rows):
    adapted, stats, state = carry
    others = frozen_at(rows), stats, support
    (loss, stats), grads = loss_and_grad(adapted, others)
    if first_order:
      grads = lax.stop_gradient(grads)
    if config.proximal:
      grads = {
        p: g + config.proximal * (adapted[p] - start[p])
        for p, g in grads.items()
      }
    adapted, state = update.apply(grads, state, adapted, constant | rows)
    return (adapted, stats, state), loss

  def unpack(carry, rows):
    adapted, stats, _ = carry
    return combine(adapted, frozen_at(rows)), stats

  return _Loop(step, (start, stats, update.init(start)), rows, unpack)


def _checkpoint(config: InnerConfig, step: Callable) -> Callable:
  return jax.checkpoint(step, prevent_cse=False) if config.remat else step
