"""MAML as four pure functions, for any model and any loss.

    learner = make_learner(model, InnerConfig(num_steps=5))
    params, stats = learner.init(jax.random.key(0))
    adapted, stats, losses = learner.adapt(params, stats, support)
    logits = learner.predict(adapted, stats, image)

`learner.loss` is the outer loss of one task, and `meta_gradient` its gradient
over a meta-batch. Nothing here knows about images, batch norm or devices.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from maml_jax import inner_loop as inner_loop
from maml_jax.inner_loop import InnerConfig
from maml_jax.sharding import mean_over_tasks
from maml_jax.types import Batch, EPISODE, Episode, MetaState, Model, PyTree, SUPPORT

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
  """A model that learns from a support set.

  Attributes:
    init: `init(key) -> (params, stats)`.
    adapt: `adapt(params, stats, support) -> (params, stats, losses [K])`: the
      inner loop on one support set `Batch`.
    loss: `loss(params, stats, episode) -> (loss [], (stats, metrics))`: adapt
      on the support set, then the mean loss over the query set. `metrics` holds
      scalars; `stats` those to carry on to the next task.
    predict: `predict(params, stats, image) -> logits [N, W]`: the query pass.
    judge: `judge(params, stats, batch) -> metrics`: the query pass on a
      `Batch`; its mean 'loss' and what else is reported, each [].
    trace: `trace(params, stats, support, observe, at=None)`: the inner loop
      again; returns what `observe(params, stats)` says after `at` steps each,
      stacked, by default after 0, 1, ..., K.
    reset: `reset(params) -> params`: what an outer step starts from; zeroes the
      head where every task does so, else the identity.
  """

  init: Callable[..., tuple[PyTree, PyTree]]
  adapt: Callable[..., tuple[PyTree, PyTree, jax.Array]]
  loss: Callable[..., tuple[jax.Array, tuple[PyTree, dict]]]
  predict: Callable[..., PyTree]
  judge: Callable[..., dict]
  trace: Callable[..., PyTree]
  reset: Callable[[PyTree], PyTree]


def cross_entropy(logits, label):
  """Mean cross entropy of `logits` [N, W] against `label` [N] int."""
  return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()


def squared_error(outputs, label):
  """Mean squared error of `outputs` against `label`, of one shape."""
  return jnp.square(outputs - label).mean()


def accuracy(logits, label):
  """Share of right answers in [0, 1]; `logits` [N, W], `label` [N] int."""
  return (logits.argmax(-1) == label).mean()


def make_learner(
    model: Model,
    inner: InnerConfig,
    *,
    loss_fn: Callable = cross_entropy,
    metric_fns: dict[str, Callable] | None = None,
) -> Learner:
  """Makes a MAML learner from a model.

  Args:
    model: any network that fits `Model`. Its params may be any nested dict;
      those below the key 'classifier' take `inner.classifier_lr`.
    inner: the inner loop.
    loss_fn: `loss_fn(outputs, label) -> []`, mean over the batch; both the
      inner and the outer loss.
    metric_fns: name -> `fn(outputs, label) -> []`, reported beside 'loss' for
      the query set; default {'accuracy': accuracy}.

  Returns:
    A `Learner`.
  """
  if metric_fns is None:
    metric_fns = {'accuracy': accuracy}

  def support_loss(params, stats, support):
    outputs, stats = model.apply(params, stats, support.image, train=True)
    return loss_fn(outputs, support.label), stats

  def adapt(params, stats, support):
    args = params, stats, support
    params, stats, losses = inner_loop.adapt(support_loss, inner, *args)
    return params, look_back(params, stats, support), losses

  def trace(params, stats, support, observe, at=None):
    def look(params, stats):
      return observe(params, look_back(params, stats, support))

    args = params, stats, support
    return inner_loop.adapt_and_observe(support_loss, inner, *args, look, at)

  def look_back(params, stats, support):
    """The moments of the support set under the adapted parameters."""
    if SUPPORT not in stats:
      return stats
    _, last = model.apply(params, stats, support.image, train=True)
    return {**stats, SUPPORT: last[SUPPORT]}

  def predict(params, stats, image):
    return model.apply(params, stats, image, train=False)[0]

  def judge(params, stats, batch):
    outputs = predict(params, stats, batch.image)
    fns = {**metric_fns, 'loss': loss_fn}
    return {name: fn(outputs, batch.label) for name, fn in fns.items()}

  def loss(params, stats, episode):
    adapted, task_stats, losses = adapt(params, stats, episode.support)
    metrics = judge(adapted, task_stats, episode.query)
    if inner.num_steps:
      metrics |= {'support_loss': losses[0]}
    kept = {k: stats[k] for k in (EPISODE, SUPPORT) if k in stats}
    return metrics['loss'], ({**task_stats, **kept}, metrics)

  reset = inner_loop.reset_head if inner.reset_classifier else _same
  return Learner(model.init, adapt, loss, predict, judge, trace, reset)


def _same(params):
  return params


def meta_gradient(learner, params, stats, episodes, *, mesh=None, chunk=None):
  """The outer gradient of a meta-batch: mean over its T tasks.

  MAML, Finn et al. 2017, equation 1 and algorithm 2, line 10.

  Args:
    learner: a `Learner`.
    params: the meta-parameters.
    stats: the statistics that every task starts from.
    episodes: an `Episode` whose leaves have a leading axis T.
    mesh: devices to spread the tasks over, from `parallel.make_mesh`; default
      none.
    chunk: tasks vectorised at a time on one device; default all.

  Returns:
    grads like `params`; stats to carry on, the mean over tasks; and metrics,
    each [T].

  Raises:
    UserError: T is no multiple of devices times chunk.
  """

  def one_task(shared, episode):
    params, stats = shared
    grad_fn = jax.value_and_grad(learner.loss, has_aux=True)
    (_, (stats, metrics)), grads = grad_fn(params, stats, episode)
    return (grads, stats), metrics

  params = learner.reset(params)
  (grads, stats), metrics = mean_over_tasks(one_task, mesh, chunk)(
      (params, stats), episodes
  )
  return grads, stats, metrics
