"""The outer optimizer and its learning rate schedules, as in PyTorch."""

from collections.abc import Sequence

import jax.numpy as jnp
import optax

from maml_jax.inner_loop import flatten, path_matches, require_matches
from maml_jax.types import INNER
from maml_jax.utils.errors import UserError

__all__ = ['OPTIMIZERS', 'SCHEDULES', 'make_optimizer', 'make_schedule']

OPTIMIZERS = ('sgd', 'rmsprop', 'adam', 'adamw')
SCHEDULES = ('constant', 'step', 'cosine')


def make_schedule(
  lr: float,
  *,
  schedule: str = 'constant',
  milestones: Sequence[int] = (),
  gamma: float = 0.1,
  warmup_epochs: int = 0,
  steps_per_epoch: int = 1,
) -> optax.Schedule:
  """Makes a learning rate schedule that changes between epochs.

  Args:
    lr: the base learning rate, reached after the warmup, if any.
    schedule: 'constant'; 'step': multiplied by `gamma` at the start of each
      epoch in `milestones` (PyTorch's MultiStepLR); 'cosine': cosine annealing
      to 0 at the last of `milestones` (PyTorch's CosineAnnealingLR).
    milestones: epochs, counted from 0.
    gamma: the factor of 'step'.
    warmup_epochs: epochs of linear warmup from 0, which changes the rate in
      every meta-iteration.
    steps_per_epoch: meta-iterations per epoch.

  Returns:
    A function from the step, an int array [], to the rate, a float array [].

  Raises:
    UserError: the schedule is unknown or lacks milestones.
  """
  if schedule not in SCHEDULES:
    raise UserError(
      f'unknown outer.schedule {schedule!r} (choices: {", ".join(SCHEDULES)})'
    )
  if schedule != 'constant' and not milestones:
    raise UserError(f'outer.schedule={schedule!r} requires outer.milestones')

  def rate(step):
    epoch = step // steps_per_epoch
    factor = jnp.ones(())
    if schedule == 'step':
      factor = gamma ** (epoch >= jnp.asarray(milestones)).sum()
    elif schedule == 'cosine':
      factor = (1 + jnp.cos(jnp.pi * epoch / milestones[-1])) / 2
    warmup_steps = warmup_epochs * steps_per_epoch
    if warmup_steps:
      factor = factor * jnp.minimum(1.0, (step + 1) / warmup_steps)
    return lr * factor

  return rate


def make_optimizer(
  optimizer: str,
  learning_rate: float | optax.Schedule,
  *,
  momentum: float = 0.9,
  weight_decay: float = 0.0,
  clip_value: float | None = None,
  lr_scale: Sequence[tuple[str, float]] = (),
) -> optax.GradientTransformation:
  """Makes the outer optimizer: clipping, weight decay, then the update rule.

  Args:
    optimizer: 'sgd', with `momentum`; 'rmsprop', with decay 0.99 and epsilon
      1e-8 outside the square root; 'adam'; or 'adamw'.
    learning_rate: a float or a schedule.
    momentum: momentum of 'sgd'.
    weight_decay: L2 penalty, added to the clipped gradient; decoupled for
      'adamw'. It does not apply to learned quantities of the inner loop.
    clip_value: clip each component of the gradient to +-clip_value; None:
      never.
    lr_scale: (pattern, factor) pairs; the first pattern that matches the path
      of a parameter, as in `inner_loop.path_matches`, scales its updates.

  Returns:
    An `optax.GradientTransformation`.

  Raises:
    UserError: the optimizer is unknown; or, in its `init`, a pattern of
      `lr_scale` matches no parameter.
  """
  rules = {
    'sgd': lambda: optax.trace(momentum) if momentum else optax.identity(),
    'rmsprop': lambda: optax.scale_by_rms(0.99, eps_in_sqrt=False),
    'adam': optax.scale_by_adam,
    'adamw': optax.scale_by_adam,
  }
  if optimizer not in rules:
    raise UserError(
      f'unknown outer.optimizer {optimizer!r} '
      f'(choices: {", ".join(OPTIMIZERS)})'
    )
  transforms = [rules[optimizer]()]
  if weight_decay:
    index = 1 if optimizer == 'adamw' else 0
    transforms.insert(
      index, optax.add_decayed_weights(weight_decay, _is_decayed)
    )
  if clip_value is not None:
    transforms.insert(0, optax.clip(clip_value))
  transforms.append(optax.scale_by_learning_rate(learning_rate))
  if lr_scale:
    transforms.append(_scale_by_path(lr_scale))
  return optax.chain(*transforms)


def _is_decayed(params):
  """Returns a mask of the parameters that weight decay applies to."""
  flat, unflatten = flatten(params)
  return unflatten({p: not p.startswith(f'{INNER}/') for p in flat})


def _scale_by_path(lr_scale) -> optax.GradientTransformation:
  """Scales updates by the factor of the first pattern that matches."""

  def factor(path):
    return next((f for p, f in lr_scale if path_matches(p, path)), 1.0)

  def init(params):
    patterns = [pattern for pattern, _ in lr_scale]
    require_matches('outer.lr_scale', patterns, flatten(params)[0])
    return optax.EmptyState()

  def update(updates, state, params=None):
    del params
    flat, unflatten = flatten(updates)
    scaled = {path: factor(path) * x for path, x in flat.items()}
    return unflatten(scaled), state

  return optax.GradientTransformation(init, update)
