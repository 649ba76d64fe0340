"""Writes the checkpoints of a run."""

import contextlib
import pathlib
import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from maml_jax import config as config_lib
from maml_jax.experiment import checkpoint, orbax_io
from maml_jax.experiment.metrics import is_better
from maml_jax.types import MetaState, PyTree
from maml_jax.utils import distributed
from maml_jax.utils.errors import NonFiniteError, UserError
from maml_jax.utils.files import oserror_as_user_error, require_free_space

__all__ = ['CheckpointWriter']

SECONDS_BETWEEN_SAVES = 120.0
METADATA_BYTES = 2**18  # upper bound of what is written besides the arrays


class CheckpointWriter:
  """Writes the checkpoints of a run in the background; a context manager.

  Leaving the context waits for pending writes. Inside it, Orbax does not log;
  errors are raised.

  Args:
    workdir: the directory of the run.
    config: of the run.
    step: the step that the run resumes from; None for a new run.

  Attributes:
    last_step: the step of the last checkpoint written or resumed from.

  Raises:
    UserError: checkpoints cannot be written to the workdir, or what is written
      cannot be read. A new run tries it with a small one.
  """

  def __init__(
    self, workdir: pathlib.Path, config: ConfigDict, step: int | None
  ):
    self._folder = workdir.absolute() / 'checkpoints'
    self._config = config_lib.to_json(config)
    if step is None:  # otherwise a checkpoint was read from there
      _try_to_write(self._folder, self._config)
    with oserror_as_user_error(self._folder):
      self._latest = orbax_io.make_manager(self._folder / 'latest')
      self._best = orbax_io.make_manager(self._folder / 'best')
    best = distributed.on_main_process(
      lambda: _step_and_metrics(checkpoint.find(workdir, 'best'))
    )
    self._best_metrics = best[1] if best else {}
    # Newer checkpoints are damaged; they must not displace valid ones.
    if step is not None:
      self._set_aside(self._latest, step + 1)
    if best:
      self._set_aside(self._best, best[0] + 1)
    self._saved_at = time.monotonic()
    self._seconds_since_save = distributed.LaggedMax(0.0)
    self._failed = False
    self._log = contextlib.ExitStack()
    self.last_step = step

  def is_due(self) -> bool:
    """Returns whether the last save was `SECONDS_BETWEEN_SAVES` ago."""
    seconds = self._seconds_since_save(time.monotonic() - self._saved_at)
    return seconds > SECONDS_BETWEEN_SAVES

  def save(self, state: MetaState) -> None:
    """Starts to save `state` as the latest, unless it is already saved.

    Raises:
      NonFiniteError: `state` contains an infinity or a NaN.
      UserError: this or the previous checkpoint cannot be written.
    """
    if int(state.step) != self.last_step:
      with self._convert_errors():
        self._write(self._latest, state, {})
      self._saved_at, self.last_step = time.monotonic(), int(state.step)

  def save_if_best(
    self, state: MetaState, metrics: Mapping[str, float]
  ) -> bool:
    """Saves a state if its validation metrics are the best so far.

    Returns:
      Whether they are.

    Raises:
      NonFiniteError: see `save`.
      UserError: see `save`.
    """
    better = is_better(metrics, self._best_metrics)
    if better:
      with self._convert_errors():
        self._write(self._best, state, metrics)
        self._best.wait_until_finished()
      self._best_metrics = metrics
    return better

  @contextlib.contextmanager
  def _convert_errors(self):
    """Converts errors to one line; TensorStore and Orbax may raise anything."""
    try:
      yield
    except NonFiniteError:
      raise
    except Exception as error:
      if distributed.is_peer_failure(error):
        raise
      self._failed = True
      reason = orbax_io.one_line(error)
      raise UserError(
        f'cannot write a checkpoint in {self._folder}: {reason}. Existing '
        'checkpoints are kept; fix the cause, such as a full disk, and run the '
        'same command to resume'
      ) from error

  def _write(self, manager, state, metrics) -> None:
    arrays = _to_arrays(state)
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(arrays)):
      raise NonFiniteError(f'the state at step {state.step} is not finite')
    step = int(state.step)
    # Check the space first: Orbax fails in threads, with long messages.
    size = sum(x.nbytes for x in jax.tree.leaves(arrays)) + METADATA_BYTES
    distributed.on_main_process(lambda: require_free_space(self._folder, size))
    self._set_aside(manager, step)
    if distributed.is_multiprocess():  # each process writes its share
      arrays = _to_tree(jax.tree.map(jnp.copy, state))
    manager.save(
      step, args=orbax_io.make_save_args(arrays, self._config, metrics)
    )

  def _set_aside(self, manager, step: int) -> None:
    """Moves checkpoints of `step` or later away.

    They exist if the newest was damaged and the run resumed from an older one.
    """
    folder = pathlib.Path(manager.directory)

    def move() -> bool:
      overtaken = [
        path for path in orbax_io.list_steps(folder) if int(path.name) >= step
      ]
      for path in overtaken:
        aside = self._folder / 'aside' / f'{folder.name}-{path.name}'
        aside.parent.mkdir(exist_ok=True)
        path.rename(_unused_path(aside))
      return bool(overtaken)

    if distributed.on_main_process(move):
      manager.reload()

  def __enter__(self):
    self._log.enter_context(orbax_io.silenced_orbax())
    return self

  def __exit__(self, kind, error, trace):
    with contextlib.ExitStack() as stack:
      stack.enter_context(self._log)
      if self._failed:  # already reported
        stack.enter_context(contextlib.suppress(UserError))
      if error is not None and distributed.is_peer_failure(error):
        return  # pending writes would wait for the lost process
      stack.enter_context(self._convert_errors())
      stack.callback(self._best.close)
      self._latest.close()


def _try_to_write(folder: pathlib.Path, config: str) -> None:
  """Writes a small checkpoint to a folder, reads it and removes it.

  Raises:
    UserError: it cannot be written or read.
  """
  arrays = {'step': np.int32(0), 'params': {'x': np.arange(3)}}
  args = orbax_io.make_save_args(
    arrays | {'stats': {}, 'opt_state': {}}, config, {}
  )
  with orbax_io.written_checkpoint(folder, args):
    pass


def _to_arrays(state: MetaState) -> dict[str, PyTree]:
  """Copies a state to plain dicts of NumPy arrays."""
  return jax.tree.map(np.array, jax.device_get(_to_tree(state)))


def _to_tree(state: MetaState) -> dict[str, PyTree]:
  """Converts a state to plain dicts."""
  leaves = jax.tree.leaves(state.opt_state)
  numbered = {f'{i:04}': leaf for i, leaf in enumerate(leaves)}
  return state._asdict() | {'opt_state': numbered}


def _step_and_metrics(saved: checkpoint.Checkpoint | None):
  return saved and (saved.step, saved.metrics)


def _unused_path(path: pathlib.Path) -> pathlib.Path:
  """Returns `path`, with a number appended if it exists."""
  unused, count = path, 1
  while unused.exists():
    count += 1
    unused = path.with_name(f'{path.name}-{count}')
  return unused
