"""Settings of the inner loop and of the outer loss.

They combine freely; those that exclude each other are errors. This module does
not import JAX, because configs are checked before it is loaded.
"""

from dataclasses import dataclass, replace

from maml_jax.utils.errors import UserError, check_choice

__all__ = [
  'INNER_CHOICES',
  'OUTER_CHOICES',
  'InnerConfig',
  'OuterConfig',
  'check_settings',
]

INNER_CHOICES = {
  'optimizer': ('sgd', 'adam', 'rmsprop'),
  'head': ('learned', 'zero', 'prototype'),
  'learn_lr': ('none', 'group', 'tensor', 'parameter'),
  'precondition': ('none', 'kronecker'),
  'rule': ('none', 'alfa'),
  'class_weights': ('none', 'balanced'),
}
OUTER_CHOICES = {
  'gradient': ('exact', 'first_order', 'reptile', 'implicit'),
  'loss_steps': ('last', 'all'),
}


@dataclass(frozen=True)
class InnerConfig:
  """Settings of the inner loop.

  One step computes, for each adapted parameter p with support gradient g,

      g = g + proximal * (p - start) + weight_decay * p
      g = preconditioner(g)
      d = optimizer(g)                        # momentum, Adam or RMSprop
      p = p - lr * d

  All of it carries derivatives unless the outer gradient is first order.

  Attributes:
    num_steps: K, gradient steps per task.
    encoder_lr: learning rate of all parameters except the head; the initial
      value if rates are learned.
    classifier_lr: learning rate of the parameters under 'classifier'.
    momentum: of SGD and RMSprop (heavy ball; starts at 0 in every task).
    weight_decay: L2 penalty, added to the gradient.
    optimizer: 'sgd'; 'adam', or 'rmsprop' with decay `b2`, whose moments start
      at 0 in every task.
    b1: decay of Adam's first moment.
    b2: decay of the second moment.
    eps: added to the square root of the second moment.
    eps_root: added to the second moment inside the square root. With 0, second
      derivatives are NaN where a gradient is exactly 0.
    frozen: patterns of parameters that are not adapted: slash-separated globs,
      matched against consecutive parts of a path such as
      'encoder/conv1/bn/scale'. 'bn' matches every batch norm, 'encoder' the
      whole encoder, 'conv[12]/conv' two convolutions. Patterns that start with
      '!' freeze all parameters that none of them matches.
    head: how the head starts in every task: 'learned', from meta-learned
      parameters; 'zero'; or 'prototype', from the class means of the support
      features (ProtoMAML).
    zero: patterns of parameters that start at 0 in every task (CAVIA).
    learn_lr: learning rates that the outer loop learns: 'none'; one per
      'group' (encoder, classifier), per 'tensor', or per 'parameter', that is
      per entry (Meta-SGD).
    lr_bounds: (lowest, highest) learned rate; () for no bounds. The trainer
      projects onto them after each outer update.
    per_step: 'lr' for separate learned rates in each step, and patterns of
      frozen parameters that have separate values in each step (MAML++). Further
      steps than those trained use the values of the last one.
    precondition: 'kronecker' multiplies gradients by learned matrices per axis
      (Meta-Curvature); 'none'.
    rule: 'alfa' replaces the update by that of ALFA; 'none'.
    proximal: lambda of the penalty lambda / 2 * |p - start|^2 (iMAML).
    class_weights: 'balanced' weights the support loss inversely to the number
      of examples of a class; 'none'.
    remat: recompute each step in the backward pass instead of storing it, so
      that activation memory does not grow with `num_steps`.
    unroll: compile each step separately instead of a loop. On accelerators,
      this saves the copies of what the loop stores for its derivatives;
      compilation takes longer. Ignored with `remat`, where XLA would recompute
      all steps at once.
    mixed_mode: compute second derivatives in forward-over-reverse mode, which
      stores as little as `remat`; see `mixed_mode`. Ignored in first order.

  Raises:
    UserError: an unknown value, or settings that exclude each other.
  """

  num_steps: int = 5
  encoder_lr: float = 0.01
  classifier_lr: float = 0.01
  momentum: float = 0.0
  weight_decay: float = 0.0
  optimizer: str = 'sgd'
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  eps_root: float = 1e-8
  frozen: tuple[str, ...] = ()
  head: str = 'learned'
  zero: tuple[str, ...] = ()
  learn_lr: str = 'none'
  lr_bounds: tuple[float, ...] = ()
  per_step: tuple[str, ...] = ()
  precondition: str = 'none'
  rule: str = 'none'
  proximal: float = 0.0
  class_weights: str = 'none'
  remat: bool = True
  unroll: bool = False
  mixed_mode: bool = False

  def __post_init__(self):
    for name, choices in INNER_CHOICES.items():
      check_choice(f'inner.{name}', getattr(self, name), choices)
    for name in ('frozen', 'zero', 'per_step'):
      if isinstance(patterns := getattr(self, name), str):
        raise UserError(
          f'inner.{name}={patterns!r}: must be a tuple, such as ({patterns!r},)'
        )
    for reason, is_excluded in _exclusions(self):
      if is_excluded:
        raise UserError(reason)

  @property
  def has_learned(self) -> bool:
    """Whether there are learned quantities besides the initial parameters."""
    return bool(
      self.learn_lr != 'none'
      or self.per_step
      or self.precondition != 'none'
      or self.rule != 'none'
    )


@dataclass(frozen=True)
class OuterConfig:
  """Settings of the outer loss.

  Attributes:
    gradient: 'exact': derivative through the inner loop (MAML); 'first_order':
      inner gradients are constants (FOMAML); 'reptile': initial minus adapted
      parameters; 'implicit': that of the minimum of the support loss with
      `inner.proximal`, which the inner loop approximates (iMAML).
    first_order_epochs: epochs with 'first_order' before 'exact' (MAML++).
    loss_steps: 'last': the query loss after the last inner step; 'all': the
      weighted sum of those after each step (MAML++), see
      `outer_loss.step_weights`.
    loss_epochs: number of epochs over which the weights move to the last step;
      from then on, only the last step counts.
    temperature: divides the logits of the outer loss (UNICORN-MAML).
    cg_steps: iterations of conjugate gradients of 'implicit', at most.
    cg_damping: added to the diagonal of its linear system.

  Raises:
    UserError: an unknown value, or settings that exclude each other.
  """

  gradient: str = 'exact'
  first_order_epochs: int = 0
  loss_steps: str = 'last'
  loss_epochs: int = 0
  temperature: float = 1.0
  cg_steps: int = 20
  cg_damping: float = 0.0

  def __post_init__(self):
    for name, choices in OUTER_CHOICES.items():
      check_choice(f'outer.{name}', getattr(self, name), choices)
    if not self.temperature > 0:
      raise UserError(f'outer.temperature={self.temperature}: must be positive')
    if self.loss_steps == 'all' and not self.loss_epochs:
      raise UserError(
        'outer.loss_steps=all needs outer.loss_epochs, the number of epochs '
        'until only the last step counts, such as 15'
      )
    if self.first_order_epochs and self.gradient != 'exact':
      raise UserError(
        f'outer.first_order_epochs={self.first_order_epochs} needs '
        f'outer.gradient=exact, not {self.gradient}'
      )

  def at_epoch(self, epoch: int) -> 'OuterConfig':
    """Returns the settings of one epoch, without `first_order_epochs`.

    The weights of 'all' change within them, and once they have moved to the
    last step, `loss_steps` is 'last'.
    """
    is_first_order = epoch < self.first_order_epochs
    is_moved = epoch >= self.loss_epochs
    return replace(
      self,
      gradient='first_order' if is_first_order else self.gradient,
      first_order_epochs=0,
      loss_steps='last' if is_moved else self.loss_steps,
    )


def check_settings(inner: InnerConfig, outer: OuterConfig) -> None:
  """Raises UserError if inner and outer settings exclude each other."""
  if outer.loss_steps == 'all' and not inner.num_steps:
    raise UserError('outer.loss_steps=all needs inner.num_steps of at least 1')
  if outer.gradient == 'reptile':
    excluded = {
      'outer.loss_steps=all': outer.loss_steps == 'all',
      'learned quantities of the inner loop': inner.has_learned,
      'inner.num_steps=0': not inner.num_steps,
    }
    reason = 'its gradient is initial minus adapted parameters'
  elif outer.gradient == 'implicit':
    excluded = {
      'outer.loss_steps=all': outer.loss_steps == 'all',
      f'inner.momentum={inner.momentum}': inner.momentum,
      f'inner.weight_decay={inner.weight_decay}': inner.weight_decay,
      'inner.mixed_mode': inner.mixed_mode,
      'learned quantities of the inner loop': inner.has_learned,
    }
    reason = 'its gradient is that of a minimum, however it was reached'
    if not inner.proximal:
      raise UserError(
        'outer.gradient=implicit needs inner.proximal, such as 2: without it, '
        'the minimum does not depend on the initial parameters'
      )
  else:
    return
  for name, is_set in excluded.items():
    if is_set:
      raise UserError(
        f'outer.gradient={outer.gradient} cannot be combined with {name}: '
        f'{reason}'
      )


def _exclusions(c: InnerConfig):
  """Yields (message, whether it applies) for settings that cannot work."""
  yield (
    f'inner.num_steps={c.num_steps}: must be at least 0',
    c.num_steps < 0,
  )
  yield (
    f'inner.momentum={c.momentum} has no effect with inner.optimizer=adam: set '
    'inner.b1 instead',
    c.momentum and c.optimizer == 'adam',
  )
  yield (
    "inner.per_step='lr' needs learned rates: set inner.learn_lr to group, "
    'tensor or parameter',
    'lr' in c.per_step and c.learn_lr == 'none' and c.rule == 'none',
  )
  yield (
    f'inner.lr_bounds={c.lr_bounds}: must be (lowest, highest)',
    c.lr_bounds
    and not (len(c.lr_bounds) == 2 and c.lr_bounds[0] < c.lr_bounds[1]),
  )
  yield (
    f'inner.lr_bounds={c.lr_bounds} needs learned rates: set inner.learn_lr',
    c.lr_bounds and c.learn_lr == 'none',
  )
  if c.rule == 'alfa':
    excluded = {
      'momentum': c.momentum,
      'optimizer': c.optimizer != 'sgd' and c.optimizer,
      'learn_lr': c.learn_lr != 'none' and c.learn_lr,
      'precondition': c.precondition != 'none' and c.precondition,
    }
    for name, value in excluded.items():
      yield (
        f'inner.{name}={value} cannot be combined with inner.rule=alfa, which '
        'computes rates and decay of plain gradient descent itself',
        value,
      )
