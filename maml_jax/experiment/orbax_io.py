"""Reads and writes single checkpoints with Orbax.

A checkpoint holds arrays in `state`, and the config and validation metrics in
`meta`. Both have SHA-256 digests, which are compared before anything is read.
Reading a checkpoint never executes code.

This is the only module that uses Orbax.
"""

import contextlib
import hashlib
import json
import logging
import math
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import LatestN

from maml_jax import config as config_lib
from maml_jax.types import PyTree
from maml_jax.utils import distributed
from maml_jax.utils.errors import UserError, printable
from maml_jax.utils.files import (
  fsync,
  new_directory,
  oserror_as_user_error,
  oserror_message,
)

__all__ = [
  'Checkpoint',
  'list_steps',
  'make_manager',
  'one_line',
  'read',
  'require_supported_path',
  'make_save_args',
  'silenced_orbax',
  'written_checkpoint',
]

NUM_KEPT = 2
DIGESTS_FILE = 'digests.json'
# Orbax adds the second file after everything else is written, and ignores it.
FILES_WITHOUT_DIGEST = (DIGESTS_FILE, 'commit_success.txt')
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


@contextlib.contextmanager
def written_checkpoint(
  folder: pathlib.Path, args: ocp.args.Composite
) -> Iterator[pathlib.Path]:
  """Yields a checkpoint in a temporary directory; all processes call it.

  Args:
    folder: of the temporary directory; created if missing.
    args: from `make_save_args`, with NumPy arrays.

  Raises:
    UserError: the checkpoint cannot be written or read, or the block raises
      OSError.
  """
  require_supported_path(folder)
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
        silenced_orbax(),
        ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers)) as writer,
      ):
        writer.save(_LiteralPath(path), args)
      distributed.on_main_process(lambda: read(path).step)
    except OSError:
      raise
    except Exception as error:  # TensorStore and Orbax may raise anything
      if distributed.is_peer_failure(error):
        raise
      reason = one_line(error.__cause__ or error)
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
def silenced_orbax() -> Iterator[None]:
  """Discards the log of Orbax in the block; errors are raised."""

  def is_shown(record):
    return 'orbax' not in record.pathname

  logger = logging.getLogger('absl')
  logger.addFilter(is_shown)
  try:
    yield
  finally:
    logger.removeFilter(is_shown)


def make_save_args(arrays: PyTree, config: str, metrics: Mapping):
  """Returns the arguments for Orbax: arrays, and metadata with its digest."""
  metadata = {'config': config, 'metrics': dict(metrics)}
  metadata['step'] = int(arrays['step'])
  metadata['digest'] = _digest(_canonical(metadata))
  return ocp.args.Composite(
    state=_SaveArgs(arrays), meta=ocp.args.JsonSave(metadata)
  )


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


def make_manager(folder: pathlib.Path) -> ocp.CheckpointManager:
  options = ocp.CheckpointManagerOptions(
    preservation_policy=LatestN(NUM_KEPT), cleanup_tmp_directories=True
  )
  handlers = {'state': _DigestHandler(), 'meta': ocp.JsonCheckpointHandler()}
  return ocp.CheckpointManager(
    _LiteralPath(folder), options=options, item_handlers=handlers
  )


def read(path: pathlib.Path, step: int | None = None) -> Checkpoint:
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
    raise UserError(f'damaged checkpoint {path}: {one_line(error)}') from error


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


def one_line(error: BaseException) -> str:
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


def require_supported_path(path: pathlib.Path) -> None:
  """Raises UserError for a path that TensorStore or Orbax would change."""
  for text, name in (('\\', 'a backslash'), ('gs:/', 'gs:')):
    if text in f'{path.absolute()}/':
      raise UserError(
        f'{path.absolute()}: the path of a checkpoint must not contain {name}; '
        'rename the directory or use another one'
      )


def list_steps(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns the checkpoints in a folder, newest first."""
  found = folder.iterdir() if folder.is_dir() else ()
  return sorted(
    (path for path in found if path.name.isdecimal()),
    key=lambda path: -int(path.name),
  )
