"""Checkpoints of runs, and stand-alone checkpoints.

    python -m maml_jax.experiment.checkpoint WORKDIR DIR  # export, without
                                                          # optimizer state

    WORKDIR/checkpoints/latest/STEP/   where the run resumes
    WORKDIR/checkpoints/best/STEP/     best on validation
    WORKDIR/checkpoints/aside/         set aside when an older step resumed

The newest two of `latest` and `best` are kept.
"""

import argparse
import hashlib
import os
import pathlib
import sys
import warnings
from collections.abc import Sequence

import jax
import numpy as np

from maml_jax import config as config_lib
from maml_jax.experiment import orbax_io
from maml_jax.experiment.orbax_io import Checkpoint
from maml_jax.utils import distributed
from maml_jax.utils.devices import require_devices
from maml_jax.utils.errors import UserError
from maml_jax.utils.files import expand_path

__all__ = [
  'Checkpoint',
  'export',
  'find',
  'find_on_all_processes',
  'fingerprint',
  'load',
]


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
  orbax_io.require_supported_path(path)
  if (path / 'meta').is_dir():
    return orbax_io.read(path)
  saved = find(path, which)
  if saved is None:
    has_latest = which == 'best' and orbax_io.list_steps(
      path / 'checkpoints' / 'latest'
    )
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
  orbax_io.require_supported_path(path)
  arrays = {'step': np.int32(saved.step), 'params': saved.params}
  arrays |= {'stats': saved.stats, 'opt_state': {}}
  args = orbax_io.make_save_args(
    arrays, config_lib.to_json(saved.config), saved.metrics
  )
  with orbax_io.written_checkpoint(path.absolute().parent, args) as written:
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
  orbax_io.require_supported_path(workdir)
  folder = workdir / 'checkpoints' / which
  steps = orbax_io.list_steps(folder)
  for path in steps:
    try:
      return orbax_io.read(path, int(path.name))
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
  return orbax_io.read(path)


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
