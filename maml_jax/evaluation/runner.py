"""Measures a learner on many tasks, a batch of tasks per jitted call."""

from collections.abc import Callable, Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from maml_jax.evaluation import results
from maml_jax.experiment import setup
from maml_jax.experiment.setup import Phase
from maml_jax.experiment.task_source import EvalTasks, eval_tasks
from maml_jax.experiment.transfer import transfer_params
from maml_jax.learner import Learner
from maml_jax.sharding import TaskSharding, constrain_replicated, map_tasks

__all__ = [
  'learner_metrics',
  'make_evaluator',
  'make_task_runner',
  'phase_evaluator',
]

# Tasks per call, rounded up to a multiple of devices and chunks.
BATCH_SIZE = 32


def make_task_runner(
  measure: Callable,
  tasks: EvalTasks,
  sharding: TaskSharding,
  *,
  batch_size: int = BATCH_SIZE,
) -> Callable[..., Iterator[dict[str, np.ndarray]]]:
  """Makes a function that measures every task of a list.

  Args:
    measure: `measure(params, stats, episode) -> dict of arrays`, called under
      jit.
    tasks: from `task_source.eval_tasks`.
    sharding: the devices.
    batch_size: tasks per jitted call; it does not affect the results.

  Returns:
    `run(params, stats, start=0)`, an iterator over the measurements of the
    tasks from `start` on, several tasks at a time, each [n, ...].
  """

  def one_task(shared, task):
    (params, stats, shared), (key, host_data) = shared, task
    key = jax.random.wrap_key_data(key)
    episode = tasks.build_episode(key, shared, *host_data)
    return measure(params, stats, episode)

  over_tasks = map_tasks(one_task, sharding.mesh, sharding.tasks_per_chunk)

  @jax.jit
  def run_batch(shared, batch):
    measured = over_tasks(shared, batch)
    if sharding.mesh is None:
      return measured
    return constrain_replicated(measured, sharding.mesh)

  num_devices = sharding.mesh.size if sharding.mesh else 1
  unit = num_devices * (sharding.tasks_per_chunk or 1)
  size, num_tasks = -(-batch_size // unit) * unit, len(tasks.keys)
  keys = np.asarray(jax.random.key_data(tasks.keys))

  def fetch(measured, count):
    return {name: x[:count] for name, x in jax.device_get(measured).items()}

  def run(params, stats, start=0):
    pending = None
    for first in range(start, num_tasks, size):
      # The last batch is padded with the first tasks; `fetch` drops them.
      task_ids = np.arange(first, first + size) % num_tasks
      task_ids = task_ids[sharding.local_task_ids(size)]
      batch = keys[task_ids], tasks.host_data(task_ids)
      batch = sharding.shard(batch, axis=0)
      measured = run_batch((params, stats, tasks.shared), batch)
      if pending:
        yield fetch(*pending)  # while the next batch is computed
      pending = measured, min(size, num_tasks - first)
    if pending:
      yield fetch(*pending)

  return run


def learner_metrics(learner: Learner) -> Callable:
  """Returns a `measure` function for the metrics that a learner reports."""
  return lambda *args: learner.loss(*args)[1][1]


def make_evaluator(
  learner: Learner,
  tasks: EvalTasks,
  sharding: TaskSharding,
  *,
  batch_size: int = BATCH_SIZE,
) -> Callable[..., dict[str, np.ndarray] | None]:
  """Makes a function that evaluates a learner on a list of tasks.

  Args:
    learner: adapts to each support set and is evaluated on the query set.
    tasks: from `task_source.eval_tasks`.
    sharding: the devices.
    batch_size: tasks per jitted call; it does not affect the results.

  Returns:
    `evaluator(params, stats, advance, stop)` -> metrics by name, [T] each.
    `advance(n)` is called after n more tasks; the evaluator returns None once
    `stop` is true.
  """
  run = make_task_runner(
    learner_metrics(learner), tasks, sharding, batch_size=batch_size
  )

  def evaluator(params, stats, advance=lambda n: None, stop=False):
    batches = []
    for metrics in run(params, stats):
      batches.append(metrics)
      advance(len(metrics['loss']))
      if stop:
        return None
    return results.concatenate(batches)

  return evaluator


def phase_evaluator(
  config: ConfigDict, phase: Phase, num_tasks: int, sharding: TaskSharding
) -> Callable[..., dict[str, np.ndarray] | None]:
  """Makes an evaluator for the first `num_tasks` fixed tasks of a phase.

  It accepts the params and stats of other phases, see `transfer_params`.
  """
  learner = setup.phase_learner(config, phase)
  tasks = eval_tasks(config, phase, num_tasks, sharding)
  evaluator = make_evaluator(learner, tasks, sharding)
  return lambda params, stats, *args: evaluator(
    *sharding.replicate(transfer_params(learner, params, stats)), *args
  )
