"""Meta-training: the outer loop, from a config to a trained run on disk."""

import contextlib
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
from jax import lax
from ml_collections import ConfigDict

from maml_jax.experiment import checkpoint, setup
from maml_jax.utils import console, distributed
from maml_jax.experiment.checkpoint import Checkpoint, CheckpointWriter
from maml_jax.data.episodes import task_keys
from maml_jax.utils.errors import NonFiniteError
from maml_jax.experiment.transfer import transfer_params
from maml_jax.evaluation.evaluate import phase_evaluator
from maml_jax.learner import Learner, meta_gradient
from maml_jax.experiment.metrics_log import METRICS_FILE, MetricsLog
from maml_jax.experiment.run_display import TrainingDisplay
from maml_jax.experiment.formatting import describe_validation_protocol, format_metrics
from maml_jax.utils.distributed import describe_devices
from maml_jax.experiment.metrics import is_transductive
from maml_jax.evaluation.statistics import summarize
from maml_jax.sharding import constrain_replicated, nearest_multiples
from maml_jax.experiment.task_source import Prefetcher, train_tasks
from maml_jax.types import Episode, MetaState, PyTree
from maml_jax.experiment.run_dir import RESUME_IGNORED_FIELDS, lock_run_dir, require_same_config
from maml_jax.utils.signals import StopSignal

# Calls are kept about this long, so that the bar moves and a stop is prompt.
SECONDS_PER_CALL = 2.0


def make_train_step(
    learner: Learner,
    tx: optax.GradientTransformation,
    sample: Callable,
    *,
    key,
    num_tasks: int,
    max_steps: int,
    mesh=None,
    chunk: int | None = None,
    parts: int = 1,
):
  """Makes the jitted function that runs meta-iterations.

  Args:
    learner: what is meta-trained.
    tx: the outer optimiser.
    sample: `sample(key, shared, *given) -> Episode`, see `tasks.Stream`.
    key: a typed random key. Step i draws its tasks from fold_in(key, i),
      whatever the devices and the chunks.
    num_tasks: T, tasks per meta-iteration.
    max_steps: most meta-iterations per call.
    mesh: see `meta_gradient`.
    chunk: see `meta_gradient`.
    parts: into how many parts each task's query set is split; each adapts by
      itself and takes a place of a task on the devices. The results are the
      same, if query images are normalised each by itself.

  Returns:
    `step(state, shared, num_steps, given=()) -> (state, metrics)`, which runs
    `num_steps` <= `max_steps` meta-iterations, with `given` [max_steps, T *
    parts, ...] for `sample`. `state` is donated. `metrics` are [max_steps], the
    first `num_steps` of which are meant; beside the mean over tasks of what the
    learner reports there are 'grad_norm', and 'finite': whether loss and
    gradient are. The number of steps per call does not change their results.
  """

  @jax.jit  # traced once, for `like` and for the loop
  def one_step(state, shared, given):
    def loss_of_drawn(params, shared, task):
      (stats, shared), (key, part, given) = shared, task
      support, query = sample(key, shared, *given)
      query = jax.tree.map(lambda x: _part(x, part, parts), query)
      return learner.loss(params, stats, Episode(support, query))

    params = learner.reset(state.params)
    grads, stats, metrics = meta_gradient(
        learner._replace(loss=loss_of_drawn),
        params,
        (state.stats, shared),
        (
            jnp.repeat(task_keys(key, state.step, num_tasks), parts),
            jnp.tile(jnp.arange(parts), num_tasks),
            given,
        ),
        mesh=mesh,
        chunk=chunk,
    )
    updates, opt_state = tx.update(grads, state.opt_state, params)
    params = optax.apply_updates(params, updates)
    if mesh:
      metrics = constrain_replicated(metrics, mesh)
    metrics = jax.tree.map(jnp.mean, metrics)
    finite = _all_finite((grads, metrics))
    metrics |= {'grad_norm': optax.tree.norm(grads), 'finite': finite}
    return MetaState(state.step + 1, params, stats, opt_state), metrics

  return _repeated(one_step, max_steps)


def _repeated(one_step: Callable, max_steps: int) -> Callable:
  """Makes `step` of `make_train_step` from one meta-iteration."""

  @partial(jax.jit, donate_argnums=0)
  def step(state, shared, num_steps, given=()):
    def body(i, carry):
      state, kept = carry
      state, metrics = one_step(state, shared, given_at(i))
      return state, jax.tree.map(lambda k, m: k.at[i].set(m), kept, metrics)

    def given_at(i):
      return jax.tree.map(lambda x: x[i], given)

    like = jax.eval_shape(one_step, state, shared, given_at(0))[1]
    kept = jax.tree.map(lambda x: jnp.zeros((max_steps,), x.dtype), like)
    return lax.fori_loop(0, num_steps, body, (state, kept))

  return step


def _all_finite(tree):
  """Whether no leaf holds an infinity or a NaN: []."""
  finite = [jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]
  return jnp.stack(finite).all()


def _part(x, part, parts: int):
  """One part of the rows of x [N, ...], of which there are `parts`."""
  size = len(x) // parts
  return x if parts == 1 else lax.dynamic_slice_in_dim(x, part * size, size)


def init_state(learner: Learner, tx, key) -> MetaState:
  """The state before the first meta-iteration."""
  params, stats = learner.init(key)
  params = learner.reset(params)
  return MetaState(jnp.int32(0), params, stats, tx.init(params))


def resume_state(fresh: MetaState, saved: Checkpoint) -> MetaState:
  """The state of a checkpoint, in the structure of a fresh one."""
  structure = jax.tree.structure(fresh.opt_state)
  return MetaState(
      jnp.int32(saved.step),
      saved.params,
      saved.stats,
      jax.tree.unflatten(structure, saved.opt_state),
  )


def train(config, workdir: str | os.PathLike) -> int:
  """Meta-trains up to `config.train.num_epochs`, from where the workdir is.

  Args:
    config: see `configs/default.py`.
    workdir: the directory of the run; made if missing.

  Returns:
    The exit status, 0 when done; 1 if a loss, a gradient or the state is not
    finite; 130 after Ctrl-C or 143 after SIGTERM, when the same call goes on.

  Raises:
    UserError: something of the config, the data or the workdir does not fit.
  """
  workdir = pathlib.Path(workdir)
  setup.configure_jax(config)
  with (
      setup.matmul_precision(config),
      lock_run_dir(workdir, config),
      StopSignal() as stop,
      contextlib.ExitStack() as stack,
  ):
    session, state = _prepare(config, workdir, stop, stack)
    try:
      step = _loop(session, state)
    except NonFiniteError as error:
      kept = f'the last good one, of step {session.saver.saved}, is kept'
      print(f'stopped: {error}; {kept} in {workdir}', file=sys.stderr)
      return 1
  if stop:
    print(f'saved at step {step}; the same command goes on from there')
  else:
    _say_result(config, workdir, step)
  return stop.status


def _say_result(config, workdir: pathlib.Path, step: int) -> None:
  best = checkpoint.find(workdir, 'best')
  if best:
    console.print_result(
        f'trained to step {step}; best on validation '
        f'{describe_validation_protocol(config)}: {format_metrics(best.metrics)}, at step '
        f'{best.step}'
    )
  print(f'in {workdir}: checkpoints, {METRICS_FILE}, tensorboard, config.json')


class LoopContext(NamedTuple):
  """What the loop works with."""

  train: ConfigDict  # the section of the config
  shared: PyTree  # of the `Stream` of tasks
  ahead: Prefetcher
  run: Callable  # from `make_train_step`
  validate: Callable  # from `make_evaluator`
  pace: 'Pace'
  saver: CheckpointWriter
  log: MetricsLog
  screen: TrainingDisplay
  stop: StopSignal


class CallLengthController:
  """Chooses how many meta-iterations to run per call, by the time they take."""

  def __init__(self):
    self._start = time.monotonic()
    self._longest = distributed.LaggedMax(math.inf)
    self.length = 1

  def start(self) -> None:
    """The next lap starts now."""
    self._start = time.monotonic()

  def lap(self, n: int) -> float:
    """Ends a lap of `n` meta-iterations; returns the seconds that it took."""
    now = time.monotonic()
    seconds, self._start = now - self._start, now
    longest = self._longest(max(seconds, 1e-6) / n)
    self.length = max(1, int(SECONDS_PER_CALL / longest))
    return seconds


def _prepare(config, workdir, stop, stack) -> tuple[LoopContext, MetaState]:
  """Builds everything, and takes the state from the workdir if it has one."""
  machine = setup.train_sharding(
      config, splits=not is_transductive(config.model.norm)
  )
  phase, val = setup.train_phase(config), setup.val_phase(config)
  tasks = train_tasks(config, machine)
  validate = phase_evaluator(config, val, config.val.num_tasks, machine)
  learner = setup.phase_learner(config, phase)
  tx = setup.make_outer_optimizer(config)
  saved, state = _first_state(config, learner, tx, workdir)
  run = make_train_step(
      learner,
      tx,
      tasks.sample,
      key=setup.rng_stream(config.seed, setup.TRAIN_STREAM),
      num_tasks=config.train.num_tasks,
      max_steps=config.train.steps_per_call,
      mesh=machine.mesh,
      chunk=machine.chunk,
      parts=machine.parts,
  )
  step = int(state.step)
  ahead = stack.enter_context(_ahead(config, tasks, machine))
  saver = stack.enter_context(CheckpointWriter(workdir, config, saved and step))
  log = stack.enter_context(MetricsLog(workdir, step))
  screen = TrainingDisplay(config, step, tasks.place, _where(config, machine))
  screen = stack.enter_context(screen)
  session = LoopContext(
      config.train,
      tasks.shared,
      ahead,
      run,
      validate,
      CallLengthController(),
      saver,
      log,
      screen,
      stop,
  )
  return session, machine.put(state)


def _ahead(config, tasks, machine) -> Prefetcher:
  """Gathers for coming calls what the host has to give to the tasks."""
  given = tasks.given
  if given:
    rows = machine.rows(config.train.num_tasks * machine.parts)
    given = partial(given, rows=rows // machine.parts)
  return Prefetcher(given, machine, config.train.steps_per_call)


def _where(config, machine) -> str:
  """The devices that are used, and how all of them would be."""
  mesh, everything = machine.mesh, describe_devices()
  used = everything
  if mesh.size < jax.device_count():
    used = f'{mesh.size} of {everything}'
  if machine.parts > 1:
    return f'{used}, {machine.parts} for each task'
  if used == everything:
    return everything
  unit = jax.device_count() * (config.train.chunk or 1)
  numbers = ' or '.join(map(str, nearest_multiples(config.train.num_tasks, unit)))
  return f'{used} (--train.num_tasks={numbers} would use all)'


def _first_state(config, learner, tx, workdir):
  """The latest checkpoint, or None, and the state to begin with."""
  initial = setup.rng_stream(config.seed, setup.INIT_STREAM)
  begin = partial(init_state, learner, tx, initial)
  saved = checkpoint.find_on_all_processes(workdir, 'latest')
  if saved:
    require_same_config(saved.config, config, saved.path, RESUME_IGNORED_FIELDS)
    return saved, resume_state(jax.eval_shape(begin), saved)
  if not config.train.start:
    return None, jax.jit(begin)()
  start = checkpoint.load(config.train.start)
  params, stats = transfer_params(learner, start.params, start.stats)
  begin = partial(init_state, learner._replace(init=lambda _: (params, stats)))
  return None, jax.jit(partial(begin, tx, initial))()


def _loop(s: LoopContext, state: MetaState) -> int:
  """Epochs, until the last is validated or until told to stop."""
  length = s.train.steps_per_epoch
  step, last = int(state.step), s.train.num_epochs * length
  while True:
    if step and step % length == 0 and not s.log.is_validated(step):
      _validate(s, state, step)
    if step >= last or s.stop:
      return step
    state, step = _run_epoch(s, state, step)
    s.saver.save(state)


def _run_epoch(s: LoopContext, state: MetaState, step: int):
  """Meta-iterations to the end of an epoch, or until told to stop.

  The metrics of a call are read while the next one runs, so that the device
  does not wait for the host.
  """
  every = s.train.steps_per_call
  end = (step // s.train.steps_per_epoch + 1) * s.train.steps_per_epoch
  pending = None
  s.pace.start()
  while step < end and not s.stop:
    n = min(s.pace.length, every - step % every, end - step)
    state, metrics = s.run(state, s.shared, n, s.ahead.take(step, n))
    _report(s, pending)
    step += n
    pending = step, n, metrics
    if s.saver.due():
      _report(s, pending)
      pending = None
      s.saver.save(state)
  _report(s, pending)
  s.log.flush(step)
  return state, step


def _report(s: LoopContext, pending) -> None:
  """Waits for the metrics of the `n` meta-iterations that ended at `step`."""
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
  s.log.train(rows, s.pace.lap(n))
  if step % s.train.steps_per_call == 0:
    s.log.flush(step)
  s.screen.train(rows)


def _validate(s: LoopContext, state: MetaState, step: int) -> None:
  """Measures the state, and keeps it if none was better, unless stopped."""
  start = time.monotonic()
  with s.screen.validation() as bar:
    metrics = s.validate(state.params, state.stats, bar.update, s.stop)
  if metrics is None:
    return
  values = summarize(metrics)
  is_best = s.saver.save_if_best(state, values)
  values['seconds'] = time.monotonic() - start
  s.log.write(step, 'val', values)
  s.screen.epoch(step, values, is_best)
