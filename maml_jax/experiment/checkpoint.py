"""Checkpoints of runs, and stand-alone checkpoints.

    python -m maml_jax.experiment.checkpoint WORKDIR DIR  # export, without
                                                          # optimizer state

    WORKDIR/checkpoints/latest/STEP/   where the run resumes
    WORKDIR/checkpoints/best/STEP/     best on validation
    WORKDIR/checkpoints/aside/         set aside when an older step resumed

The newest two of `latest` and `best` are kept. A checkpoint holds arrays in
`state`, and the config and validation metrics in `meta`. Both have SHA-256
digests, which are compared before anything is read. Reading a checkpoint never
executes code.

This is the only module that uses Orbax.
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
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import LatestN

from maml_jax import config as config_lib
from maml_jax.experiment.metrics import is_better
from maml_jax.types import MetaState, PyTree
from maml_jax.utils import distributed
from maml_jax.utils.devices import require_devices
from maml_jax.utils.errors import NonFiniteError, UserError, printable
from maml_jax.utils.files import (
  expand_path,
  fsync,
  new_directory,
  oserror_as_user_error,
  oserror_message,
  require_free_space,
)

__all__ = [
  'Checkpoint',
  'CheckpointWriter',
  'export',
  'find',
  'find_on_all_processes',
  'fingerprint',
  'load',
]

NUM_KEPT = 2
DIGESTS_FILE = 'digests.json'
# Orbax adds the second file after everything else is written, and ignores it.
FILES_WITHOUT_DIGEST = (DIGESTS_FILE, 'commit_success.txt')
SECONDS_BETWEEN_SAVES = 120.0
METADATA_BYTES = 2**18  # upper bound of what is written besides the arrays
# Arrays may exceed the size of their files by this factor plus this many bytes;
# more is a decompression bomb.
MAX_COMPRESSION, MAX_EXTRA_BYTES = 100, 2**26


class Checkpoint(NamedTuple):
  """One checkpoint, with NumPy arrays.

  Attributes:
    path: its directory.
    config: of the training.
    step: number of meta-iterations.
    params: the meta-parameters.
    stats: the statistics that every task starts from.
    opt_state: the leaves of the state of the outer optimizer.
    metrics: validation metrics; {} unless saved as best.
  """

  path: pathlib.Path
  config: ConfigDict
  step: int
  params: PyTree
  stats: PyTree
  opt_state: list[np.ndarray]
  metrics: dict[str, float]


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
      self._latest = _make_manager(self._folder / 'latest')
      self._best = _make_manager(self._folder / 'best')
    best = distributed.on_main_process(
      lambda: _step_and_metrics(find(workdir, 'best'))
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
      raise UserError(
        f'cannot write a checkpoint in {self._folder}: {_reason(error)}. '
        'Existing checkpoints are kept; fix the cause, such as a full disk, '
        'and run the same command to resume'
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
    manager.save(step, args=_save_args(arrays, self._config, metrics))

  def _set_aside(self, manager, step: int) -> None:
    """Moves checkpoints of `step` or later away.

    They exist if the newest was damaged and the run resumed from an older one.
    """
    folder = pathlib.Path(manager.directory)

    def move() -> bool:
      overtaken = [path for path in _steps(folder) if int(path.name) >= step]
      for path in overtaken:
        aside = self._folder / 'aside' / f'{folder.name}-{path.name}'
        aside.parent.mkdir(exist_ok=True)
        path.rename(_unused_path(aside))
      return bool(overtaken)

    if distributed.on_main_process(move):
      manager.reload()

  def __enter__(self):
    self._log.enter_context(_silenced_orbax())
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


def load(path: str | os.PathLike, which: str = 'best') -> Checkpoint:
  """Loads a checkpoint.

  Args:
    path: a workdir, or the directory of one checkpoint.
    which: 'best' or 'latest' of a workdir.

  Raises:
    UserError: there is no valid checkpoint.
  """
  path = expand_path(path)
  if not path.is_dir():
    raise UserError(f'no such directory: {path}')
  require_devices()  # Orbax needs one, and would report a damaged checkpoint
  _require_supported(path)
  if (path / 'meta').is_dir():
    return _read(path)
  saved = find(path, which)
  if saved is None:
    has_latest = which == 'best' and _steps(path / 'checkpoints' / 'latest')
    hint = ''
    if has_latest:
      hint = (
        f', but a latest one: use --eval.checkpoint=latest, or {has_latest[0]}'
      )
    raise UserError(f'no {which} checkpoint in {path}{hint}')
  return saved


def export(saved: Checkpoint, path: str | os.PathLike) -> pathlib.Path:
  """Writes a stand-alone checkpoint without the optimizer state.

  Args:
    saved: the checkpoint to write.
    path: the directory to create.

  Returns:
    The path.

  Raises:
    UserError: `path` exists or cannot be written, or what is written cannot be
      read.
  """
  path = expand_path(path)
  if path.exists():
    raise UserError(f'{path} already exists; choose a new directory')
  _require_supported(path)
  arrays = {'step': np.int32(saved.step), 'params': saved.params}
  arrays |= {'stats': saved.stats, 'opt_state': {}}
  args = _save_args(arrays, config_lib.to_json(saved.config), saved.metrics)
  with _written_checkpoint(path.absolute().parent, args) as written:
    # These contain paths and times of this machine; `load` ignores them.
    for name in ('commit_success.txt', '_CHECKPOINT_METADATA'):
      for file in written.rglob(name):
        file.unlink()
    written.rename(path)
  return path


def fingerprint(saved: Checkpoint) -> str:
  """Returns a hash of parameters and statistics."""
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves((saved.params, saved.stats)):
    digest.update(leaf.tobytes())
  return digest.hexdigest()[:16]


def find(workdir: pathlib.Path, which: str) -> Checkpoint | None:
  """Returns the newest valid checkpoint of a workdir; None if it has none.

  Warns about each damaged one.

  Args:
    workdir: may not exist yet.
    which: 'best' or 'latest'.

  Raises:
    UserError: all checkpoints are damaged, or the path of the workdir contains
      a backslash.
  """
  _require_supported(workdir)
  folder = workdir / 'checkpoints' / which
  steps = _steps(folder)
  for path in steps:
    try:
      return _read(path, int(path.name))
    except UserError as error:
      warnings.warn(f'skipping a {error}', stacklevel=2)
  if steps:
    names = ', '.join(path.name for path in steps)
    raise UserError(
      f'all checkpoints in {folder} are damaged: {names}. Restore one, or '
      f'move {folder} away to start a new run; --checkpoint=DIR starts from '
      'the parameters of another checkpoint'
    )
  return None


def find_on_all_processes(
  workdir: pathlib.Path, which: str
) -> Checkpoint | None:
  """Returns `find` of the main process on all processes.

  Raises:
    UserError: see `find`; or a process does not see the workdir.
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
    raise UserError(
      f'{path} does not exist on this host; all hosts must share the workdir'
    )
  return _read(path)


def _require_supported(path: pathlib.Path) -> None:
  """Raises UserError for a path that TensorStore or Orbax would change."""
  for text, name in (('\\', 'a backslash'), ('gs:/', 'gs:')):
    if text in f'{path.absolute()}/':
      raise UserError(
        f'{path.absolute()}: the path of a checkpoint must not contain {name}; '
        'rename the directory or use another one'
      )


def _try_to_write(folder: pathlib.Path, config: str) -> None:
  """Writes a small checkpoint to a folder, reads it and removes it.

  Raises:
    UserError: it cannot be written or read.
  """
  arrays = {'step': np.int32(0), 'params': {'x': np.arange(3)}}
  args = _save_args(arrays | {'stats': {}, 'opt_state': {}}, config, {})
  with _written_checkpoint(folder, args):
    pass


@contextlib.contextmanager
def _written_checkpoint(
  folder: pathlib.Path, args: ocp.args.Composite
) -> Iterator[pathlib.Path]:
  """Yields a checkpoint in a temporary directory; all processes call it.

  Args:
    folder: of the temporary directory; created if missing.
    args: from `_save_args`, with NumPy arrays.

  Raises:
    UserError: the checkpoint cannot be written or read, or the block raises
      OSError.
  """
  _require_supported(folder)
  handlers = {'state': _DigestHandler(), 'meta': ocp.JsonCheckpointHandler()}
  with contextlib.ExitStack() as stack:
    stack.enter_context(oserror_as_user_error(folder))

    def make_directory() -> str:
      stack.enter_context(new_directory(folder))
      temporary = tempfile.TemporaryDirectory(prefix='.write-', dir=folder)
      return stack.enter_context(temporary)

    path = pathlib.Path(distributed.on_main_process(make_directory), 'new')
    try:
      with (
        _silenced_orbax(),
        ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers)) as writer,
      ):
        writer.save(_LiteralPath(path), args)
      distributed.on_main_process(lambda: _read(path).step)
    except OSError:
      raise
    except Exception as error:  # TensorStore and Orbax may raise anything
      if distributed.is_peer_failure(error):
        raise
      reason = _reason(error.__cause__ or error)
      raise UserError(
        f'checkpoints in {folder} cannot be read ({reason}): use another '
        'directory'
      ) from error
    yield path


class _LiteralPath(type(epath.Path())):
  """A path that `glob` takes literally, whatever characters it contains.

  Orbax lists the files of each process with `glob`, and etils would interpret
  the brackets in '/my project [2026]/run'. Paths below it have this type, too.
  """

  def glob(self, pattern: str) -> Iterator['_LiteralPath']:
    return map(type(self), pathlib.Path(self).glob(pattern))


@contextlib.contextmanager
def _silenced_orbax() -> Iterator[None]:
  """Discards the log of Orbax in the block; errors are raised."""

  def is_shown(record):
    return 'orbax' not in record.pathname

  logger = logging.getLogger('absl')
  logger.addFilter(is_shown)
  try:
    yield
  finally:
    logger.removeFilter(is_shown)


def _save_args(arrays: PyTree, config: str, metrics: Mapping):
  """Returns the arguments for Orbax: arrays, and metadata with its digest."""
  metadata = {'config': config, 'metrics': dict(metrics)}
  metadata['step'] = int(arrays['step'])
  metadata['digest'] = _digest(_canonical(metadata))
  return ocp.args.Composite(
    state=_SaveArgs(arrays), meta=ocp.args.JsonSave(metadata)
  )


def _to_arrays(state: MetaState) -> dict[str, PyTree]:
  """Copies a state to plain dicts of NumPy arrays."""
  return jax.tree.map(np.array, jax.device_get(_to_tree(state)))


def _to_tree(state: MetaState) -> dict[str, PyTree]:
  """Converts a state to plain dicts."""
  leaves = jax.tree.leaves(state.opt_state)
  numbered = {f'{i:04}': leaf for i, leaf in enumerate(leaves)}
  return state._asdict() | {'opt_state': numbered}


def _step_and_metrics(saved: Checkpoint | None):
  return saved and (saved.step, saved.metrics)


class _DigestHandler(ocp.PyTreeCheckpointHandler):
  """Adds digests of the written files, and flushes everything to the disk.

  Orbax renames the checkpoint and deletes older ones only afterwards.
  """

  def finalize(self, directory):
    super().finalize(directory)
    folder = pathlib.Path(directory)
    digests = {name: _digest(file) for name, file in _files(folder).items()}
    (folder / DIGESTS_FILE).write_text(json.dumps(digests))
    for path in folder.parent.rglob('*'):
      fsync(path)


@ocp.args.register_with_handler(_DigestHandler, for_save=True, for_restore=True)
class _SaveArgs(ocp.args.PyTreeSave):
  """The arguments of `_DigestHandler`."""


def _files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns the files that have a digest, by their relative path.

  Raises:
    ValueError: the folder contains something else than files and folders.
  """
  files = {}
  for path in sorted(folder.rglob('*')):
    name = path.relative_to(folder).as_posix()
    if path.is_symlink() or not (path.is_file() or path.is_dir()):
      raise ValueError(f'{name} is not a file')
    if path.is_file() and name not in FILES_WITHOUT_DIGEST:
      files[name] = path
  return files


def _make_manager(folder: pathlib.Path) -> ocp.CheckpointManager:
  options = ocp.CheckpointManagerOptions(
    preservation_policy=LatestN(NUM_KEPT), cleanup_tmp_directories=True
  )
  handlers = {'state': _DigestHandler(), 'meta': ocp.JsonCheckpointHandler()}
  return ocp.CheckpointManager(
    _LiteralPath(folder), options=options, item_handlers=handlers
  )


def _steps(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns the checkpoints in a folder, newest first."""
  found = folder.iterdir() if folder.is_dir() else ()
  return sorted(
    (path for path in found if path.name.isdecimal()),
    key=lambda path: -int(path.name),
  )


def _unused_path(path: pathlib.Path) -> pathlib.Path:
  """Returns `path`, with a number appended if it exists."""
  unused, count = path, 1
  while unused.exists():
    count += 1
    unused = path.with_name(f'{path.name}-{count}')
  return unused


def _read(path: pathlib.Path, step: int | None = None) -> Checkpoint:
  """Reads a checkpoint, which must have the given step, if any."""
  try:
    metadata = json.loads((path / 'meta' / 'metadata').read_text())
    if metadata.pop('digest') != _digest(_canonical(metadata)):
      raise ValueError('meta does not match its digest')
    config = config_lib.from_json(metadata['config'])
    config_lib.validate(config)
    arrays = _read_arrays(path.absolute() / 'state')
    found = int(arrays['step'])
    if {found, metadata.get('step', found), step or found} != {found}:
      raise ValueError(f'its arrays belong to step {found}')
    return Checkpoint(
      path=path,
      config=config,
      step=found,
      params=arrays['params'],
      stats=arrays['stats'],
      opt_state=[leaf for _, leaf in sorted(arrays['opt_state'].items())],
      metrics={name: float(x) for name, x in metadata['metrics'].items()},
    )
  except Exception as error:  # damaged files may raise anything
    raise UserError(f'damaged checkpoint {path}: {_reason(error)}') from error


def _read_arrays(folder: pathlib.Path) -> PyTree:
  """Reads arrays whose files match their digests and have a plausible size."""
  digests = json.loads((folder / DIGESTS_FILE).read_text())
  files = _files(folder)  # no other file is opened, whatever the digests name
  for name in digests.keys() ^ files.keys():
    problem = 'missing' if name in digests else 'not listed in digests.json'
    raise ValueError(f'{name} is {problem}')
  for name, file in files.items():
    if digests[name] != _digest(file):
      raise ValueError(f'{name} does not match its digest')
  handler = ocp.PyTreeCheckpointHandler()
  tree = handler.metadata(folder).tree
  size = sum(file.stat().st_size for file in files.values())
  claimed = sum(
    math.prod(x.shape) * np.dtype(x.dtype).itemsize
    for x in jax.tree.leaves(tree)
  )
  if claimed > MAX_COMPRESSION * size + MAX_EXTRA_BYTES:
    raise ValueError(f'files of {size} bytes declare arrays of {claimed} bytes')
  as_numpy = jax.tree.map(
    lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
  )
  args = ocp.args.PyTreeRestore(restore_args=as_numpy)
  return handler.restore(folder, args=args)


def _reason(error: BaseException) -> str:
  """Returns the first line of an error, truncated."""
  if isinstance(error, OSError):
    return oserror_message(error)
  message = str(error) or type(error).__name__
  return printable(message.partition('\n')[0])


def _digest(content: bytes | pathlib.Path) -> str:
  """Returns the SHA-256 digest of bytes, or of the content of a file."""
  if isinstance(content, pathlib.Path):
    with content.open('rb') as file:
      return hashlib.file_digest(file, 'sha256').hexdigest()
  return hashlib.sha256(content).hexdigest()


def _canonical(metadata: Mapping) -> bytes:
  return json.dumps(metadata, sort_keys=True).encode()


def main(argv: Sequence[str]) -> None:
  """Exports a checkpoint."""
  parser = argparse.ArgumentParser(
    description=(export.__doc__ or '').split('\n')[0]
  )
  parser.add_argument(
    'source', metavar='WORKDIR', help='directory of a run, or of one checkpoint'
  )
  parser.add_argument('path', metavar='DIR', help='the directory to create')
  parser.add_argument('--which', choices=('best', 'latest'), default='best')
  args = parser.parse_args(argv)
  print(export(load(args.source, args.which), args.path))


if __name__ == '__main__':
  try:
    main(sys.argv[1:])
  except UserError as error:
    sys.exit(f'error: {error}')
