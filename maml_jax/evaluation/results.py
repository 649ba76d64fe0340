"""Results of evaluations on disk: what was measured, of what, by what.

  WORKDIR/eval/NAME.json     means and intervals, config, seed, code, device
  WORKDIR/eval/NAME.npz      the metrics of each task, [T, ...] each
  WORKDIR/eval/NAME_*.part   those measured so far, if not all are

A part is gone on from if it is of the same parameters, tasks and code.
"""

import contextlib
import functools
import json
import pathlib
import subprocess
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np

import maml_jax
from maml_jax.utils import distributed
from maml_jax.utils.files import oserror_as_user_error, oserror_message
from maml_jax.utils.distributed import describe_devices
from maml_jax.utils.files import write_text

SECONDS_BETWEEN_SAVES = 30.0


def collect_metrics(
    run: Callable[[int], Iterator[Mapping[str, np.ndarray]]],
    part: pathlib.Path,
    identity: Mapping,
    advance: Callable[[int], None],
) -> dict[str, np.ndarray]:
  """Gathers the metrics of all tasks, and goes on where it was interrupted.

  Several processes begin anew.

  Args:
    run: `run(start)` yields the metrics of the tasks from `start` on, some at
      a time, each [n, ...].
    part: where to keep what is measured; it is left there.
    identity: plain values; a part of any other is not gone on from.
    advance: `advance(n)` is called after n more tasks.

  Returns:
    Metrics by name, [T, ...] each.
  """
  identity = json.dumps(identity, sort_keys=True)
  keeps = not distributed.is_multiprocess()  # they might find different parts
  kept = _read_part(part, identity) if keeps else {}
  rows, saved = [kept] if kept else [], time.monotonic()
  start = len(next(iter(kept.values()))) if kept else 0
  advance(start)
  try:
    for metrics in run(start):
      rows.append(metrics)
      advance(len(next(iter(metrics.values()))))
      if keeps and time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
        rows, saved = [concatenate(rows)], time.monotonic()
        _write_part(part, identity, rows[0])
  finally:  # after Ctrl-C, say
    if keeps and rows:
      _write_part(part, identity, concatenate(rows))
  return concatenate(rows)


def concatenate(rows: list[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Metrics of some tasks, and of some more, as those of all of them."""
  return {name: np.concatenate([r[name] for r in rows]) for name in rows[0]}


def result_path(workdir: pathlib.Path, name: str) -> pathlib.Path:
  """The .json file of a result."""
  return workdir / 'eval' / f'{name}.json'


def read_result(path: pathlib.Path) -> dict:
  """A result; {} if there is none, or none that is sound."""
  try:
    result = json.loads(path.read_text())
  except (OSError, ValueError):
    return {}
  return result if isinstance(result, dict) else {}


def write_result(
    workdir: pathlib.Path, name: str, result: Mapping, arrays: Mapping
) -> None:
  """Writes a result and the metrics of each task, in the place of parts."""
  if not distributed.is_main_process():
    return
  path = result_path(workdir, name)
  with oserror_as_user_error(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path.with_suffix('.npz'), **arrays)
  write_text(path, json.dumps(result, indent=2))
  for part in path.parent.glob(f'{name}_*.part'):
    part.unlink()


def provenance() -> dict[str, str]:
  """By what something is measured: code, libraries, devices."""
  return {
      'version': maml_jax.__version__,
      'commit': _commit(),
      'jax': jax.__version__,
      'devices': describe_devices(),
  }


@functools.cache
def _commit() -> str:
  """The commit of the code, '+' behind it if files differ; '' if unknown."""
  folder = pathlib.Path(maml_jax.__file__).parent
  if not (folder.parent / '.git').exists():
    return ''

  def git(*words):
    done = subprocess.run(
        ['git', '-C', str(folder), *words],
        capture_output=True, text=True, check=True)  # fmt: skip
    return done.stdout.strip()

  with contextlib.suppress(OSError, subprocess.CalledProcessError):
    changed = git('status', '--porcelain', '--untracked-files=no', '.')
    return git('rev-parse', '--short=10', 'HEAD') + ('+' if changed else '')
  return ''


def _read_part(path: pathlib.Path, identity: str) -> dict[str, np.ndarray]:
  """What was measured before, {} if nothing that can be gone on from."""
  try:
    with np.load(path, allow_pickle=False) as arrays:
      kept = dict(arrays)
  except (OSError, ValueError, zipfile.BadZipFile):
    return {}
  return kept if str(kept.pop('identity', '')) == identity else {}


def _write_part(path: pathlib.Path, identity: str, metrics: Mapping) -> None:
  """Keeps what is measured so far, if it can."""
  new = path.with_name(path.name + '.new')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with new.open('wb') as file:
      np.savez(file, identity=np.array(identity), **metrics)
    new.replace(path)
  except OSError as error:
    warnings.warn(
        f'cannot write {path}: {oserror_message(error)}; going on without it', stacklevel=3
    )
