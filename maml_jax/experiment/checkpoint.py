"""Checkpoints of a run, and of none.

    python -m maml_jax.checkpoint WORKDIR DIR    # without optimiser state

    WORKDIR/checkpoints/latest/STEP/   where to go on from
    WORKDIR/checkpoints/best/STEP/     best on validation, saved when it was met
    WORKDIR/checkpoints/aside/         what a run that went back has overtaken

Of `latest` and `best` the newest two are kept. A checkpoint holds arrays, in
`state`, and facts, in `meta`: the config and the metrics on validation. Both
come with digests of their bytes, which are compared before anything is read.
Reading a checkpoint reads data, never code.

Orbax is used here and nowhere else.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import math
import os
import pathlib
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import LatestN

from maml_jax import config as config_lib
from maml_jax.experiment.metrics import is_better
from maml_jax.types import MetaState, PyTree
from maml_jax.utils import distributed
from maml_jax.utils.errors import NonFiniteError, UserError, printable
from maml_jax.utils.files import (
  fsync,
  oserror_as_user_error,
  oserror_message,
  require_free_space,
)

NUM_KEPT = 2
DIGESTS_FILE = 'digests.json'
# The second is added when all else is written; nobody reads it.
FILES_WITHOUT_DIGEST = (DIGESTS_FILE, 'commit_success.txt')
SECONDS_BETWEEN_SAVES = 120.0
METADATA_BYTES = 2**18  # bytes beside the arrays, with room to spare
# Arrays larger than their files by more than the factor, and than these bytes
# besides, are not what training writes.
LARGEST_RATIO, SMALLEST_BOMB = 100, 2**26


class Checkpoint(NamedTuple):
  """One checkpoint, its arrays in NumPy."""

  path: pathlib.Path
  config: ConfigDict
  step: int
  params: PyTree
  stats: PyTree
  opt_state: list[np.ndarray]  # its leaves
  metrics: dict[str, float]  # on validation; {} unless saved as best


class CheckpointWriter:
  """Writes the checkpoints of one run, in the background.

  A context manager: leaving it waits until all is written. Meanwhile Orbax
  does not log: what goes wrong is raised.

  Attributes:
    saved: the step of the last one written as `latest`, or gone on from.
  """

  def __init__(
    self, workdir: pathlib.Path, config: ConfigDict, saved: int | None
  ):
    self._folder = workdir.absolute() / 'checkpoints'
    self._config = config_lib.to_json(config)
    with oserror_as_user_error(self._folder):
      self._latest = _manager(self._folder / 'latest')
      self._best = _manager(self._folder / 'best')
    best = distributed.on_main_process(
      lambda: _step_and_metrics(find(workdir, 'best'))
    )
    self._best_metrics = best[1] if best else {}
    # Newer ones are damaged: they must not push out one that is sound.
    if saved is not None:
      self._set_aside(self._latest, saved + 1)
    if best:
      self._set_aside(self._best, best[0] + 1)
    self._time, self._longest = time.monotonic(), distributed.LaggedMax(0.0)
    self._failed = False
    self._log_filter = lambda record: 'orbax' not in record.pathname
    self.saved = saved

  def due(self) -> bool:
    """Whether much would be lost if the process were killed now."""
    since = self._longest(time.monotonic() - self._time)
    return since > SECONDS_BETWEEN_SAVES

  def save(self, state: MetaState) -> None:
    """Starts to save `state` as the latest, unless it is that already.

    Raises:
      NotFinite: there is an infinity or a NaN in `state`.
      UserError: it cannot be written, or the one before could not.
    """
    if int(state.step) != self.saved:
      with self._writing():
        self._write(self._latest, state, {})
      self._time, self.saved = time.monotonic(), int(state.step)

  def save_if_best(
    self, state: MetaState, metrics: Mapping[str, float]
  ) -> bool:
    """Saves a state if its metrics on validation are the best so far.

    Returns:
      Whether it is.

    Raises:
      NotFinite: see `save`.
      UserError: see `save`.
    """
    better = is_better(metrics, self._best_metrics)
    if better:
      with self._writing():
        self._write(self._best, state, metrics)
        self._best.wait_until_finished()
      self._best_metrics = metrics
    return better

  @contextlib.contextmanager
  def _writing(self):
    """Turns what goes wrong in writing into one line.

    TensorStore and the threads of Orbax raise nearly anything.
    """
    try:
      yield
    except NonFiniteError:
      raise
    except Exception as error:
      if distributed.is_peer_failure(error):
        raise
      self._failed = True
      raise UserError(
        f'cannot write a checkpoint in {self._folder}: {_reason(error)}. '
        'Those that are there are kept; make room, then the same command '
        'goes on'
      ) from error

  def _write(self, manager, state, metrics) -> None:
    arrays = _to_arrays(state)
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(arrays)):
      raise NonFiniteError(f'the state at step {state.step} is not finite')
    step = int(state.step)
    # Orbax fails in threads, and at length.
    size = sum(x.nbytes for x in jax.tree.leaves(arrays))
    distributed.on_main_process(
      lambda: require_free_space(self._folder, size + METADATA_BYTES)
    )
    self._set_aside(manager, step)
    if (
      distributed.is_multiprocess()
    ):  # each process writes a share of what all have
      arrays = _to_tree(jax.tree.map(jnp.copy, state))
    manager.save(step, args=_arguments(arrays, self._config, metrics))

  def _set_aside(self, manager, step: int) -> None:
    """Moves checkpoints away that are not older than the one to be written.

    There are some if the newest was damaged, and the run went on from before.
    """
    folder = pathlib.Path(manager.directory)

    def move() -> bool:
      overtaken = [path for path in _steps(folder) if int(path.name) >= step]
      for path in overtaken:
        aside = self._folder / 'aside' / f'{folder.name}-{path.name}'
        aside.parent.mkdir(exist_ok=True)
        path.rename(_unused(aside))
      return bool(overtaken)

    if distributed.on_main_process(move):
      manager.reload()

  def __enter__(self):
    logging.getLogger('absl').addFilter(self._log_filter)
    return self

  def __exit__(self, kind, error, trace):
    with contextlib.ExitStack() as stack:
      stack.callback(logging.getLogger('absl').removeFilter, self._log_filter)
      if self._failed:  # which has been said
        stack.enter_context(contextlib.suppress(UserError))
      if error is not None and distributed.is_peer_failure(error):
        return  # what is half written would wait for who is gone
      stack.enter_context(self._writing())
      stack.callback(self._best.close)
      self._latest.close()


def load(path: str | os.PathLike, which: str = 'best') -> Checkpoint:
  """Reads a checkpoint.

  Args:
    path: a workdir, or the directory of one checkpoint.
    which: 'best' or 'latest' of a workdir.

  Raises:
    UserError: there is none, or none that is sound.
  """
  path = pathlib.Path(path)
  if (path / 'meta').is_dir():
    return _read(path)
  saved = find(path, which)
  if saved is None:
    latest = which == 'best' and _steps(path / 'checkpoints' / 'latest')
    hint = ', only those of --config.eval.checkpoint=latest' if latest else ''
    raise UserError(f'no {which} checkpoint in {path}{hint}')
  return saved


def export(saved: Checkpoint, path: str | os.PathLike) -> pathlib.Path:
  """Writes a checkpoint by itself, without what only more training needs.

  Args:
    saved: what to write; its optimiser state is left out.
    path: the directory to be made.

  Returns:
    The path.

  Raises:
    UserError: there is something at `path`, or it cannot be written.
  """
  path = pathlib.Path(path)
  if path.exists():
    raise UserError(f'{path} exists; name a directory to be made')
  arrays = {'step': np.int32(saved.step), 'params': saved.params}
  arrays |= {'stats': saved.stats, 'opt_state': {}}
  config = config_lib.to_json(saved.config)
  handlers = {'state': _Handler(), 'meta': ocp.JsonCheckpointHandler()}
  try:
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers)) as writer:
      arguments = _arguments(arrays, config, saved.metrics)
      writer.save(path.absolute(), arguments)
    # These name places and times of this machine, and `load` reads them not.
    for note in ('commit_success.txt', '_CHECKPOINT_METADATA'):
      for file in path.rglob(note):
        file.unlink()
  except OSError as error:
    raise UserError(f'cannot write {path}: {error.strerror}') from error
  return path


def fingerprint(saved: Checkpoint) -> str:
  """Tells parameters and statistics from any others, wherever they lie."""
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves((saved.params, saved.stats)):
    digest.update(leaf.tobytes())
  return digest.hexdigest()[:16]


def find(workdir: pathlib.Path, which: str) -> Checkpoint | None:
  """The newest sound checkpoint of a workdir; None if there is none at all.

  Warns of each damaged one.

  Args:
    workdir: perhaps that of a run not begun.
    which: 'best' or 'latest'.

  Raises:
    UserError: all that there are are damaged.
  """
  folder = workdir / 'checkpoints' / which
  steps = _steps(folder)
  for path in steps:
    try:
      return _read(path, int(path.name))
    except UserError as error:
      warnings.warn(f'passed over a {error}', stacklevel=2)
  if steps:
    names = ', '.join(path.name for path in steps)
    raise UserError(
      f'all checkpoints in {folder} are damaged: {names}. Restore one, or '
      f'move {folder} away: then the run begins anew; --checkpoint=DIR '
      'begins with the parameters of any other'
    )
  return None


def find_on_all_processes(
  workdir: pathlib.Path, which: str
) -> Checkpoint | None:
  """`find`, with the same answer in all processes: that of the first.

  Raises:
    UserError: as `find` does; or other processes do not see the workdir.
  """
  found = []

  def search():
    found.append(find(workdir, which))
    return found[0] and found[0].path.name

  name = distributed.on_main_process(search)
  if found or name is None:
    return found[0] if found else None
  path = workdir / 'checkpoints' / which / name
  if not path.exists():
    raise UserError(f'{path} is not on this host; all must share the workdir')
  return _read(path)


def _arguments(arrays: PyTree, config: str, metrics: Mapping):
  """What Orbax is to write: arrays, and facts with their digest."""
  facts = {'config': config, 'metrics': dict(metrics)}
  facts['step'] = int(arrays['step'])
  facts['digest'] = _digest(_canonical(facts))
  return ocp.args.Composite(state=_Save(arrays), meta=ocp.args.JsonSave(facts))


def _to_arrays(state: MetaState) -> dict[str, PyTree]:
  """Plain dicts of NumPy arrays, which nothing that runs on can change."""
  return jax.tree.map(np.array, jax.device_get(_to_tree(state)))


def _to_tree(state: MetaState) -> dict[str, PyTree]:
  """Plain dicts."""
  leaves = jax.tree.leaves(state.opt_state)
  named = {f'{i:04}': leaf for i, leaf in enumerate(leaves)}
  return state._asdict() | {'opt_state': named}


def _step_and_metrics(saved: Checkpoint | None):
  return saved and (saved.step, saved.metrics)


class _Handler(ocp.PyTreeCheckpointHandler):
  """Leaves digests of the files that it has written with them.

  Then it waits until all of the checkpoint is on the disk: only after that
  Orbax gives it its name, and removes older ones.
  """

  def finalize(self, directory):
    super().finalize(directory)
    folder = pathlib.Path(directory)
    digests = {name: _digest(file) for name, file in _files(folder).items()}
    (folder / DIGESTS_FILE).write_text(json.dumps(digests))
    for path in folder.parent.rglob('*'):
      fsync(path)


@ocp.args.register_with_handler(_Handler, for_save=True, for_restore=True)
class _Save(ocp.args.PyTreeSave):
  """The arguments of `_Handler`."""


def _files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """The files of a folder by their names in it, but those in WITHOUT_DIGEST.

  Raises:
    ValueError: there is something else than files and folders.
  """
  files = {}
  for path in sorted(folder.rglob('*')):
    name = path.relative_to(folder).as_posix()
    if path.is_symlink() or not (path.is_file() or path.is_dir()):
      raise ValueError(f'{name} is not a file')
    if path.is_file() and name not in FILES_WITHOUT_DIGEST:
      files[name] = path
  return files


def _manager(folder: pathlib.Path) -> ocp.CheckpointManager:
  options = ocp.CheckpointManagerOptions(
    preservation_policy=LatestN(NUM_KEPT), cleanup_tmp_directories=True
  )
  handlers = {'state': _Handler(), 'meta': ocp.JsonCheckpointHandler()}
  return ocp.CheckpointManager(folder, options=options, item_handlers=handlers)


def _steps(folder: pathlib.Path) -> list[pathlib.Path]:
  """The checkpoints in a folder, newest first."""
  found = folder.iterdir() if folder.is_dir() else ()
  return sorted(
    (path for path in found if path.name.isdecimal()),
    key=lambda path: -int(path.name),
  )


def _unused(path: pathlib.Path) -> pathlib.Path:
  """`path`, with a number behind it if there is such a file."""
  name, count = path, 1
  while name.exists():
    count += 1
    name = path.with_name(f'{path.name}-{count}')
  return name


def _read(path: pathlib.Path, step: int | None = None) -> Checkpoint:
  """Reads a checkpoint, which must be of `step` if that is given."""
  try:
    facts = json.loads((path / 'meta' / 'metadata').read_text())
    if facts.pop('digest') != _digest(_canonical(facts)):
      raise ValueError('meta is not as it was written')
    config = config_lib.from_json(facts['config'])
    config_lib.validate(config)
    arrays = _read_arrays(path.absolute() / 'state')
    found = int(arrays['step'])
    if {found, facts.get('step', found), step or found} != {found}:
      raise ValueError(f'its arrays are of step {found}')
    return Checkpoint(
      path=path,
      config=config,
      step=found,
      params=arrays['params'],
      stats=arrays['stats'],
      opt_state=[leaf for _, leaf in sorted(arrays['opt_state'].items())],
      metrics={name: float(x) for name, x in facts['metrics'].items()},
    )
  except Exception as error:  # damage shows in more ways than can be listed
    raise UserError(f'damaged checkpoint {path}: {_reason(error)}') from error


def _read_arrays(folder: pathlib.Path) -> PyTree:
  """Reads the arrays, if the files are as they were and not a bomb."""
  digests = json.loads((folder / DIGESTS_FILE).read_text())
  files = _files(folder)  # no other is opened, whatever the digests name
  for name in digests.keys() ^ files.keys():
    raise ValueError(f'{name} is {"missing" if name in digests else "new"}')
  for name, file in files.items():
    if digests[name] != _digest(file):
      raise ValueError(f'{name} is not as it was written')
  handler = ocp.PyTreeCheckpointHandler()
  tree = handler.metadata(folder).tree
  size = sum(file.stat().st_size for file in files.values())
  claimed = sum(
    math.prod(x.shape) * np.dtype(x.dtype).itemsize
    for x in jax.tree.leaves(tree)
  )
  if claimed > LARGEST_RATIO * size + SMALLEST_BOMB:
    raise ValueError(f'files of {size} bytes claim arrays of {claimed}')
  as_numpy = jax.tree.map(
    lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
  )
  args = ocp.args.PyTreeRestore(restore_args=as_numpy)
  return handler.restore(folder, args=args)


def _reason(error: Exception) -> str:
  """The first line of an error, not too long."""
  if isinstance(error, OSError):
    return oserror_message(error)
  message = str(error) or type(error).__name__
  return printable(message.partition('\n')[0])


def _digest(content: bytes | pathlib.Path) -> str:
  """Of some bytes, or of the content of a file."""
  if isinstance(content, pathlib.Path):
    with content.open('rb') as file:
      return hashlib.file_digest(file, 'sha256').hexdigest()
  return hashlib.sha256(content).hexdigest()


def _canonical(facts: Mapping) -> bytes:
  return json.dumps(facts, sort_keys=True).encode()


def main(argv: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(description=export.__doc__.split('\n')[0])
  parser.add_argument('source', metavar='WORKDIR', help='or one checkpoint')
  parser.add_argument('path', metavar='DIR', help='to be made')
  parser.add_argument('--which', choices=('best', 'latest'), default='best')
  args = parser.parse_args(argv)
  print(export(load(args.source, args.which), args.path))


if __name__ == '__main__':
  try:
    main(sys.argv[1:])
  except UserError as error:
    sys.exit(f'error: {error}')
