"""Reads workdirs: their configs, metrics and evaluations.

Damaged and missing files are skipped with a note. Only a directory without any
metrics or evaluations is an error.
"""

import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from maml_jax import config as config_lib
from maml_jax.evaluation.results import rename_fields
from maml_jax.experiment import metrics_log
from maml_jax.utils.errors import UserError

__all__ = ['CELL_FIELDS', 'Evaluation', 'Run', 'read_run']

CELL_FIELDS = ('norm', 'queries', 'num_steps')  # the axes of a grid
TASK_FIELDS = ('data', 'split', 'ways', 'shots', 'num_tasks')

# Records and results that lack these fields are skipped.
RECORD_FIELDS = {'step', 'split', 'loss'}
REQUIRED_FIELDS = {
  'tasks': {*TASK_FIELDS, *CELL_FIELDS, 'loss', 'transductive'},
  'grid': {*TASK_FIELDS, 'cells'},
}

UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


class Evaluation(NamedTuple):
  """The content of WORKDIR/eval/NAME.json and NAME.npz."""

  path: pathlib.Path  # the JSON file
  result: dict  # its content; optional fields may be missing
  arrays: dict[str, np.ndarray]  # per task; {} if the file cannot be read


class Run(NamedTuple):
  """The content of one workdir."""

  path: pathlib.Path
  seed: int | None  # of the training; None if unknown
  config: dict  # flat, {'task.ways': 5, ...}; {} if unknown
  records: list[dict]  # of `metrics.jsonl`
  # Of the kind 'tasks', then 'grid'; both newest first, but those on another
  # data set than that of the training are the last ones.
  evaluations: list[Evaluation]
  notes: list[str]  # one line for each file that cannot be read


def read_run(workdir: str | os.PathLike) -> Run:
  """Reads one workdir.

  Raises:
    UserError: it is not a directory, or has neither metrics nor evaluations.
  """
  path, notes = pathlib.Path(workdir), []
  if not path.is_dir():
    raise UserError(f'workdir {path} does not exist')
  files = path.glob('eval/*.json')
  files = sorted(files, key=lambda f: (-f.stat().st_mtime, f.name))
  found = [e for file in files if (e := _read_evaluation(file, notes))]
  found.sort(key=lambda e: e.result.get('data_root') is not None)
  found.sort(key=lambda e: e.result['kind'], reverse=True)
  records = [
    record
    for record in metrics_log.read_records(path)
    if isinstance(record, dict) and RECORD_FIELDS <= record.keys()
  ]
  if not found and not records:
    raise UserError(
      f'{path} is not the workdir of a run: it contains neither '
      f'{metrics_log.METRICS_FILE} nor eval/*.json'
    )
  config = _read_config(path, found)
  seed = config.get('seed', found[0].result.get('seed') if found else None)
  return Run(path, seed, config, records, found, notes)


def _read_evaluation(file: pathlib.Path, notes: list[str]) -> Evaluation | None:
  """Reads one evaluation; adds a line to `notes` for each unreadable file."""
  try:
    result = _read_result(file)
  except (OSError, ValueError, TypeError, KeyError) as error:
    notes.append(
      f'Skipped {file}: damaged or written by another version ({error}).'
    )
    return None
  npz = file.with_suffix('.npz')
  try:  # np.load alone would leave a damaged file open
    with npz.open('rb') as opened, np.load(opened) as arrays:
      return Evaluation(file, result, dict(arrays))
  except FileNotFoundError:
    notes.append(f'No figures per task: {npz} is missing.')
  except UNREADABLE as error:
    notes.append(f'No figures per task: cannot read {npz} ({error}).')
  return Evaluation(file, result, {})


def _read_result(file: pathlib.Path) -> dict:
  """Reads a JSON file and renames the keys of earlier versions."""
  result = rename_fields({'kind': 'tasks'} | json.loads(file.read_text()))
  required = REQUIRED_FIELDS[result['kind']]
  if not required <= result.keys() or result.get('cells') == []:
    raise ValueError('fields are missing')
  if result['kind'] == 'grid':  # only its cells have these fields
    return {k: x for k, x in result.items() if k not in CELL_FIELDS}
  return result


def _read_config(path: pathlib.Path, evaluations: Sequence[Evaluation]) -> dict:
  """Returns the config of a workdir, or that of an evaluated checkpoint."""
  texts = [
    json.dumps(e.result['config']) for e in evaluations if 'config' in e.result
  ]
  file = path / 'config.json'
  if file.is_file():
    texts.insert(0, file.read_text(errors='replace'))
  for text in texts:
    try:
      return config_lib.flatten(config_lib.from_json(text))
    except (ValueError, TypeError, AttributeError):
      continue
  return {}
