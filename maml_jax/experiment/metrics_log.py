"""What a run reports: JSON lines and TensorBoard on disk, a bar on the screen.

WORKDIR/metrics.jsonl has one object a line, in order of `step`:
  {"step", "split": "train", "loss", "accuracy", ..., "seconds"}: means over the
    meta-iterations since the record before, and the time that they took;
  {"step", "split": "val", "loss", "accuracy", "interval", "seconds"}: means
    over the validation tasks; +-interval is 95 % sure for the accuracy.
Accuracies are in [0, 1]; regression has none, and the interval is that of the
loss. WORKDIR/tensorboard/ has the same numbers.
"""

import contextlib
import json
import os
import pathlib
import platform
import time
import warnings
from collections.abc import Mapping

import jax
import numpy as np
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar
from tqdm import tqdm

from maml_jax.utils import console, distributed
from maml_jax.utils.files import fsync, oserror_as_user_error, oserror_message
from maml_jax.evaluation.statistics import mean_interval
from maml_jax.utils.files import write_text

METRICS_FILE = 'metrics.jsonl'
FLUSH_SECONDS = 30.0  # between writes of what TensorBoard reads


class MetricsLog:
  """Appends records to the files of a workdir.

  Records of steps beyond the one that a run goes on from are dropped first, so
  that none appears twice. Of several processes the first alone writes. A
  context manager.

  Raises:
    UserError: a record cannot be written, now or later. Without what
      TensorBoard reads a run goes on, with a warning.
  """

  def __init__(self, workdir: pathlib.Path, step: int):
    self._path, self._step, self._board = workdir / METRICS_FILE, step, None
    self._validated = set(distributed.on_main_process(self._begin))
    self._rows = []

  def _begin(self) -> list[int]:
    """Makes the files fit; returns the steps that have been validated."""
    folder, step = self._path.parent, self._step
    kept = [r for r in read_records(folder) if r['step'] <= step]
    write_text(self._path, ''.join(json.dumps(r) + '\n' for r in kept))
    self._board = _Board(folder / 'tensorboard', step + 1)
    return [r['step'] for r in kept if r['split'] == 'val']

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
    if split == 'val':
      self._validated.add(step)
    if self._board is None:
      return
    record = {'step': step, 'split': split, **values}
    with oserror_as_user_error(self._path), self._path.open('a') as file:
      file.write(json.dumps(record) + '\n')
    self._board.write(step, {f'{split}/{k}': x for k, x in values.items()})
    if split == 'val':
      with oserror_as_user_error(self._path):
        fsync(self._path)

  def is_validated(self, step: int) -> bool:
    """Whether there is a record of split 'val' at this step."""
    return step in self._validated

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self._board is not None:
      self._board.close()


class _Board:
  """Writes what TensorBoard reads, without a thread that may die unseen.

  Args:
    folder: made if missing.
    step: what an earlier run has written of this step and later ones is void.
  """

  def __init__(self, folder: pathlib.Path, step: int):
    self._folder, self._writer, self._time = folder, None, 0.0
    name = f'events.out.tfevents.{time.time():.0f}.{platform.node()}'
    with self._if_it_can():
      folder.mkdir(parents=True, exist_ok=True)
      self._writer = RecordWriter(str(folder / f'{name}.{os.getpid()}'))
    start = SessionLog(status=SessionLog.START)
    self._add(Event(file_version='brain.Event:2'))
    self._add(Event(step=step, session_log=start))

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Writes scalars by name; they are on the disk some time later."""
    for name, value in values.items():
      self._add(Event(step=step, summary=scalar(name, value)))
    if self._writer and time.monotonic() - self._time > FLUSH_SECONDS:
      with self._if_it_can():
        self._writer.flush()
      self._time = time.monotonic()

  def close(self) -> None:
    """Writes the rest, if it can."""
    if self._writer:
      with contextlib.suppress(OSError):
        self._writer.close()

  def _add(self, event: Event) -> None:
    if self._writer:
      event.wall_time = time.time()
      with self._if_it_can():
        self._writer.write(event.SerializeToString())

  @contextlib.contextmanager
  def _if_it_can(self):
    try:
      yield
    except OSError as error:
      writer, self._writer = self._writer, None
      warnings.warn(
          f'cannot write {self._folder}: {oserror_message(error)}; going on without it',
          stacklevel=4,
      )
      with contextlib.suppress(OSError, AttributeError):
        writer.close()


def read_records(workdir: pathlib.Path) -> list[dict]:
  """The records of a run: a 'step', a 'split' and numbers.

  Lines that are none, such as a crash has mutilated, are left out.
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


class TrainingDisplay:
  """The progress of a run: a bar on a terminal, and a line for every epoch.

  A context manager.
  """

  def __init__(self, config, step: int, place: str = '', where: str = ''):
    """Begins at `step`, and says so.

    Args:
      config: of the run.
      step: meta-iterations done.
      place: where the images lie.
      where: the devices; by default all there are.
    """
    self._length = config.train.steps_per_epoch
    self._epochs = config.train.num_epochs
    self._total = self._epochs * self._length
    self._num_val = config.val.num_tasks
    self._kind = describe_validation_protocol(config)
    self._first, self._start = step, time.monotonic()
    self._rows = []
    self._bar = progress_bar(self._total, 'it', 'training', start=step)
    self._bar.set_postfix_str('compiling')
    task, ways = f'{config.task.shots}-shot', config.task.ways
    task = f'{ways}-way {task}' if ways > 1 else f'{task} regression'
    self._bar.write(
        f'{config.data.name}, {task}, {config.train.num_tasks} tasks a step '
        f'on {where or describe_devices()}'
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
    return progress_bar(self._num_val, 'task', 'validating')

  def epoch(self, step: int, val: Mapping[str, float], is_best: bool) -> None:
    """Prints the line of an epoch that ended at `step`."""
    parts = [f'epoch {step // self._length}/{self._epochs}, step {step}']
    if self._rows:
      parts.append(f'train {self._train_means()}')
    parts.append(f'val {self._kind}: {format_metrics(val)}{" (best)" * is_best}')
    if step > self._first:
      rate = (step - self._first) / (time.monotonic() - self._start)
      left = tqdm.format_interval((self._total - step) / rate)
      parts.append(f'{rate:.3g} it/s, {left} left')
    self._bar.write('; '.join(parts))
    self._rows = []

  def _train_means(self) -> str:
    means = np.mean(self._rows, axis=0)
    return format_metrics(dict(zip(('loss', 'accuracy'), means, strict=False)))

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._bar.close()


def progress_bar(total: int, unit: str, what: str, *, start: int = 0) -> tqdm:
  """A progress bar on a terminal, and nothing elsewhere."""
  return tqdm(
      desc=what,
      total=total,
      initial=start,
      unit=unit,
      disable=console.is_quiet() or None,  # unless on a terminal
      dynamic_ncols=True,
      smoothing=0,  # the mean rate, validation and all, tells the time left
      leave=False,
  )


def describe_devices() -> str:
  """'8 x NVIDIA H200' and the like."""
  processes = jax.process_count()
  more = f' in {processes} processes' if processes > 1 else ''
  return f'{jax.device_count()} x {jax.devices()[0].device_kind}{more}'


def primary_metric(values: Mapping) -> str:
  """Which of some metrics counts: 'accuracy' or, without one, 'loss'."""
  return 'accuracy' if 'accuracy' in values else 'loss'


def is_better(values: Mapping[str, float], old: Mapping[str, float]) -> bool:
  """Whether metrics are better than older ones; {} is worse than any."""
  name = primary_metric(values)
  if not old:
    return True
  sign = 1 if name == 'accuracy' else -1
  return sign * values[name] > sign * old[name]


def summarize(metrics: Mapping[str, np.ndarray]) -> dict[str, float]:
  """Metrics [T] of tasks -> means, and the 'interval' of that which counts."""
  name = primary_metric(metrics)
  mean, interval = mean_interval(metrics[name])
  values = {'loss': float(metrics['loss'].mean()), name: mean}
  return values | {'interval': interval}


def is_transductive(norm: str | tuple) -> bool:
  """Whether, under a norm mode, an answer may depend on other query images."""
  modes = [norm] if isinstance(norm, str) else [mode for _, mode in norm]
  return 'batch' in modes


def describe_protocol(norm: str | tuple, queries: int) -> str:
  """'transductive, 15 queries per class', which decides what a number means."""
  word = 'transductive' if is_transductive(norm) else 'inductive'
  return f'{word}, {queries} {"query" if queries == 1 else "queries"} per class'


def describe_validation_protocol(config) -> str:
  """`kind` of a run's validation, in brackets."""
  if config.task.ways == 1:
    return f'({config.val.queries} queries)'
  return f'({describe_protocol(config.model.norm, config.val.queries)})'


def format_metrics(values: Mapping[str, float]) -> str:
  """'loss 1.234, accuracy 48.70 +-1.84 %', as far as it is known."""
  name, interval = primary_metric(values), values.get('interval')
  if name == 'loss':
    return f'loss {format_metric("loss", values["loss"], interval)}'
  accuracy = format_metric(name, values[name], interval)
  return f'loss {values["loss"]:.3f}, accuracy {accuracy}'


def format_metric(name: str, mean: float, interval: float | None = None) -> str:
  """A number as it is best read: accuracies in percent, losses as they are."""
  if name == 'accuracy':
    return format_percent(mean, interval)
  return f'{mean:.3f}' + ('' if interval is None else f' +-{interval:.3f}')


def format_percent(mean: float, interval: float | None = None) -> str:
  """'48.70 %' or '48.70 +-1.84 %' of 0.487 and 0.0184."""
  if interval is None:
    return f'{100 * mean:.2f} %'
  return f'{100 * mean:.2f} +-{100 * interval:.2f} %'
