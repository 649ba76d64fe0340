"""MAML as pure functions, for any model and any loss.

    learner = make_learner(model, InnerConfig(num_steps=5))
    params, stats = learner.init(jax.random.key(0))
    adapted, stats, losses = learner.adapt(params, stats, support)
    logits = learner.predict(adapted, stats, inputs)

`learner.loss` is the outer loss of one task, and `meta_gradient` its gradient
over a meta-batch. Inputs may be any pytree. Statistics under `types.EPISODE`
and `types.SUPPORT` belong to a single task.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from maml_jax import inner_loop
from maml_jax.inner_loop import InnerConfig
from maml_jax.sharding import mean_over_tasks
from maml_jax.types import (
  EPISODE,
  SUPPORT,
  Batch,
  Episode,
  MetaState,
  Model,
  PyTree,
)

__all__ = [
  'Batch',
  'Episode',
  'InnerConfig',
  'Learner',
  'MetaState',
  'Model',
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
    loss: `loss(params, stats, episode) -> (loss [], (stats, metrics))`: adapts
      to the support set and returns the mean loss over the query set. `metrics`
      holds those of `evaluate` and 'support_loss', the support loss before the
      first inner step; `stats` the statistics to carry to the next task.
    predict: `predict(params, stats, inputs) -> logits [N, W]`: the query pass.
    evaluate: `evaluate(params, stats, batch) -> metrics`: the query pass on a
      `Batch`; returns its mean 'loss' and the results of `metric_fns`.
    adapt_and_observe: `adapt_and_observe(params, stats, support, observe,
      at=None)`: runs the inner loop and returns the stacked results of
      `observe(params, stats)` after `at` steps each, default 0, 1, ..., K.
    reset_head: `reset_head(params) -> params`: zeroes the head if every task
      starts with a zero head, else returns `params`. Call it before an outer
      update so that weight decay sees the head that the tasks start from.
  """

  init: Callable[..., tuple[PyTree, PyTree]]
  adapt: Callable[..., tuple[PyTree, PyTree, jax.Array]]
  loss: Callable[..., tuple[jax.Array, tuple[PyTree, dict]]]
  predict: Callable[..., PyTree]
  evaluate: Callable[..., dict]
  adapt_and_observe: Callable[..., PyTree]
  reset_head: Callable[[PyTree], PyTree]


def cross_entropy(logits, targets):
  """Returns the mean cross entropy of `logits` [N, W], `targets` [N] int."""
  return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def squared_error(outputs, targets):
  """Returns the mean squared error of two arrays of one shape."""
  return jnp.square(outputs - targets).mean()


def accuracy(logits, targets):
  """Returns the accuracy in [0, 1]; `logits` [N, W], `targets` [N] int."""
  return (logits.argmax(-1) == targets).mean()


def make_learner(
  model: Model,
  inner: InnerConfig,
  *,
  loss_fn: Callable = cross_entropy,
  metric_fns: dict[str, Callable] | None = None,
) -> Learner:
  """Makes a MAML learner from a model.

  Args:
    model: any network wrapped as a `Model`. Its params may be any nested dict;
      those under the key 'classifier' use `inner.classifier_lr`, and those
      named as in `inner_loop.OUTER_ONLY` are never adapted.
    inner: the settings of the inner loop.
    loss_fn: `loss_fn(outputs, targets) -> []`, mean over the batch; used as
      inner and outer loss.
    metric_fns: name -> `fn(outputs, targets) -> array`, usually [], reported in
      addition to 'loss' for the query set; default {'accuracy': accuracy}.

  Returns:
    A `Learner`.
  """
  if metric_fns is None:
    metric_fns = {'accuracy': accuracy}

  def support_loss(params, stats, support):
    outputs, stats = model.apply(params, stats, support.inputs, train=True)
    return loss_fn(outputs, support.targets), stats

  def adapt(params, stats, support):
    args = params, stats, support
    params, stats, losses = inner_loop.adapt(support_loss, inner, *args)
    return params, refresh_support_stats(params, stats, support), losses

  def adapt_and_observe(params, stats, support, observe, at=None):
    def observe_refreshed(params, stats):
      return observe(params, refresh_support_stats(params, stats, support))

    args = params, stats, support, observe_refreshed
    return inner_loop.adapt_and_observe(support_loss, inner, *args, at)

  def refresh_support_stats(params, stats, support):
    """Recomputes the support moments under the adapted parameters."""
    if SUPPORT not in stats:
      return stats
    _, last = model.apply(params, stats, support.inputs, train=True)
    return {**stats, SUPPORT: last[SUPPORT]}

  def predict(params, stats, inputs):
    return model.apply(params, stats, inputs, train=False)[0]

  def evaluate(params, stats, batch):
    outputs = predict(params, stats, batch.inputs)
    fns = {**metric_fns, 'loss': loss_fn}
    return {name: fn(outputs, batch.targets) for name, fn in fns.items()}

  def loss(params, stats, episode):
    adapted, task_stats, losses = adapt(params, stats, episode.support)
    metrics = evaluate(adapted, task_stats, episode.query)
    if inner.num_steps:
      metrics |= {'support_loss': losses[0]}
    kept = {k: stats[k] for k in (EPISODE, SUPPORT) if k in stats}
    return metrics['loss'], ({**task_stats, **kept}, metrics)

  reset_head = inner_loop.reset_head if inner.reset_classifier else _identity
  return Learner(
    model.init, adapt, loss, predict, evaluate, adapt_and_observe, reset_head
  )


def _identity(params):
  return params


def meta_gradient(
  learner,
  params,
  stats,
  tasks,
  *,
  make_episode=None,
  shared=(),
  mesh=None,
  tasks_per_chunk=None,
):
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
    mesh: devices to distribute the tasks over, from `sharding.make_mesh`;
      default none.
    tasks_per_chunk: tasks vectorized at a time on one device; default all.

  Returns:
    grads like `params`; stats to carry on, the mean over tasks; and metrics,
    each [T].

  Raises:
    UserError: T is not a multiple of devices times `tasks_per_chunk`.
  """

  def one_task(shared, task):
    params, stats, shared = shared
    episode = make_episode(shared, task) if make_episode else task
    grad_fn = jax.value_and_grad(learner.loss, has_aux=True)
    (_, (stats, metrics)), grads = grad_fn(params, stats, episode)
    return (grads, stats), metrics

  run = mean_over_tasks(one_task, mesh, tasks_per_chunk)
  (grads, stats), metrics = run((params, stats, shared), tasks)
  return grads, stats, metrics
