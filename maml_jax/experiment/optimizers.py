"""The outer optimiser and its schedules, as PyTorch defines them."""

import jax.numpy as jnp
import optax

from maml_jax.utils.errors import UserError

OPTIMIZERS = ('sgd', 'rmsprop', 'adam', 'adamw')
SCHEDULES = ('constant', 'step', 'cosine')


def make_schedule(
  lr,
  *,
  schedule='constant',
  milestones=(),
  gamma=0.1,
  warmup_epochs=0,
  steps_per_epoch=1,
):
  """The learning rate of every meta-iteration, constant within an epoch.

  Args:
    lr: the learning rate to start from.
    schedule: 'constant'; 'step': times `gamma` at the start of every epoch in
      `milestones`; 'cosine': down to 0 at the last of `milestones`, PyTorch's
      CosineAnnealingLR.
    milestones: epochs, counted from 0.
    gamma: factor of 'step'.
    warmup_epochs: epochs over which the rate first rises linearly from
      near 0, step by step.
    steps_per_epoch: meta-iterations per epoch.

  Returns:
    A function of the step, an int array [], to the rate, a float array [].

  Raises:
    UserError: an unknown schedule, or one without milestones.
  """
  if schedule not in SCHEDULES:
    raise UserError(
      f'unknown outer.schedule {schedule!r} (choices: {", ".join(SCHEDULES)})'
    )
  if schedule != 'constant' and not milestones:
    raise UserError(f'outer.schedule={schedule!r} needs outer.milestones')

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
  optimizer, learning_rate, *, momentum=0.9, weight_decay=0.0, clip_value=None
):
  """The outer optimiser: clip by value, L2, then the update rule.

  Args:
    optimizer: 'sgd', with `momentum`; 'rmsprop', decay 0.99, epsilon 1e-8
      outside the root; 'adam'; or 'adamw'.
    learning_rate: a float or a schedule.
    momentum: of 'sgd'.
    weight_decay: L2 added to the clipped gradient; under 'adamw' decoupled.
    clip_value: gradients are clipped to +-clip_value elementwise; None: never.

  Returns:
    An `optax.GradientTransformation`.

  Raises:
    UserError: an unknown optimiser.
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
  parts = [rules[optimizer]()]
  if weight_decay:
    place = 1 if optimizer == 'adamw' else 0
    parts.insert(place, optax.add_decayed_weights(weight_decay))
  if clip_value is not None:
    parts.insert(0, optax.clip(clip_value))
  return optax.chain(*parts, optax.scale_by_learning_rate(learning_rate))
