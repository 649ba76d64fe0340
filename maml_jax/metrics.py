"""What a run reports: JSON lines and TensorBoard on disk, a bar on the screen.

WORKDIR/metrics.jsonl has one object a line, in order of `step`:
  {"step", "split": "train", "loss", "accuracy", ..., "seconds"}: means over the
    meta-iterations since the record before, and the time that they took;
  {"step", "split": "val", "loss", "accuracy", "interval", "seconds"}: means
    over the validation tasks; +-interval is 95 % sure for the accuracy.
Accuracies are in [0, 1]; regression has none, and the interval is that of the
loss. WORKDIR/tensorboard/ has the same numbers.
"""

import json
import math
import pathlib
import time
from collections.abc import Mapping

import jax
import numpy as np
from scipy.special import stdtrit
from tensorboardX import SummaryWriter
from tqdm import tqdm

from maml_jax.workdir import write_text

FILE = 'metrics.jsonl'


class Log:
  """Appends records to the files of a workdir.

  Records of steps beyond the one that a run goes on from are dropped first, so
  that none appears twice. A context manager.
  """

  def __init__(self, workdir: pathlib.Path, step: int):
    self._path = workdir / FILE
    kept = [r for r in read(workdir) if r['step'] <= step]
    write_text(self._path, ''.join(json.dumps(r) + '\n' for r in kept))
    self._validated = {r['step'] for r in kept if r['split'] == 'val'}
    self._board = SummaryWriter(
        str(workdir / 'tensorboard'), purge_step=step + 1
    )
    self._rows = []

  def train(self, rows: Mapping[str, np.ndarray], seconds: float) -> None:
    """Notes the metrics [n] of n meta-iterations for the next record."""
    n = len(rows['loss'])
    self._rows.append({**rows, 'seconds': np.full(n, seconds / n)})

  def flush(self, step: int) -> None:
    """Writes what `train` has noted as one record."""
    if self._rows:
      rows = jax.tree.map(lambda *x: np.concatenate(x), *self._rows)
      values = {name: float(x.mean()) for name, x in rows.items()}
      values['seconds'] = float(rows['seconds'].sum())
      self.write(step, 'train', values)
      self._rows = []

  def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
    """Writes one record."""
    record = {'step': step, 'split': split, **values}
    with self._path.open('a') as file:
      file.write(json.dumps(record) + '\n')
    for name, value in values.items():
      self._board.add_scalar(f'{split}/{name}', value, step)
    if split == 'val':
      self._validated.add(step)

  def is_validated(self, step: int) -> bool:
    """Whether there is a record of split 'val' at this step."""
    return step in self._validated

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._board.close()


def read(workdir: pathlib.Path) -> list[dict]:
  """The records of a run; lines that a crash has mutilated are left out."""
  path, records = workdir / FILE, []
  text = path.read_text(errors='replace') if path.exists() else ''
  for line in text.splitlines():
    try:
      records.append(json.loads(line))
    except json.JSONDecodeError:
      continue
  return records


class Screen:
  """The progress of a run: a bar on a terminal, and a line for every epoch.

  A context manager.
  """

  def __init__(self, config, step: int, place: str = ''):
    """Begins at `step`, and says so, and in which `place` the images lie."""
    self._length = config.train.steps_per_epoch
    self._epochs = config.train.num_epochs
    self._total = self._epochs * self._length
    self._num_val = config.val.num_tasks
    self._first, self._start = step, time.monotonic()
    self._rows = []
    self._bar = progress(self._total, 'it', 'training', start=step)
    self._bar.set_postfix_str('compiling')
    task, ways = f'{config.task.shots}-shot', config.task.ways
    task = f'{ways}-way {task}' if ways > 1 else f'{task} regression'
    self._bar.write(
        f'{config.data.name}, {task}, {config.train.num_tasks} tasks a step '
        f'on {devices()}'
        + (f', images on the {place}' if place else '')
        + f'; from step {step} of {self._total}'
    )

  def train(self, rows: Mapping[str, np.ndarray]) -> None:
    """Shows that more meta-iterations are done, with metrics [n]."""
    n = len(rows['loss'])
    names = ('loss', 'accuracy') if 'accuracy' in rows else ('loss',)
    self._rows += zip(*(rows[name] for name in names), strict=True)
    self._bar.set_postfix_str(self._train_means(), refresh=False)
    if self._bar.n == self._first:  # compiling would spoil the rate
      self._bar.reset(self._total)
      self._bar.initial = self._bar.n = self._first + n
    else:
      self._bar.update(n)

  def validation(self) -> tqdm:
    """A bar of its own for a validation; a context manager."""
    return progress(self._num_val, 'task', 'validating')

  def epoch(self, step: int, val: Mapping[str, float], is_best: bool) -> None:
    """Prints the line of an epoch that ended at `step`."""
    parts = [f'epoch {step // self._length}/{self._epochs}, step {step}']
    if self._rows:
      parts.append(f'train {self._train_means()}')
    parts.append(f'val {describe(val)}{" (best)" if is_best else ""}')
    if step > self._first:
      rate = (step - self._first) / (time.monotonic() - self._start)
      left = tqdm.format_interval((self._total - step) / rate)
      parts.append(f'{rate:.3g} it/s, {left} left')
    self._bar.write('; '.join(parts))
    self._rows = []

  def _train_means(self) -> str:
    means = np.mean(self._rows, axis=0)
    return describe(dict(zip(('loss', 'accuracy'), means, strict=False)))

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._bar.close()


def progress(total: int, unit: str, what: str, *, start: int = 0) -> tqdm:
  """A progress bar on a terminal, and nothing elsewhere."""
  return tqdm(
      desc=what,
      total=total,
      initial=start,
      unit=unit,
      disable=None,  # unless on a terminal
      dynamic_ncols=True,
      smoothing=0,  # the mean rate, validation and all, tells the time left
      leave=False,
  )


def devices() -> str:
  """'8 x NVIDIA H200' and the like."""
  return f'{jax.device_count()} x {jax.devices()[0].device_kind}'


def mean_interval(values) -> tuple[float, float]:
  """The mean of independent values, and half the width of its 95 % interval.

  Student's t interval, which is exact for normal values and the usual one for
  accuracies of tasks. It is infinite for a single value.

  Args:
    values: [n], n >= 1.
  """
  values = np.asarray(values, np.float64)
  n = len(values)
  if n == 1:
    return float(values[0]), math.inf
  error = values.std(ddof=1) / math.sqrt(n)
  return float(values.mean()), float(stdtrit(n - 1, 0.975) * error)


def score(values: Mapping) -> str:
  """Which of some metrics counts: 'accuracy' or, without one, 'loss'."""
  return 'accuracy' if 'accuracy' in values else 'loss'


def is_better(values: Mapping[str, float], old: Mapping[str, float]) -> bool:
  """Whether metrics are better than older ones; {} is worse than any."""
  name = score(values)
  if not old:
    return True
  sign = 1 if name == 'accuracy' else -1
  return sign * values[name] > sign * old[name]


def summary(metrics: Mapping[str, np.ndarray]) -> dict[str, float]:
  """Metrics [T] of tasks -> means, and the 'interval' of that which counts."""
  name = score(metrics)
  mean, interval = mean_interval(metrics[name])
  values = {'loss': float(metrics['loss'].mean()), name: mean}
  return values | {'interval': interval}


def describe(values: Mapping[str, float]) -> str:
  """'loss 1.234, accuracy 48.70 +-1.84 %', as far as it is known."""
  name, interval = score(values), values.get('interval')
  if name == 'loss':
    return f'loss {show("loss", values["loss"], interval)}'
  accuracy = show(name, values[name], interval)
  return f'loss {values["loss"]:.3f}, accuracy {accuracy}'


def show(name: str, mean: float, interval: float | None = None) -> str:
  """A number as it is best read: accuracies in percent, losses as they are."""
  if name == 'accuracy':
    return percent(mean, interval)
  return f'{mean:.3f}' + ('' if interval is None else f' +-{interval:.3f}')


def percent(mean: float, interval: float | None = None) -> str:
  """'48.70 %' or '48.70 +-1.84 %' of 0.487 and 0.0184."""
  if interval is None:
    return f'{100 * mean:.2f} %'
  return f'{100 * mean:.2f} +-{100 * interval:.2f} %'
