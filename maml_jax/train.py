"""Meta-training: the outer loop, from a config to a trained run on disk."""

import contextlib
import functools
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from maml_jax.config import flatten, learner_configs
from maml_jax.evaluation.runner import phase_evaluator
from maml_jax.evaluation.statistics import summarize
from maml_jax.experiment import checkpoint, setup
from maml_jax.experiment.checkpoint import Checkpoint
from maml_jax.experiment.checkpoint_writer import CheckpointWriter
from maml_jax.experiment.formatting import (
  describe_validation_protocol,
  format_metrics,
)
from maml_jax.experiment.metrics import is_transductive
from maml_jax.experiment.metrics_log import METRICS_FILE, MetricsLog
from maml_jax.experiment.pretraining import pretraining_learner
from maml_jax.experiment.run_dir import (
  RESUME_ADVICE,
  RESUME_IGNORED_FIELDS,
  lock_run_dir,
  require_same_config,
)
from maml_jax.experiment.run_display import TrainingDisplay
from maml_jax.experiment.task_source import (
  Prefetcher,
  TrainTasks,
  class_batches,
  train_tasks,
)
from maml_jax.experiment.transfer import transfer_params
from maml_jax.inner_loop import (
  learned_ranges,
  model_params,
  require_adapted_head,
)
from maml_jax.platforms import unrolls_inner_loop
from maml_jax.sharding import TaskSharding, nearest_multiples
from maml_jax.train_step import init_state, make_train_step
from maml_jax.types import Dataset, MetaState, PyTree
from maml_jax.utils import console, distributed
from maml_jax.utils.errors import NonFiniteError
from maml_jax.utils.signals import StopSignal

__all__ = [
  'CallLengthController',
  'LoopContext',
  'make_programs',
  'make_tasks',
  'may_split_queries',
  'resume_state',
  'run_epoch',
  'train',
]

# Calls take about this long, so that progress is visible and stops are quick.
SECONDS_PER_CALL = 2.0


def resume_state(fresh: MetaState, saved: Checkpoint) -> MetaState:
  """Returns the state of a checkpoint in the structure of a fresh state."""
  structure = jax.tree.structure(fresh.opt_state)
  return MetaState(
    jnp.int32(saved.step),
    saved.params,
    saved.stats,
    jax.tree.unflatten(structure, saved.opt_state),
  )


def train(config: ConfigDict, workdir: str | os.PathLike) -> int:
  """Meta-trains for `config.train.num_epochs` epochs, resuming if possible.

  Call `experiment.setup.configure_jax` first to use all CPU cores.

  Args:
    config: see `maml_jax.default_config`.
    workdir: the directory of the run; created if missing.

  Returns:
    The exit status: 0 when done; 1 if a loss, a gradient or the state is not
    finite; 130 after Ctrl-C or 143 after SIGTERM, when the same call resumes.

  Raises:
    UserError: the config, the data or the workdir is invalid.
  """
  workdir = pathlib.Path(workdir)
  with (
    setup.matmul_precision(config),
    lock_run_dir(workdir, config),
    StopSignal() as stop,
    contextlib.ExitStack() as stack,
  ):
    context, state = _set_up(config, workdir, stop, stack)
    try:
      step = _loop(context, state)
    except NonFiniteError as error:
      step = context.writer.last_step
      saved = f'the last good checkpoint is step {step}, in {workdir}'
      if step is None:
        saved = 'no checkpoint was saved yet'
      print(f'stopped: {error}; {saved}', file=sys.stderr)
      return 1
  if stop:
    print(f'saved at step {step}; run the same command to resume')
  else:
    _print_summary(config, workdir, step)
  return stop.status


def _print_summary(config, workdir: pathlib.Path, step: int) -> None:
  best = checkpoint.find(workdir, 'best')
  if best:
    console.print_result(
      f'trained to step {step}; best validation '
      f'{describe_validation_protocol(config)}: '
      f'{format_metrics(best.metrics)}, at step {best.step}'
    )
  print(f'in {workdir}: checkpoints, {METRICS_FILE}, tensorboard, config.json')


class LoopContext(NamedTuple):
  """Everything that the training loop uses."""

  train: ConfigDict  # the section of the config
  shared: PyTree  # of the `TrainTasks`
  prefetcher: Prefetcher
  run_at: Callable  # `run_at(epoch)`, from `make_train_step`
  validate: Callable  # from `make_evaluator`
  call_length: 'CallLengthController'
  writer: CheckpointWriter
  log: MetricsLog
  display: TrainingDisplay
  stop: StopSignal


class CallLengthController:
  """Chooses the number of meta-iterations per call from their duration."""

  def __init__(self):
    self._start = time.monotonic()
    self._longest = distributed.LaggedMax(math.inf)
    self.length = 1

  def start(self) -> None:
    """Starts timing."""
    self._start = time.monotonic()

  def lap(self, n: int) -> float:
    """Ends a lap of n iterations: updates `length`, returns its seconds."""
    now = time.monotonic()
    seconds, self._start = now - self._start, now
    longest = self._longest(max(seconds, 1e-6) / n)
    self.length = max(1, int(SECONDS_PER_CALL / longest))
    return seconds


def _set_up(config, workdir, stop, stack) -> tuple[LoopContext, MetaState]:
  """Builds the context of the loop and the state to start from."""
  sharding = setup.train_sharding(
    config, split_queries=may_split_queries(config)
  )
  val = setup.val_phase(config)
  tasks, make_learner = make_tasks(config, sharding)
  validate = phase_evaluator(config, val, config.val.num_tasks, sharding)
  learner = make_learner()
  tx = setup.make_outer_optimizer(config)
  saved, state = _first_state(config, learner, tx, workdir)
  require_adapted_head(learner.inner, model_params(state.params))
  step = int(state.step)
  prefetcher = _make_prefetcher(config, tasks, sharding)
  devices = _describe_used_devices(config, sharding)
  context = LoopContext(
    train=config.train,
    shared=tasks.shared,
    prefetcher=stack.enter_context(prefetcher),
    run_at=make_programs(config, make_learner, tx, tasks, sharding),
    validate=validate,
    call_length=CallLengthController(),
    writer=stack.enter_context(
      CheckpointWriter(workdir, config, saved and step)
    ),
    log=stack.enter_context(MetricsLog(workdir, step)),
    display=stack.enter_context(
      TrainingDisplay(config, step, tasks.placement, devices)
    ),
    stop=stop,
  )
  return context, sharding.replicate(state)


def may_split_queries(config: ConfigDict) -> bool:
  """Returns whether several devices may share the query set of a task."""
  if is_transductive(config.model.norm) or config.train.objective != 'tasks':
    return False
  # Conjugate gradients of parts of a query set would stop at other iterations.
  return config.outer.gradient != 'implicit'


def make_tasks(
  config: ConfigDict, sharding: TaskSharding, dataset: Dataset | None = None
) -> tuple[TrainTasks, Callable]:
  """Returns what is trained on, and `make_learner(outer=None)`.

  Args:
    config: see `maml_jax.default_config`.
    sharding: from `setup.train_sharding`.
    dataset: the split to train on; default: load it.
  """
  if config.train.objective == 'classes':
    tasks, num_classes = class_batches(config, sharding)
    return tasks, lambda outer=None: pretraining_learner(config, num_classes)
  assert sharding.mesh is not None
  phase = setup.train_phase(config)
  # Mixed mode is chosen for its memory, and an unrolled loop would need more.
  is_unrolled = config.inner.unroll or (
    not config.inner.mixed_mode
    and unrolls_inner_loop(sharding.mesh, phase.num_steps)
  )
  make_learner = partial(setup.phase_learner, config, phase, unroll=is_unrolled)
  return train_tasks(config, sharding, dataset), make_learner


def make_programs(
  config: ConfigDict,
  make_learner: Callable,
  tx: optax.GradientTransformation,
  tasks: TrainTasks,
  sharding: TaskSharding,
) -> Callable:
  """Returns `run_at(epoch) -> step`, see `make_train_step`.

  Epochs whose outer losses differ in more than weights have different programs.

  Args:
    config: see `maml_jax.default_config`.
    make_learner: `make_learner(outer=...) -> Learner`.
    tx: the outer optimizer.
    tasks: from `train_tasks`.
    sharding: from `setup.train_sharding`.
  """
  _, outer = learner_configs(flatten(config))

  @functools.cache
  def make_program(outer):
    return make_train_step(
      make_learner(outer=outer),
      tx,
      tasks.sample_episode,
      key=setup.rng_stream(config.seed, setup.TRAIN_STREAM),
      meta_batch_size=config.train.meta_batch_size,
      max_steps=config.train.steps_per_call,
      steps_per_epoch=config.train.steps_per_epoch,
      mesh=sharding.mesh,
      tasks_per_chunk=sharding.tasks_per_chunk,
      merge_tasks=sharding.merge_tasks,
      query_splits=sharding.query_splits,
    )

  return lambda epoch: make_program(outer.at_epoch(epoch))


def _make_prefetcher(config, tasks, sharding) -> Prefetcher:
  host_data = tasks.host_data
  if host_data:
    num_tasks = config.train.meta_batch_size * sharding.query_splits
    task_ids = sharding.local_task_ids(num_tasks) // sharding.query_splits
    host_data = partial(host_data, task_ids=task_ids)
  return Prefetcher(host_data, sharding, config.train.steps_per_call)


def _describe_used_devices(config, sharding) -> str:
  """Describes the devices in use, and how to use all of them."""
  mesh, available = sharding.mesh, distributed.describe_devices()
  used = available
  if mesh.size < jax.device_count():
    used = f'{mesh.size} of {available}'
  if sharding.query_splits > 1:
    return f'{used}, {sharding.query_splits} per task'
  if used == available:
    return available
  unit = jax.device_count() * (config.train.tasks_per_chunk or 1)
  numbers = nearest_multiples(config.train.meta_batch_size, unit)
  numbers = ' or '.join(map(str, numbers))
  return f'{used} (--train.meta_batch_size={numbers} would use all)'


def _first_state(config, learner, tx, workdir):
  """Returns the latest checkpoint, or None, and the state to start from."""
  key = setup.rng_stream(config.seed, setup.INIT_STREAM)
  make_state = partial(init_state, learner, tx, key)
  saved = checkpoint.find_on_all_processes(workdir, 'latest')
  if saved:
    require_same_config(
      saved.config, config, saved.path, RESUME_IGNORED_FIELDS, RESUME_ADVICE
    )
    return saved, resume_state(jax.eval_shape(make_state), saved)
  if not config.train.init_from:
    return None, jax.jit(make_state)()
  source = checkpoint.load(config.train.init_from)
  params, stats = transfer_params(learner, source.params, source.stats)
  learner = learner._replace(init=lambda _: (params, stats))
  return None, jax.jit(partial(init_state, learner, tx, key))()


def _loop(c: LoopContext, state: MetaState) -> int:
  """Runs epochs until the last one is validated or a stop is requested."""
  length = c.train.steps_per_epoch
  step, last = int(state.step), c.train.num_epochs * length
  while True:
    if step and step % length == 0 and not c.log.is_validated(step):
      _validate(c, state, step)
    if step >= last or c.stop:
      return step
    state, step = run_epoch(c, state, step)
    c.writer.save(state)


def run_epoch(
  c: LoopContext, state: MetaState, step: int
) -> tuple[MetaState, int]:
  """Runs meta-iterations to the end of an epoch or until a stop is requested.

  The metrics of a call are read while the next call runs, so that the device
  does not wait for the host.
  """
  every = c.train.steps_per_call
  epoch = step // c.train.steps_per_epoch
  end, run = (epoch + 1) * c.train.steps_per_epoch, c.run_at(epoch)
  pending = None
  c.call_length.start()
  while step < end and not c.stop:
    n = min(c.call_length.length, every - step % every, end - step)
    state, metrics = run(state, c.shared, n, c.prefetcher.take(step, n))
    _log_metrics(c, pending)
    step += n
    pending = step, n, metrics
    if c.writer.is_due():
      _log_metrics(c, pending)
      pending = None
      c.writer.save(state)
  _log_metrics(c, pending)
  c.log.flush(step)
  return state, step


def _log_metrics(c: LoopContext, pending) -> None:
  """Reads and logs the metrics of the `n` meta-iterations up to `step`."""
  if pending is None:
    return
  step, n, metrics = pending
  rows = {name: x[:n] for name, x in jax.device_get(metrics).items()}
  finite = rows.pop('finite')
  if not finite.all():
    good = step - n + int(finite.argmin())
    raise NonFiniteError(
      f'loss or gradient is not finite between steps {good} and {good + 1}'
    )
  c.log.train(rows, c.call_length.lap(n))
  if step % c.train.steps_per_call == 0:
    c.log.flush(step)
  c.display.train(rows)


def _validate(c: LoopContext, state: MetaState, step: int) -> None:
  """Validates the state and saves it if it is the best, unless stopped."""
  start = time.monotonic()
  with c.display.validation() as bar:
    metrics = c.validate(state.params, state.stats, bar.update, c.stop)
  if metrics is None:
    return
  values = summarize(metrics)
  is_best = c.writer.save_if_best(state, values)
  values['seconds'] = time.monotonic() - start
  c.log.write(step, 'val', values)
  ranges = jax.device_get(jax.jit(learned_ranges)(state.params))
  ranges = {name: float(x) for name, x in ranges.items()}
  if ranges:
    c.log.write(step, 'inner', ranges)
  c.display.epoch(step, values, is_best, ranges)
