"""MAML as pure functions, for any model and any loss.

    learner = make_learner(model, InnerConfig(num_steps=5))
    params, stats = learner.init(jax.random.key(0))
    adapted, stats, losses = learner.adapt(params, stats, support)
    logits = learner.predict(adapted, stats, inputs)

`learner.loss` is the outer loss of one task, and `meta_gradient` its gradient
over a meta-batch. Inputs may be any pytree. Statistics under `types.EPISODE`
and `types.SUPPORT` belong to a single task.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh

from maml_jax import inner_loop
from maml_jax.learner_config import InnerConfig, OuterConfig, check_settings
from maml_jax.outer_loss import (
  implicit_loss,
  reptile_surrogate,
  step_weights,
)
from maml_jax.sharding import mean_over_tasks
from maml_jax.types import (
  EPISODE,
  SUPPORT,
  Array,
  Batch,
  Episode,
  MetaState,
  Model,
  PyTree,
)
from maml_jax.utils.errors import UserError

__all__ = [
  'Batch',
  'Episode',
  'InnerConfig',
  'Learner',
  'MetaState',
  'Model',
  'OuterConfig',
  'accuracy',
  'cross_entropy',
  'make_learner',
  'meta_gradient',
  'squared_error',
]


class Learner(NamedTuple):
  """A model together with its inner loop, as pure functions.

  Attributes:
    init: `init(key) -> (params, stats)`.
    adapt: `adapt(params, stats, support) -> (params, stats, losses [K])`: runs
      the inner loop on one support set, a `Batch`.
    loss: `loss(params, stats, episode, epoch=0) -> (loss [], (stats,
      metrics))`: adapts to the support set and returns the outer loss, usually
      the mean loss over the query set. `metrics` holds those of `evaluate`;
      'support_loss', the support loss before the first inner step; and
      'cg_residual' with implicit gradients, see `implicit_loss`. `stats`
      are the statistics to carry to the next task. `epoch` matters if the
      weights of a loss of all steps depend on it, and may be traced; it must be
      a Python int if `outer.first_order_epochs` is set.
    predict: `predict(params, stats, inputs) -> logits [N, W]`: the query pass.
    evaluate: `evaluate(params, stats, batch) -> metrics`: the query pass on a
      `Batch`; returns its mean 'loss' and the results of `metric_fns`.
    adapt_and_observe: `adapt_and_observe(params, stats, support, observe,
      at=None)`: runs the inner loop and returns the stacked results of
      `observe(params, stats)` after `at` steps each, default 0, 1, ..., K.
    reset_head: `reset_head(params) -> params`: zeroes the head if every task
      starts with a zero head, else returns `params`. Call it before an outer
      update so that weight decay sees the head that the tasks start from.
    inner: the settings of the inner loop.
  """

  init: Callable[..., tuple[PyTree, PyTree]]
  adapt: Callable[..., tuple[PyTree, PyTree, jax.Array]]
  loss: Callable[..., tuple[jax.Array, tuple[PyTree, dict]]]
  predict: Callable[..., PyTree]
  evaluate: Callable[..., dict]
  adapt_and_observe: Callable[..., PyTree]
  reset_head: Callable[[PyTree], PyTree]
  inner: InnerConfig


def cross_entropy(logits: Array, targets: Array) -> Array:
  """Returns the mean cross entropy of `logits` [N, W], `targets` [N] int."""
  return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def squared_error(outputs: Array, targets: Array) -> Array:
  """Returns the mean squared error of two arrays of one shape."""
  return jnp.square(outputs - targets).mean()


def accuracy(logits: Array, targets: Array) -> Array:
  """Returns the accuracy in [0, 1]; `logits` [N, W], `targets` [N] int."""
  return (logits.argmax(-1) == targets).mean()


def make_learner(
  model: Model,
  inner: InnerConfig,
  outer: OuterConfig | None = None,
  *,
  loss_fn: Callable = cross_entropy,
  metric_fns: dict[str, Callable] | None = None,
  support_loss_fn: Callable | None = None,
) -> Learner:
  """Makes a learner from a model.

  Args:
    model: any network wrapped as a `Model`. Parameters whose path contains
      'classifier' use `inner.classifier_lr`, and those named as in
      `inner_loop.OUTER_ONLY` are never adapted.
    inner: the settings of the inner loop.
    outer: the settings of the outer loss; default exact MAML.
    loss_fn: `loss_fn(outputs, targets) -> []`, mean over the batch; used as
      inner and outer loss.
    metric_fns: name -> `fn(outputs, targets) -> array`, usually [], reported in
      addition to 'loss' for the query set; default {'accuracy': accuracy}.
    support_loss_fn: `support_loss_fn(params, stats, support) -> (loss [],
      stats)`: the inner loss, if it is not `loss_fn` of the outputs, for
      example the residual of a differential equation. `params` are those that
      the model takes.

  Returns:
    A `Learner`.

  Raises:
    UserError: settings that exclude each other, or that the model lacks a
      function for.
  """
  outer = outer or OuterConfig()
  _check(model, inner, support_loss_fn)
  check_settings(inner, outer)
  support_loss = support_loss_fn or _make_support_loss(model, inner, loss_fn)
  start, run_steps, observed = _make_adaptation(model, inner, support_loss)
  predict, score = _make_scores(model, outer, loss_fn, metric_fns)

  def init(key):
    params, stats = model.init(key)
    return inner_loop.init_learned(
      inner, params, jax.random.fold_in(key, 1)
    ), stats

  def adapt(params, stats, support):
    return run_steps(*start(params, stats, support), support)[:3]

  def adapt_and_observe(params, stats, support, observe, at=None):
    params, stats = start(params, stats, support)
    return inner_loop.adapt_and_observe(
      support_loss,
      inner,
      params,
      stats,
      support,
      observed(observe, support),
      at,
    )

  def evaluate(params, stats, batch):
    return score(params, stats, batch)[1]

  def loss(params, stats, episode, epoch=0):
    now = outer.at_epoch(epoch) if isinstance(epoch, int) else outer
    if now.first_order_epochs:
      raise UserError(
        f'outer.first_order_epochs={now.first_order_epochs} needs the epoch as '
        'a Python int, not as an array: pass an int, or use '
        'make_learner(model, inner, outer.at_epoch(epoch))'
      )
    support, query = episode

    def score_query(params, stats):
      return score(params, stats, query)

    first, first_stats = start(params, stats, support)
    args: dict[str, Any] = {'first_order': now.gradient == 'first_order'}
    if now.loss_steps == 'all':
      args['observe'] = observed(score_query, support)
    inputs = first, first_stats
    if now.gradient in ('reptile', 'implicit'):
      inputs = lax.stop_gradient(inputs)
    adapted, task_stats, losses, seen = run_steps(*inputs, support, **args)
    if seen is None:
      value, metrics = score(adapted, task_stats, query)
    else:
      values, metrics = seen
      weights = step_weights(inner.num_steps, epoch, now.loss_epochs)
      value = weights.astype(values.dtype) @ values
      metrics = jax.tree.map(lambda x: x[-1], metrics)
    if now.gradient == 'reptile':
      value = lax.stop_gradient(value)
      value += reptile_surrogate(inner_loop.model_params(first), adapted)
    elif now.gradient == 'implicit':
      value, residual = implicit_loss(
        lambda params, stats: support_loss(params, stats, support),
        observed(score_query, support),
        (first, first_stats),
        (adapted, task_stats),
        inner,
        now,
      )
      metrics |= {'cg_residual': residual}
    if inner.num_steps:
      metrics |= {'support_loss': losses[0]}
    if isinstance(stats, Mapping):  # each task starts from the same ones
      kept = {k: stats[k] for k in (EPISODE, SUPPORT) if k in stats}
      task_stats = {**task_stats, **kept}
    return value, (task_stats, metrics)

  return Learner(
    init,
    adapt,
    loss,
    predict,
    evaluate,
    adapt_and_observe,
    partial(inner_loop.reset_params, inner),
    inner,
  )


def _check(model: Model, inner: InnerConfig, support_loss_fn) -> None:
  """Raises UserError for settings that need another model or loss."""
  if inner.head == 'prototype' and model.features is None:
    raise UserError(
      "inner.head='prototype' needs the features of the model: pass "
      'Model(init, apply, features)'
    )
  if support_loss_fn and inner.class_weights != 'none':
    raise UserError(
      f'inner.class_weights={inner.class_weights} cannot be combined with a '
      'support_loss_fn: weight its classes there'
    )


def _make_support_loss(
  model: Model, inner: InnerConfig, loss_fn: Callable
) -> Callable:
  """Returns the default inner loss: `loss_fn` of the outputs."""

  def support_loss(params, stats, support):
    outputs, stats = model.apply(params, stats, support.inputs, train=True)
    if inner.class_weights == 'balanced':
      return inner_loop.balanced_loss(loss_fn, outputs, support.targets), stats
    return loss_fn(outputs, support.targets), stats

  return support_loss


def _make_adaptation(
  model: Model, inner: InnerConfig, support_loss: Callable
) -> tuple[Callable, Callable, Callable]:
  """Makes the functions that adapt to a support set.

  Returns:
    `start(params, stats, support) -> (params, stats)` that a task starts from;
    `run_steps(params, stats, support, **args)`, see `inner_loop.adapt`; and
    `observed(observe, support)`, which returns `observe` with the statistics
    after the last pass over the support set.
  """

  def start(params, stats, support):
    params = inner_loop.reset_params(inner, params)
    if inner.head != 'prototype':
      return params, stats
    params, new_stats = inner_loop.with_prototypes(
      model, params, stats, support
    )
    return params, stats if inner.num_steps else new_stats

  def run_steps(params, stats, support, **args):
    params, stats, losses, seen = inner_loop.adapt(
      support_loss, inner, params, stats, support, **args
    )
    return params, refresh_support_stats(params, stats, support), losses, seen

  def observed(observe, support):
    return lambda params, stats: observe(
      params, refresh_support_stats(params, stats, support)
    )

  def refresh_support_stats(params, stats, support):
    """Recomputes the support moments under the adapted parameters."""
    if not isinstance(stats, Mapping) or SUPPORT not in stats:
      return stats
    _, last = model.apply(params, stats, support.inputs, train=True)
    return {**stats, SUPPORT: last[SUPPORT]}

  return start, run_steps, observed


def _make_scores(
  model: Model, outer: OuterConfig, loss_fn: Callable, metric_fns: dict | None
) -> tuple[Callable, Callable]:
  """Makes `predict(params, stats, inputs)` and `score(params, stats, batch)`.

  `score` returns the outer loss and the metrics of the query pass.
  """
  if metric_fns is None:
    metric_fns = {'accuracy': accuracy}
  fns = {**metric_fns, 'loss': loss_fn}

  def predict(params, stats, inputs):
    params = inner_loop.model_params(params)
    return model.apply(params, stats, inputs, train=False)[0]

  def score(params, stats, batch):
    outputs = predict(params, stats, batch.inputs)
    metrics = {name: fn(outputs, batch.targets) for name, fn in fns.items()}
    if outer.temperature == 1:
      return metrics['loss'], metrics
    scaled = jax.tree.map(lambda x: x / outer.temperature, outputs)
    return loss_fn(scaled, batch.targets), metrics

  return predict, score


def meta_gradient(
  learner: Learner,
  params: PyTree,
  stats: PyTree,
  tasks: PyTree,
  *,
  make_episode: Callable | None = None,
  shared: PyTree = (),
  epoch: int | Array = 0,
  mesh: Mesh | None = None,
  tasks_per_chunk: int | None = None,
  merge_tasks: bool = False,
) -> tuple[PyTree, PyTree, dict[str, Array]]:
  """Computes the outer gradient of a meta-batch: the mean over its T tasks.

  MAML, Finn et al. 2017, equation 1 and algorithm 2, line 10.

      meta_gradient(learner, params, stats, episodes)
      meta_gradient(
          learner, params, stats, jax.random.split(key, 4),
          make_episode=lambda dataset, key: draw(key, dataset), shared=dataset)

  Args:
    learner: a `Learner`.
    params: the meta-parameters.
    stats: the statistics that every task starts from.
    tasks: an `Episode` whose leaves have a leading axis T; with `make_episode`,
      any pytree of arrays with that axis, such as random keys.
    make_episode: `make_episode(shared, task) -> Episode`, called on each task
      where it is computed, so that no device holds the episodes of others.
    shared: arrays that `make_episode` reads for every task, such as a data set;
      replicated over the devices.
    epoch: the epoch, see `Learner.loss`.
    mesh: devices to distribute the tasks over, from `sharding.make_mesh`;
      default none.
    tasks_per_chunk: tasks vectorized at a time on one device; default all.
    merge_tasks: whether a ConvNet4 processes the channels of these tasks side
      by side, which is faster on TPUs if they are at most 128 together. The
      results are the same up to rounding.

  Returns:
    grads like `params`; stats to carry on, the mean over tasks; and metrics,
    each [T].

  Raises:
    UserError: T is not a multiple of devices times `tasks_per_chunk`, or
      `merge_tasks` is set for another network of `make_model`.
  """

  is_static = isinstance(epoch, int)

  def one_task(shared, task):
    params, stats, shared, traced = shared
    episode = make_episode(shared, task) if make_episode else task
    grad_fn = jax.value_and_grad(learner.loss, has_aux=True)
    (_, (stats, metrics)), grads = grad_fn(
      params, stats, episode, epoch if is_static else traced
    )
    return (grads, stats), metrics

  run = mean_over_tasks(
    one_task, mesh, tasks_per_chunk, merge_tasks=merge_tasks
  )
  (grads, stats), metrics = run(
    (params, stats, shared, () if is_static else epoch), tasks
  )
  return grads, stats, metrics
