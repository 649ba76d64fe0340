"""The metrics of a run on disk, as JSON lines and for TensorBoard.

WORKDIR/metrics.jsonl holds one object per line, ordered by `step`:
  {"step", "split": "train", "loss", "accuracy", ..., "seconds"}: means over the
    meta-iterations since the previous record, and their duration;
  {"step", "split": "val", "loss", "accuracy", "interval", "seconds"}: means
    over the validation tasks; `interval` is half the width of the 95 %
    confidence interval of the accuracy.
Accuracies are in [0, 1]. Regression has no accuracy; there the interval is that
of the loss. WORKDIR/tensorboard/ holds the same numbers.
"""

import json
import pathlib
from collections.abc import Mapping

import jax
import numpy as np

from maml_jax.experiment.tensorboard import TensorBoardWriter
from maml_jax.utils import distributed
from maml_jax.utils.files import fsync, oserror_as_user_error, write_text

__all__ = ['METRICS_FILE', 'MetricsLog', 'read_records']

METRICS_FILE = 'metrics.jsonl'


class MetricsLog:
  """Appends records to the metrics of a workdir; a context manager.

  Records of steps after the one that a run resumes from are dropped first, so
  that no step appears twice. With several processes, only the main one writes.

  Args:
    workdir: the directory of the run.
    step: the step that the run resumes from.

  Raises:
    UserError: a record cannot be written.
  """

  def __init__(self, workdir: pathlib.Path, step: int):
    self._path, self._step = workdir / METRICS_FILE, step
    self._tensorboard = None
    self._validated = set(distributed.on_main_process(self._open))
    self._rows = []

  def _open(self) -> list[int]:
    """Truncates the files to `step`; returns the steps already validated."""
    folder, step = self._path.parent, self._step
    kept = [r for r in read_records(folder) if r['step'] <= step]
    write_text(self._path, ''.join(json.dumps(r) + '\n' for r in kept))
    self._tensorboard = TensorBoardWriter(folder / 'tensorboard', step + 1)
    return [r['step'] for r in kept if r['split'] == 'val']

  def train(self, rows: Mapping[str, np.ndarray], seconds: float) -> None:
    """Adds the metrics [n] of n meta-iterations to the next record."""
    n = len(rows['loss'])
    self._rows.append({**rows, 'seconds': np.full(n, seconds / n)})

  def flush(self, step: int) -> None:
    """Writes the metrics passed to `train` as one record."""
    if self._rows:
      rows = jax.tree.map(lambda *x: np.concatenate(x), *self._rows)
      values = {name: float(x.mean()) for name, x in rows.items()}
      values['seconds'] = float(rows['seconds'].sum())
      self.write(step, 'train', values)
      self._rows = []

  def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
    """Writes one record."""
    if split == 'val':
      self._validated.add(step)
    if self._tensorboard is None:
      return
    record = {'step': step, 'split': split, **values}
    with oserror_as_user_error(self._path), self._path.open('a') as file:
      file.write(json.dumps(record) + '\n')
    scalars = {f'{split}/{name}': x for name, x in values.items()}
    self._tensorboard.write(step, scalars)
    if split == 'val':
      with oserror_as_user_error(self._path):
        fsync(self._path)

  def is_validated(self, step: int) -> bool:
    """Returns whether there is a validation record of this step."""
    return step in self._validated

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self._tensorboard is not None:
      self._tensorboard.close()


def read_records(workdir: pathlib.Path) -> list[dict]:
  """Reads the records of a run: each has a 'step', a 'split' and numbers.

  Invalid lines, for example truncated by a crash, are skipped.
  """
  path, records = workdir / METRICS_FILE, []
  text = path.read_text(errors='replace') if path.exists() else ''
  for line in text.splitlines():
    try:
      record = json.loads(line)
    except (ValueError, RecursionError):
      continue
    if _is_record(record):
      records.append(record)
  return records


def _is_record(record: object) -> bool:
  if not isinstance(record, dict) or type(record.get('step')) is not int:
    return False
  values = (x for name, x in record.items() if name != 'split')
  is_number = all(type(x) in (int, float) for x in values)
  return isinstance(record.get('split'), str) and is_number
