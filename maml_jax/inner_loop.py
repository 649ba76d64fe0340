"""The inner loop: K steps of gradient descent on the support set of one task.

MAML, Finn et al. 2017, arXiv 1703.03400, equation 1, with momentum, weight
decay, two learning rates and frozen parameters as in PyTorch-MAML.
"""

import fnmatch
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jax import lax

from maml_jax.utils.errors import UserError

__all__ = [
  'OUTER_ONLY',
  'InnerConfig',
  'adapt',
  'adapt_and_observe',
  'inner_optimizer',
  'param_labels',
  'path_matches',
  'reset_head',
]

# Parameters that only the outer loop trains, wherever they occur.
OUTER_ONLY = ('temperature', 'alpha_scale', 'alpha_offset')


@dataclass(frozen=True)
class InnerConfig:
  """Settings of the inner loop.

  Attributes:
    num_steps: K, gradient steps per task.
    encoder_lr: learning rate of all parameters except the head.
    classifier_lr: learning rate of the parameters under 'classifier'.
    momentum: SGD momentum (heavy ball; the buffer starts at 0 in every task).
    weight_decay: L2 penalty, added to the gradient before momentum.
    first_order: treat the inner gradients as constants in the outer gradient
      (FOMAML). Weight decay and momentum still carry derivatives.
    frozen: patterns of parameters that are not adapted: slash-separated globs,
      matched against consecutive parts of a path such as
      'encoder/conv1/bn/scale'. 'bn' matches every batch norm, 'encoder' the
      whole encoder, 'conv[12]/conv' two convolutions.
    reset_classifier: start every task with a zero head.
    remat: recompute each step in the backward pass instead of storing it, so
      that activation memory does not grow with `num_steps`.
    mixed_mode: compute second derivatives in forward-over-reverse mode, which
      stores as little as `remat`; see `_mixed_mode`. Ignored if `first_order`.
  """

  num_steps: int = 5
  encoder_lr: float = 0.01
  classifier_lr: float = 0.01
  momentum: float = 0.0
  weight_decay: float = 0.0
  first_order: bool = False
  frozen: tuple[str, ...] = ()
  reset_classifier: bool = False
  remat: bool = True
  mixed_mode: bool = False


def path_matches(pattern: str, path: str) -> bool:
  """Returns whether `pattern` matches consecutive parts of `path`."""
  globs, parts = pattern.split('/'), path.split('/')
  return any(
    all(map(fnmatch.fnmatchcase, parts[i:], globs))
    for i in range(len(parts) - len(globs) + 1)
  )


def param_labels(config, params):
  """Labels each parameter 'encoder', 'classifier' or 'frozen'.

  Args:
    config: an `InnerConfig`.
    params: a pytree of nested dicts.

  Returns:
    A pytree of strings with the structure of `params`.

  Raises:
    UserError: a pattern of `config.frozen` matches no parameter.
  """
  paths = {
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, _ in jax.tree_util.tree_leaves_with_path(params)
  }
  for pattern in config.frozen:
    if not any(path_matches(pattern, path) for path in paths):
      raise UserError(
        f'inner.frozen: {pattern!r} matches no parameter; available: '
        + ', '.join(sorted(paths))
      )

  def label(path, _):
    path = jax.tree_util.keystr(path, simple=True, separator='/')
    patterns = config.frozen + OUTER_ONLY
    if any(path_matches(pattern, path) for pattern in patterns):
      return 'frozen'
    return 'classifier' if path.startswith('classifier/') else 'encoder'

  return jax.tree_util.tree_map_with_path(label, params)


def inner_optimizer(config, labels):
  """Returns SGD with separate learning rates for encoder and head.

  Args:
    config: an `InnerConfig`.
    labels: from `param_labels`.

  Returns:
    An `optax.GradientTransformation` for parameters shaped like `labels`,
    with None in place of the frozen ones.
  """

  def sgd(learning_rate):
    return optax.chain(
      optax.add_decayed_weights(config.weight_decay)
      if config.weight_decay
      else optax.identity(),
      optax.trace(config.momentum) if config.momentum else optax.identity(),
      optax.scale(-learning_rate),
    )

  groups = {
    'encoder': sgd(config.encoder_lr),
    'classifier': sgd(config.classifier_lr),
  }
  adapted, _ = _partition(_is_adapted(labels), labels)
  return optax.partition(groups, adapted)


def reset_head(params):
  """Sets the head to zero but lets its gradient through.

  PyTorch-MAML's outer optimizer sees the gradient at the zero head.
  """
  head = {k: v for k, v in params['classifier'].items() if k not in OUTER_ONLY}
  zero = jax.tree.map(lambda p: p - lax.stop_gradient(p), head)
  return {**params, 'classifier': {**params['classifier'], **zero}}


def adapt(loss_fn, config, params, stats, support):
  """Fits `params` to one support set.

  Args:
    loss_fn: `loss_fn(params, stats, support) -> (loss [], stats)`, the mean
      loss over the support set and the statistics after this pass.
    config: an `InnerConfig`.
    params: the meta-parameters.
    stats: the statistics at the start of the task.
    support: a `Batch` of W*S images, or any pytree that `loss_fn` takes.

  Returns:
    params and stats after K steps, and losses [K], each before its step.

  Raises:
    UserError: a pattern of `config.frozen` matches no parameter.
  """
  step, carry, unpack = _make_step(loss_fn, config, params, stats, support)
  carry, losses = lax.scan(step, carry, length=config.num_steps)
  return *unpack(carry), losses


def adapt_and_observe(
  loss_fn, config, params, stats, support, observe, at=None
):
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
  step, carry, unpack = _make_step(loss_fn, config, params, stats, support)

  def observe_carry(carry):
    return observe(*unpack(carry))

  def step_and_observe(carry, is_observed):
    inner, last = carry
    inner, _ = step(inner, None)
    seen = lax.cond(is_observed, observe_carry, lambda _: last, inner)
    return (inner, seen), seen

  seen = observe_carry(carry)
  is_observed = jnp.isin(jnp.arange(1, max(at) + 1), jnp.array(at))
  _, later = lax.scan(step_and_observe, (carry, seen), is_observed)
  return jax.tree.map(
    lambda x, y: jnp.concatenate([x[None], y])[jnp.array(at)], seen, later
  )


def _make_step(loss_fn, config, params, stats, support):
  """Returns the body of the scan, its first carry, and `unpack`.

  `unpack(carry)` returns the params and stats in a carry.
  """
  labels = param_labels(config, params)
  tx = inner_optimizer(config, labels)

  def loss_of(adapted, others):
    frozen, stats, support = others
    return loss_fn(_combine(adapted, frozen), stats, support)

  loss_and_grad = jax.value_and_grad(loss_of, has_aux=True)
  if config.mixed_mode and not config.first_order:
    loss_and_grad = _mixed_mode(loss_of)

  def step(carry, _):
    adapted, stats, opt_state = carry
    (loss, stats), grads = loss_and_grad(adapted, (frozen, stats, support))
    if config.first_order:
      grads = lax.stop_gradient(grads)
    updates, opt_state = tx.update(grads, opt_state, adapted)
    return (optax.apply_updates(adapted, updates), stats, opt_state), loss

  def unpack(carry):
    adapted, stats, _ = carry
    return _combine(adapted, frozen), stats

  if config.remat:
    step = jax.checkpoint(step, prevent_cse=False)
  if config.reset_classifier:
    params = reset_head(params)
  adapted, frozen = _partition(_is_adapted(labels), params)
  return step, (adapted, stats, tx.init(adapted)), unpack


def _mixed_mode(loss_fn):
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
    others, fixed = _partition(_is_inexact(others), others)
    (loss, stats), direction = cotangents
    stats, _ = _partition(_is_inexact(stats), stats)

    def loss_of(adapted, others):
      loss, stats = loss_fn(adapted, _combine(others, fixed))
      return loss, _partition(_is_inexact(stats), stats)[0]

    def pull(adapted, cotangents):
      return jax.vjp(loss_of, adapted, others)[1](cotangents)

    one = jnp.ones_like(loss), jax.tree.map(jnp.zeros_like, stats)
    return jax.jvp(pull, (adapted, one), (direction, (loss, stats)))[1]

  loss_and_grad.defvjp(forward, backward)
  return loss_and_grad


def _is_adapted(labels):
  """Returns a mask of the parameters that the inner loop changes."""
  return jax.tree.map(lambda label: label != 'frozen', labels)


def _is_inexact(tree):
  """Returns a mask of the leaves that have derivatives, unlike integers."""
  return jax.tree.map(lambda x: jnp.issubdtype(x.dtype, jnp.inexact), tree)


def _partition(mask, tree):
  """Splits a tree by `mask` into two, with None in place of missing leaves."""
  return (
    jax.tree.map(lambda selected, x: x if selected else None, mask, tree),
    jax.tree.map(lambda selected, x: None if selected else x, mask, tree),
  )


def _combine(first, second):
  """Inverts `_partition`."""
  return jax.tree.map(
    lambda x, y: y if x is None else x,
    first,
    second,
    is_leaf=lambda x: x is None,
  )
