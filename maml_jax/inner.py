"""The inner loop: K steps of gradient descent on the support set of one task.

MAML, Finn et al. 2017, arXiv 1703.03400, equation 1, with momentum, weight
decay, two learning rates and frozen parameters as in PyTorch-MAML.
"""

import fnmatch
from dataclasses import dataclass

import jax
import optax
from jax import lax

from maml_jax.errors import UserError

# Parameters that only the outer loop trains, wherever they occur.
OUTER_ONLY = ('temperature', 'alpha_scale', 'alpha_offset')


@dataclass(frozen=True)
class InnerConfig:
  """What the inner loop does.

  Attributes:
    num_steps: K, gradient steps per task.
    encoder_lr: learning rate of all parameters but the head.
    classifier_lr: learning rate of the parameters below 'classifier'.
    momentum: of SGD (heavy ball; the buffer starts at 0 in every task).
    weight_decay: L2, added to the gradient before momentum.
    first_order: take the inner gradients as constants in the outer gradient
      (FOMAML). Weight decay and momentum still carry derivatives.
    frozen: patterns of parameters left out of adaptation: slash-separated
      globs matched against consecutive parts of a path such as
      'encoder/conv1/bn/scale'. 'bn' matches every batch norm, 'encoder' the
      whole encoder, 'conv[12]/conv' two convolutions.
    reset_classifier: the head starts every task at zero.
    remat: recompute each step in the backward pass rather than store it, so
      that memory does not grow with `num_steps` but for the parameters.
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


def matches(pattern: str, path: str) -> bool:
  """Whether the parts of `pattern` match consecutive parts of `path`."""
  globs, parts = pattern.split('/'), path.split('/')
  return any(
      all(map(fnmatch.fnmatchcase, parts[i:], globs))
      for i in range(len(parts) - len(globs) + 1)
  )


def param_labels(config, params):
  """Says for each parameter: 'encoder', 'classifier' or 'frozen'.

  Args:
    config: an `InnerConfig`.
    params: a pytree of nested dicts.

  Returns:
    A pytree of strings shaped like `params`.

  Raises:
    UserError: a pattern of `config.frozen` matches no parameter.
  """
  paths = {
      jax.tree_util.keystr(path, simple=True, separator='/')
      for path, _ in jax.tree_util.tree_leaves_with_path(params)
  }
  for pattern in config.frozen:
    if not any(matches(pattern, path) for path in paths):
      raise UserError(
          f'inner.frozen: {pattern!r} matches no parameter; there are '
          + ', '.join(sorted(paths))
      )

  def label(path, _):
    path = jax.tree_util.keystr(path, simple=True, separator='/')
    if any(matches(pattern, path) for pattern in config.frozen + OUTER_ONLY):
      return 'frozen'
    return 'classifier' if path.startswith('classifier/') else 'encoder'

  return jax.tree_util.tree_map_with_path(label, params)


def inner_optimizer(config, labels):
  """SGD with one learning rate for the encoder and one for the rest.

  Args:
    config: an `InnerConfig`.
    labels: from `param_labels`.

  Returns:
    An `optax.GradientTransformation` for parameters shaped like `labels`,
    with None in the place of frozen ones.
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
  return optax.partition(groups, _keep(labels, labels))


def reset_classifier(params):
  """Sets the head to zero, but lets its gradient through.

  The gradient at the zero head is what PyTorch-MAML's outer optimiser sees.
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
    params, stats after K steps, and losses [K], each before its step.

  Raises:
    UserError: a pattern of `config.frozen` matches no parameter.
  """
  labels = param_labels(config, params)
  tx = inner_optimizer(config, labels)

  def loss_of(adapted, stats):
    return loss_fn(_merge(labels, adapted, params), stats, support)

  def step(carry, _):
    adapted, stats, opt_state = carry
    (loss, stats), grads = jax.value_and_grad(loss_of, has_aux=True)(
        adapted, stats
    )
    if config.first_order:
      grads = lax.stop_gradient(grads)
    updates, opt_state = tx.update(grads, opt_state, adapted)
    return (optax.apply_updates(adapted, updates), stats, opt_state), loss

  if config.remat:
    step = jax.checkpoint(step, prevent_cse=False)
  if config.reset_classifier:
    params = reset_classifier(params)
  adapted = _keep(labels, params)
  (adapted, stats, _), losses = lax.scan(
      step, (adapted, stats, tx.init(adapted)), length=config.num_steps
  )
  return _merge(labels, adapted, params), stats, losses


def _keep(labels, params):
  """`params` with None in the place of frozen ones."""
  return jax.tree.map(
      lambda label, p: None if label == 'frozen' else p, labels, params
  )


def _merge(labels, adapted, params):
  """`adapted`, with frozen parameters filled in from `params`."""
  return jax.tree.map(
      lambda label, p, a: p if label == 'frozen' else a,
      labels,
      params,
      adapted,
      is_leaf=lambda x: x is None,
  )
