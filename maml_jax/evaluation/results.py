"""Results of evaluations on disk.

  WORKDIR/eval/NAME.json     means and intervals, config, seed, code, devices
  WORKDIR/eval/NAME.npz      the metrics of each task, [T, ...] each
  WORKDIR/eval/NAME_*.part   the metrics so far, of an unfinished evaluation

An evaluation resumes from a partial file if its parameters, tasks and code are
the same.
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
from maml_jax.config_versions import RENAMED_AUGMENTATIONS
from maml_jax.utils import distributed
from maml_jax.utils.files import (
  oserror_as_user_error,
  oserror_message,
  replace_file,
  write_text,
)

__all__ = [
  'collect_metrics',
  'concatenate',
  'provenance',
  'rename_fields',
  'read_result',
  'result_path',
  'write_result',
]

SECONDS_BETWEEN_SAVES = 30.0

# Fields of results written by earlier versions -> current fields.
RENAMED_FIELDS = {'at_chance_by_luck': 'expected_at_chance'}
RENAMED_BASELINES = {'nearest_mean': 'nearest_centroid'}


def collect_metrics(
  run: Callable[[int], Iterator[Mapping[str, np.ndarray]]],
  partial_file: pathlib.Path,
  identity: Mapping,
  advance: Callable[[int], object],
) -> dict[str, np.ndarray]:
  """Collects the metrics of all tasks, resuming from a partial file.

  With several processes nothing is saved or resumed.

  Args:
    run: `run(start)` yields the metrics of the tasks from `start` on, several
      tasks at a time, each [n, ...].
    partial_file: where to save the metrics so far; it is not deleted here.
    identity: plain values; a partial file with other values is ignored.
    advance: `advance(n)` is called after n more tasks.

  Returns:
    Metrics by name, [T, ...] each.
  """
  label = json.dumps(identity, sort_keys=True)
  saves = not distributed.is_multiprocess()  # their files might differ
  found = _read_partial(partial_file, label) if saves else {}
  batches: list[Mapping[str, np.ndarray]] = [found] if found else []
  saved = time.monotonic()
  start = len(next(iter(found.values()))) if found else 0
  advance(start)
  try:
    for metrics in run(start):
      batches.append(metrics)
      advance(len(next(iter(metrics.values()))))
      if saves and time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
        batches[:], saved = [concatenate(batches)], time.monotonic()
        _write_partial(partial_file, label, batches[0])
  finally:  # for example after Ctrl-C
    if saves and batches:
      _write_partial(partial_file, label, concatenate(batches))
  return concatenate(batches)


def concatenate(batches: list[Mapping[str, np.ndarray]]) -> dict:
  """Concatenates the metrics of batches of tasks."""
  return {
    name: np.concatenate([batch[name] for batch in batches])
    for name in batches[0]
  }


def result_path(workdir: pathlib.Path, name: str) -> pathlib.Path:
  """Returns the path of the JSON file of a result."""
  return workdir / 'eval' / f'{name}.json'


def read_result(path: pathlib.Path) -> dict:
  """Reads a result; returns {} if it is missing or damaged."""
  try:
    result = json.loads(path.read_text())
  except (OSError, ValueError):
    return {}
  return result if isinstance(result, dict) else {}


def rename_fields(result: Mapping) -> dict:
  """Returns a result with the current names of those of earlier versions."""
  result = {RENAMED_FIELDS.get(key, key): x for key, x in result.items()}
  for row in result.get('baselines') or ():
    row['name'] = RENAMED_BASELINES.get(row['name'], row['name'])
  if (name := result.get('augment_support')) in RENAMED_AUGMENTATIONS:
    result['augment_support'] = RENAMED_AUGMENTATIONS[name]
  return result


def write_result(
  workdir: pathlib.Path, name: str, result: Mapping, arrays: Mapping
) -> None:
  """Writes a result and the metrics of each task; deletes partial files."""
  if not distributed.is_main_process():
    return
  path = result_path(workdir, name)
  with oserror_as_user_error(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path.with_suffix('.npz'), **arrays)
  write_text(path, json.dumps(result, indent=2))
  for partial_file in path.parent.glob(f'{name}_*.part'):
    partial_file.unlink()


def provenance() -> dict[str, str]:
  """Returns the versions of code and libraries, and the devices."""
  return {
    'version': maml_jax.__version__,
    'commit': _commit(),
    'jax': jax.__version__,
    'devices': distributed.describe_devices(),
  }


@functools.cache
def _commit() -> str:
  """Returns the commit of the code, with '+' if modified; '' if unknown."""
  folder = pathlib.Path(maml_jax.__file__).parent
  if not (folder.parent / '.git').exists():
    return ''

  def git(*args):
    command = ['git', '-C', str(folder), *args]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()

  with contextlib.suppress(OSError, subprocess.CalledProcessError):
    changes = git('status', '--porcelain', '--untracked-files=no', '.')
    return git('rev-parse', '--short=10', 'HEAD') + ('+' if changes else '')
  return ''


def _read_partial(path: pathlib.Path, identity: str) -> dict[str, np.ndarray]:
  """Returns the metrics in a partial file; {} if it cannot be used."""
  try:
    with np.load(path, allow_pickle=False) as arrays:
      found = dict(arrays)
  except (OSError, ValueError, zipfile.BadZipFile):
    return {}
  return found if str(found.pop('identity', '')) == identity else {}


def _write_partial(path: pathlib.Path, identity: str, metrics: Mapping) -> None:
  """Writes a partial file; only warns if that fails."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as new, new.open('wb') as file:
      np.savez(file, identity=np.array(identity), **metrics)
  except OSError as error:
    warnings.warn(
      f'cannot write {path}: {oserror_message(error)}; the evaluation '
      'continues, but cannot resume if interrupted',
      stacklevel=3,
    )
