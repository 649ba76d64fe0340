"""The jitted step of meta-training: meta-gradient and outer optimizer."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh

from maml_jax.data.episodes import task_keys
from maml_jax.inner_loop import clip_learned_rates
from maml_jax.learner import Learner, meta_gradient
from maml_jax.sharding import constrain_replicated
from maml_jax.types import Array, Episode, MetaState

__all__ = ['init_state', 'make_train_step']


def make_train_step(
  learner: Learner,
  tx: optax.GradientTransformation,
  sample_episode: Callable,
  *,
  key: Array,
  meta_batch_size: int,
  max_steps: int,
  steps_per_epoch: int = 1,
  mesh: Mesh | None = None,
  tasks_per_chunk: int | None = None,
  merge_tasks: bool = False,
  query_splits: int = 1,
) -> Callable:
  """Makes the jitted function that runs meta-iterations.

  Args:
    learner: the learner to meta-train.
    tx: the outer optimizer.
    sample_episode: `sample_episode(key, shared, *host_data) -> Episode`, see
      `task_source.TrainTasks`.
    key: a typed random key. Step i draws its tasks from fold_in(key, i),
      independent of devices and chunks.
    meta_batch_size: T, tasks per meta-iteration.
    max_steps: maximum number of meta-iterations per call.
    steps_per_epoch: meta-iterations per epoch, for losses that depend on it.
    mesh: see `meta_gradient`.
    tasks_per_chunk: see `meta_gradient`.
    merge_tasks: see `meta_gradient`.
    query_splits: number of parts of each task's query set; each part adapts
      separately, like a task of its own. The results do not change if query
      images are normalized independently of each other.

  Returns:
    `step(state, shared, num_steps, host_data=()) -> (state, metrics)`, which
    runs `num_steps` <= `max_steps` meta-iterations, with `host_data`
    [max_steps, T * query_splits, ...] for `sample_episode`. `state` is donated.
    `metrics` are [max_steps], of which the first `num_steps` are valid: the
    means over tasks of the learner's metrics, 'grad_norm', and 'finite',
    whether loss and gradient are. Results do not depend on the number of steps
    per call.
  """

  def make_episode(shared, task):
    task_key, split, host_data = task
    support, query = sample_episode(task_key, shared, *host_data)
    query = jax.tree.map(lambda x: _query_split(x, split, query_splits), query)
    return Episode(support, query)

  @jax.jit  # traced once, for the shapes of the metrics and for the loop
  def one_step(state, shared, host_data):
    params = learner.reset_head(state.params)
    keys = task_keys(key, state.step, meta_batch_size)
    tasks = (
      jnp.repeat(keys, query_splits),
      jnp.tile(jnp.arange(query_splits), meta_batch_size),
      host_data,
    )
    grads, stats, metrics = meta_gradient(
      learner,
      params,
      state.stats,
      tasks,
      make_episode=make_episode,
      shared=shared,
      epoch=state.step // steps_per_epoch,
      mesh=mesh,
      tasks_per_chunk=tasks_per_chunk,
      merge_tasks=merge_tasks,
    )
    updates, opt_state = tx.update(grads, state.opt_state, params)
    params = optax.apply_updates(params, updates)
    params = clip_learned_rates(learner.inner, params)
    if mesh:
      metrics = constrain_replicated(metrics, mesh)
    metrics = jax.tree.map(jnp.mean, metrics)
    finite = _all_finite((grads, metrics))
    metrics |= {'grad_norm': optax.tree.norm(grads), 'finite': finite}
    return MetaState(state.step + 1, params, stats, opt_state), metrics

  return _scan_steps(one_step, max_steps)


def _scan_steps(one_step: Callable, max_steps: int) -> Callable:
  """Makes `step` of `make_train_step` from a single meta-iteration."""

  @partial(jax.jit, donate_argnums=0)
  def step(state, shared, num_steps, host_data=()):
    def body(i, carry):
      state, kept = carry
      state, metrics = one_step(state, shared, host_data_at(i))
      return state, jax.tree.map(lambda k, m: k.at[i].set(m), kept, metrics)

    def host_data_at(i):
      return jax.tree.map(lambda x: x[i], host_data)

    like = jax.eval_shape(one_step, state, shared, host_data_at(0))[1]
    kept = jax.tree.map(lambda x: jnp.zeros((max_steps,), x.dtype), like)
    return lax.fori_loop(0, num_steps, body, (state, kept))

  return step


def _all_finite(tree):
  """Returns whether all leaves are finite: []."""
  finite = [jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]
  return jnp.stack(finite).all()


def _query_split(x, split, query_splits: int):
  """Returns one of `query_splits` equal parts of the rows of x [N, ...]."""
  if query_splits == 1:
    return x
  size = len(x) // query_splits
  return lax.dynamic_slice_in_dim(x, split * size, size)


def init_state(
  learner: Learner, tx: optax.GradientTransformation, key: Array
) -> MetaState:
  """Returns the state before the first meta-iteration."""
  params, stats = learner.init(key)
  params = learner.reset_head(params)
  return MetaState(jnp.int32(0), params, stats, tx.init(params))
