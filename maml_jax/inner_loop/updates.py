"""The update of the adapted parameters in one inner step.

Parameters and gradients are dicts from paths to arrays, without the frozen
ones; learned quantities are dicts from paths as in `learned`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from maml_jax.learner_config import InnerConfig
from maml_jax.types import Array

__all__ = ['Update', 'make_update']

Arrays = dict[str, Array]


class Update(NamedTuple):
  """An update rule as two pure functions.

  Attributes:
    init: `init(params) -> state`.
    apply: `apply(grads, state, params, learned) -> (params, state)`, with the
      learned quantities of the current step.
  """

  init: Callable
  apply: Callable


def make_update(config: InnerConfig, labels: dict[str, str]) -> Update:
  """Makes the update rule.

  Args:
    config: the settings of the inner loop.
    labels: from `param_labels`.
  """
  if config.rule == 'alfa':
    return Update(lambda params: (), _alfa)
  tx = _make_optimizer(config)

  def apply(grads, state, params, learned):
    if config.weight_decay:
      grads = {p: g + config.weight_decay * params[p] for p, g in grads.items()}
    if config.precondition == 'kronecker':
      grads = {p: _precondition(p, g, learned) for p, g in grads.items()}
    directions, state = tx.update(grads, state)
    return {
      path: x + _negative_rate(config, labels, path, learned) * directions[path]
      for path, x in params.items()
    }, state

  return Update(tx.init, apply)


def _make_optimizer(config: InnerConfig) -> optax.GradientTransformation:
  """Returns the transform from gradients to directions."""
  moments = {
    'sgd': optax.identity,
    'adam': lambda: optax.scale_by_adam(
      config.b1, config.b2, config.eps, config.eps_root
    ),
    'rmsprop': lambda: _scale_by_rms(config.b2, config.eps, config.eps_root),
  }[config.optimizer]()
  if config.momentum:
    return optax.chain(moments, optax.trace(config.momentum))
  return moments


def _scale_by_rms(decay, eps, eps_root) -> optax.GradientTransformation:
  """Returns PyTorch's RMSprop, with `eps_root` inside the square root."""

  def update(grads, squares, params=None):
    del params
    squares = jax.tree.map(
      lambda g, s: decay * s + (1 - decay) * jnp.square(g), grads, squares
    )
    directions = jax.tree.map(
      lambda g, s: g / (jnp.sqrt(s + eps_root) + eps), grads, squares
    )
    return directions, squares

  return optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params), update
  )


def _negative_rate(config, labels, path, learned):
  """Returns minus the learning rate of a parameter."""
  if config.learn_lr == 'none':
    fixed = {'encoder': config.encoder_lr, 'classifier': config.classifier_lr}
    return -fixed[labels[path]]
  name = labels[path] if config.learn_lr == 'group' else path
  return -learned[f'lr/{name}']


def _precondition(path: str, grad: Array, learned: Arrays) -> Array:
  """Multiplies a gradient by the learned matrices of its axes.

  Meta-Curvature, Park and Oliva 2019, arXiv 1902.03356, section 3.1, with all
  spatial axes of a convolution kernel as one.
  """
  prefix = f'precondition/{path}'
  if grad.ndim < 2:
    return learned[f'{prefix}/scale'] * grad
  result = jnp.einsum(
    'ij,ok,...jk->...io',
    learned[f'{prefix}/in'],
    learned[f'{prefix}/out'],
    grad,
  )
  if grad.ndim == 2:
    return result
  rows = result.reshape(-1, *grad.shape[-2:])
  rows = jnp.einsum('st,tio->sio', learned[f'{prefix}/spatial'], rows)
  return rows.reshape(grad.shape)


def _alfa(grads: Arrays, state, params: Arrays, learned: Arrays):
  """ALFA, Baik et al. 2020, arXiv 2011.00209, equations 3 to 5.

  A network maps the means of each tensor and of its gradient to factors of the
  rate and the weight decay of each tensor. Gradient means are constants.
  """
  if not params:
    return params, state
  paths = sorted(params)
  features = jnp.stack(
    [params[path].mean() for path in paths]
    + [lax.stop_gradient(grads[path].mean()) for path in paths]
  )
  mlp = {
    name: learned[f'alfa/mlp/{name}']
    for name in (
      'linear1/kernel',
      'linear1/bias',
      'linear2/kernel',
      'linear2/bias',
    )
  }
  hidden = jax.nn.relu(features @ mlp['linear1/kernel'] + mlp['linear1/bias'])
  factors = hidden @ mlp['linear2/kernel'] + mlp['linear2/bias']
  lr_factors, decay_factors = jnp.split(factors, 2)
  new = {}
  for i, path in enumerate(paths):
    lr = lr_factors[i] * learned[f'alfa/lr/{path}']
    decay = decay_factors[i] * learned[f'alfa/decay/{path}']
    new[path] = (1 - decay) * params[path] - lr * grads[path]
  return new, state
