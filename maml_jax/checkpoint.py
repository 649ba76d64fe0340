"""Checkpoints of a run.

  WORKDIR/checkpoints/latest/STEP/   where to go on from
  WORKDIR/checkpoints/best/STEP/     best on validation, saved when it was met

Each of the two keeps the newest and the one before it. A checkpoint holds the
arrays (`state`) and a few facts (`meta`), the config and a digest of the arrays
among them, so that damage is noticed. Reading one reads data, never code.

Orbax is used here and nowhere else.
"""

import hashlib
import json
import os
import pathlib
import time
import warnings
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import LatestN

from maml_jax import config as config_lib
from maml_jax.errors import UserError
from maml_jax.types import MetaState, PyTree

KEPT = 2
SECONDS_BETWEEN_SAVES = 120


class Checkpoint(NamedTuple):
  """One checkpoint, its arrays in NumPy."""

  path: pathlib.Path
  config: ConfigDict
  step: int
  params: PyTree
  stats: PyTree
  opt_state: list[np.ndarray]  # the leaves
  metrics: dict[str, float]  # on validation; empty for one of `latest`


class NotFinite(ArithmeticError):
  """The state holds an infinity or a NaN, and was not saved."""


class Saver:
  """Writes the checkpoints of one run, in the background."""

  def __init__(self, workdir: pathlib.Path, config: ConfigDict):
    self._folder = workdir.absolute() / 'checkpoints'
    self._config = config_lib.to_json(config)
    self._managers = {
        kind: _manager(self._folder / kind) for kind in ('latest', 'best')
    }
    self._saved = time.monotonic()

  def due(self) -> bool:
    """Whether the last save was long ago."""
    return time.monotonic() - self._saved > SECONDS_BETWEEN_SAVES

  def save(self, state: MetaState, metrics: dict[str, float] | None = None):
    """Saves `state` as the latest or, with `metrics` on validation, the best.

    Raises:
      NotFinite: there is an infinity or a NaN in `state`.
    """
    kind = 'latest' if metrics is None else 'best'
    arrays = _arrays(state)
    step = int(arrays['step'])
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(arrays)):
      raise NotFinite(f'the state after step {step} is not finite')
    meta = {
        'config': self._config,
        'step': step,
        'metrics': metrics or {},
        'digest': digest(arrays),
    }
    manager = self._managers[kind]
    self._set_aside(kind, step)
    manager.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.PyTreeSave(arrays), meta=ocp.args.JsonSave(meta)
        ),
        force=True,
    )
    if metrics is None:
      self._saved = time.monotonic()

  def _set_aside(self, kind: str, step: int) -> None:
    """Moves checkpoints of this step and later ones, which a run that goes on

    from an earlier one has not got to yet, out of the way."""
    manager = self._managers[kind]
    for path in _steps(self._folder / kind):
      if int(path.name) >= step:
        manager.wait_until_finished()
        aside = self._folder / 'aside' / f'{kind}-{path.name}-{time.time_ns()}'
        aside.parent.mkdir(exist_ok=True)
        path.rename(aside)
        manager.reload()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for manager in self._managers.values():
      manager.close()


def load(path: str | os.PathLike, which: str = 'best') -> Checkpoint:
  """Reads a checkpoint.

  Args:
    path: a workdir, or the directory of one checkpoint.
    which: 'best' or 'latest', in a workdir.

  Raises:
    UserError: there is none, or none that is sound.
  """
  path = pathlib.Path(path)
  if (path / 'meta').is_dir():
    return _read(path)
  found = find(path, which)
  if found is None:
    raise UserError(f'no {which} checkpoint in {path}')
  return found


def find(workdir: pathlib.Path, which: str) -> Checkpoint | None:
  """The newest sound checkpoint, with a warning for each damaged one; None if

  there is none at all."""
  steps = _steps(workdir / 'checkpoints' / which)
  for path in steps:
    try:
      return _read(path)
    except UserError as error:
      warnings.warn(str(error), stacklevel=2)
  if steps:
    raise UserError(f'no sound checkpoint is left in {steps[0].parent}')
  return None


def digest(arrays: PyTree) -> str:
  """SHA-256 of the names, types, shapes and bytes of arrays."""
  total = hashlib.sha256()
  for path, x in jax.tree_util.tree_leaves_with_path(arrays):
    x = np.asarray(x)
    name = jax.tree_util.keystr(path)
    total.update(f'{name} {x.dtype} {x.shape}\n'.encode())
    total.update(np.ascontiguousarray(x).tobytes())
  return total.hexdigest()


def _arrays(state: MetaState) -> PyTree:
  """A copy on the host, in plain dicts."""
  leaves = jax.tree.leaves(state.opt_state)
  named = {f'{i:04}': leaf for i, leaf in enumerate(leaves)}
  tree = state._asdict() | {'opt_state': named}
  return jax.tree.map(np.array, jax.device_get(tree))


def _manager(folder: pathlib.Path) -> ocp.CheckpointManager:
  options = ocp.CheckpointManagerOptions(
      preservation_policy=LatestN(KEPT), cleanup_tmp_directories=True
  )
  return ocp.CheckpointManager(folder, options=options)


def _steps(folder: pathlib.Path) -> list[pathlib.Path]:
  """The checkpoints in a folder, newest first."""
  found = folder.iterdir() if folder.is_dir() else ()
  return sorted(
      (p for p in found if p.name.isdecimal()), key=lambda p: -int(p.name)
  )


def _read(path: pathlib.Path) -> Checkpoint:
  try:
    meta = json.loads((path / 'meta' / 'metadata').read_text())
    arrays = _restore(path.absolute() / 'state')
    sound = meta['digest'] == digest(arrays)
    config = config_lib.from_json(meta['config'])
  except Exception as error:  # damage shows in too many ways to list
    raise UserError(f'damaged checkpoint {path}: {error!r:.200}') from error
  if not sound:
    raise UserError(f'damaged checkpoint {path}: the arrays have changed')
  return Checkpoint(
      path,
      config,
      int(arrays['step']),
      arrays['params'],
      arrays['stats'],
      [leaf for _, leaf in sorted(arrays['opt_state'].items())],
      meta['metrics'],
  )


def _restore(path: pathlib.Path) -> PyTree:
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    tree = checkpointer.metadata(path).item_metadata.tree
    as_numpy = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
    )
    return checkpointer.restore(
        path, args=ocp.args.PyTreeRestore(restore_args=as_numpy)
    )
