"""What a run reports: JSON lines and TensorBoard on disk, a bar on the screen.

WORKDIR/metrics.jsonl has one object a line, in order of `step`:
  {"step", "split": "train", "loss", "accuracy", ..., "seconds"}: means over the
    meta-iterations since the record before, and the time they took;
  {"step", "split": "val", "loss", "accuracy", "interval", "seconds"}: over the
    validation tasks; +-interval is a 95 % interval of the accuracy.
WORKDIR/tensorboard/ has the same numbers.
"""

import json
import math
import pathlib
import time

import numpy as np
from scipy.special import stdtrit
from tensorboardX import SummaryWriter
from tqdm import tqdm

from maml_jax.workdir import write_text

FILE = 'metrics.jsonl'


class Log:
  """Appends records to the files of a workdir.

  Records of steps beyond the one that a run goes on from are dropped first, so
  that no step appears twice.
  """

  def __init__(self, workdir: pathlib.Path, step: int):
    self._path = workdir / FILE
    kept = [r for r in read(workdir) if r['step'] <= step]
    write_text(self._path, ''.join(json.dumps(r) + '\n' for r in kept))
    self._val = {r['step']: r['accuracy'] for r in kept if r['split'] == 'val'}
    self._board = SummaryWriter(
        str(workdir / 'tensorboard'), purge_step=step + 1 if step else None
    )

  def write(self, step: int, split: str, **values: float) -> None:
    """Appends one record."""
    record = {'step': step, 'split': split, **values}
    with self._path.open('a') as file:
      file.write(json.dumps(record) + '\n')
    for name, value in values.items():
      self._board.add_scalar(f'{split}/{name}', value, step)
    if split == 'val':
      self._val[step] = values['accuracy']

  def is_validated(self, step: int) -> bool:
    """Whether there is a record of split 'val' at this step."""
    return step in self._val

  def is_best(self, accuracy: float) -> bool:
    """Whether no record of split 'val' is as good."""
    return accuracy > max(self._val.values(), default=-1)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._board.close()


def read(workdir: pathlib.Path) -> list[dict]:
  """The records of a run; a line that a kill cut short is left out."""
  records, path = [], workdir / FILE
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      records.append(json.loads(line))
    except json.JSONDecodeError:
      continue
  return records


def mean_interval(values) -> tuple[float, float]:
  """The mean of independent values and half its 95 % interval.

  Student's t interval: infinite for a single value.
  """
  values = np.asarray(values, np.float64)
  n = len(values)
  if n < 2:
    return float(values.mean()), math.inf
  error = values.std(ddof=1) / math.sqrt(n)
  return float(values.mean()), float(stdtrit(n - 1, 0.975) * error)


class Screen:
  """The progress of a run: a bar on a terminal, and a line for every epoch."""

  def __init__(self, config, step: int):
    self._length = config.train.steps_per_epoch
    self._epochs = config.train.num_epochs
    self._total = self._epochs * self._length
    self._first, self._start = step, time.monotonic()
    self._epoch = []
    self._bar = progress(self._total, start=step)

  def train(self, n: int, means: dict[str, float]) -> None:
    """Shows that `n` more meta-iterations are done."""
    self._epoch.append(means)
    self._bar.set_postfix_str(_loss_and_accuracy(means), refresh=False)
    self._bar.update(n)

  def validated(self, step: int, val: dict[str, float], is_best: bool) -> None:
    """Prints the line of an epoch."""
    rate = (step - self._first) / (time.monotonic() - self._start)
    parts = [f'epoch {step // self._length}/{self._epochs}, step {step}']
    if self._epoch:
      mean = {k: np.mean([m[k] for m in self._epoch]) for k in self._epoch[0]}
      parts.append(f'train {_loss_and_accuracy(mean)}')
    parts.append(
        f'val loss {val["loss"]:.3f}, accuracy '
        f'{percent(val["accuracy"], val["interval"])}{" (best)" * is_best}'
    )
    if rate:
      left = tqdm.format_interval((self._total - step) / rate)
      parts.append(f'{rate:.3g} it/s, {left} left')
    self._bar.write('; '.join(parts))
    self._epoch = []

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._bar.close()


def progress(total: int, *, start: int = 0, unit: str = 'it', desc=None):
  """A progress bar on a terminal, nothing elsewhere."""
  return tqdm(
      total=total, initial=start, unit=unit, desc=desc, disable=None,
      dynamic_ncols=True, smoothing=0.1, leave=False)  # fmt: skip


def percent(mean: float, interval: float | None = None) -> str:
  """'48.70 %' or '48.70 +-1.84 %'."""
  if interval is None:
    return f'{100 * mean:.2f} %'
  return f'{100 * mean:.2f} +-{100 * interval:.2f} %'


def _loss_and_accuracy(means: dict[str, float]) -> str:
  return f'loss {means["loss"]:.3f}, accuracy {percent(means["accuracy"])}'
