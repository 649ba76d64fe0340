"""Checkpoints of a run.

  WORKDIR/checkpoints/latest/STEP/   where to go on from
  WORKDIR/checkpoints/best/STEP/     best on validation, saved when it was met
  WORKDIR/checkpoints/aside/         what a run that went back has overtaken

Of `latest` and `best` the newest two are kept. A checkpoint holds arrays, in
`state`, and facts, in `meta`: the config and the metrics on validation. Both
come with digests of their bytes, which are compared before anything is read.
Reading a checkpoint reads data, never code.

Orbax is used here and nowhere else.
"""

import hashlib
import json
import os
import pathlib
import time
import warnings
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import LatestN

from maml_jax import config as config_lib
from maml_jax.errors import UserError
from maml_jax.metrics import is_better
from maml_jax.types import MetaState, PyTree

KEPT = 2
DIGESTS = 'digests.json'
SECONDS_BETWEEN_SAVES = 120.0


class Checkpoint(NamedTuple):
  """One checkpoint, its arrays in NumPy."""

  path: pathlib.Path
  config: ConfigDict
  step: int
  params: PyTree
  stats: PyTree
  opt_state: list[np.ndarray]  # its leaves
  metrics: dict[str, float]  # on validation; {} unless saved as best


class NotFinite(ArithmeticError):
  """A loss, a gradient or a state holds an infinity or a NaN."""


class Saver:
  """Writes the checkpoints of one run, in the background.

  A context manager: leaving it waits until all is written.

  Attributes:
    saved: the step of the last one written as `latest`, or gone on from.
  """

  def __init__(
      self, workdir: pathlib.Path, config: ConfigDict, saved: int | None
  ):
    self._folder = workdir.absolute() / 'checkpoints'
    self._config = config_lib.to_json(config)
    self._latest = _manager(self._folder / 'latest')
    self._best = _manager(self._folder / 'best')
    best = find(workdir, 'best')
    self._best_metrics = best.metrics if best else {}
    self._time = time.monotonic()
    self.saved = saved

  def due(self) -> bool:
    """Whether much would be lost if the process were killed now."""
    return time.monotonic() - self._time > SECONDS_BETWEEN_SAVES

  def save(self, state: MetaState) -> None:
    """Starts to save `state` as the latest, unless it is that already.

    Raises:
      NotFinite: there is an infinity or a NaN in `state`.
    """
    if int(state.step) != self.saved:
      self._write(self._latest, state, {})
      self._time, self.saved = time.monotonic(), int(state.step)

  def save_if_best(
      self, state: MetaState, metrics: Mapping[str, float]
  ) -> bool:
    """Saves a state if its metrics on validation are the best so far.

    Returns:
      Whether it is.
    """
    better = is_better(metrics, self._best_metrics)
    if better:
      self._write(self._best, state, metrics)
      self._best.wait_until_finished()
      self._best_metrics = metrics
    return better

  def _write(self, manager, state, metrics) -> None:
    arrays = _to_arrays(state)
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(arrays)):
      raise NotFinite(f'the state at step {state.step} is not finite')
    facts = {'config': self._config, 'metrics': dict(metrics)}
    facts['digest'] = _digest(_canonical(facts))
    step = int(state.step)
    self._set_aside(manager, step)
    manager.save(
        step,
        args=ocp.args.Composite(
            state=_Save(arrays), meta=ocp.args.JsonSave(facts)
        ),
    )

  def _set_aside(self, manager, step: int) -> None:
    """Moves checkpoints away that are not older than the one to be written.

    There are some if the newest was damaged, and the run went on from before.
    """
    folder = pathlib.Path(manager.directory)
    overtaken = [path for path in _steps(folder) if int(path.name) >= step]
    for path in overtaken:
      aside = self._folder / 'aside' / f'{folder.name}-{path.name}'
      aside.parent.mkdir(exist_ok=True)
      path.rename(_unused(aside))
    if overtaken:
      manager.reload()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._latest.close()
    self._best.close()


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
      return _read(path)
    except UserError as error:
      warnings.warn(f'passed over a {error}', stacklevel=2)
  if steps:
    raise UserError(f'all checkpoints in {folder} are damaged')
  return None


def _to_arrays(state: MetaState) -> dict[str, PyTree]:
  """Plain dicts of NumPy arrays, which nothing that runs on can change."""
  leaves = jax.tree.leaves(state.opt_state)
  named = {f'{i:04}': leaf for i, leaf in enumerate(leaves)}
  tree = state._asdict() | {'opt_state': named}
  return jax.tree.map(np.array, jax.device_get(tree))


class _Handler(ocp.PyTreeCheckpointHandler):
  """Leaves digests of the files that it has written with them."""

  def finalize(self, directory):
    super().finalize(directory)
    folder = pathlib.Path(directory)
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    digests = {
        str(file.relative_to(folder)): _digest(file.read_bytes())
        for file in files
    }
    (folder / DIGESTS).write_text(json.dumps(digests))


@ocp.args.register_with_handler(_Handler, for_save=True, for_restore=True)
class _Save(ocp.args.PyTreeSave):
  """The arguments of `_Handler`."""


def _manager(folder: pathlib.Path) -> ocp.CheckpointManager:
  options = ocp.CheckpointManagerOptions(
      preservation_policy=LatestN(KEPT), cleanup_tmp_directories=True
  )
  handlers = {'state': _Handler(), 'meta': ocp.JsonCheckpointHandler()}
  return ocp.CheckpointManager(
      folder, options=options, item_handlers=handlers
  )


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


def _read(path: pathlib.Path) -> Checkpoint:
  try:
    facts = json.loads((path / 'meta' / 'metadata').read_text())
    _compare(facts.pop('digest'), _canonical(facts), 'meta')
    arrays = _read_arrays(path.absolute() / 'state')
    return Checkpoint(
        path=path,
        config=config_lib.from_json(facts['config']),
        step=int(arrays['step']),
        params=arrays['params'],
        stats=arrays['stats'],
        opt_state=[leaf for _, leaf in sorted(arrays['opt_state'].items())],
        metrics=facts['metrics'],
    )
  except Exception as error:  # damage shows in more ways than can be listed
    reason = str(error).partition('\n')[0][:200]
    raise UserError(f'damaged checkpoint {path}: {reason}') from error


def _read_arrays(folder: pathlib.Path) -> PyTree:
  digests = json.loads((folder / DIGESTS).read_text())
  for name, digest in digests.items():
    _compare(digest, (folder / name).read_bytes(), name)
  handler = ocp.PyTreeCheckpointHandler()
  as_numpy = jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
      handler.metadata(folder).tree,
  )
  args = ocp.args.PyTreeRestore(restore_args=as_numpy)
  return handler.restore(folder, args=args)


def _compare(digest: str, content: bytes, name: str) -> None:
  if digest != _digest(content):
    raise ValueError(f'{name} is not as it was written')


def _digest(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()


def _canonical(facts: Mapping) -> bytes:
  return json.dumps(facts, sort_keys=True).encode()
