"""The progress of a training run on the terminal."""

import time
from collections.abc import Mapping

import numpy as np
from tqdm import tqdm

from maml_jax.experiment.formatting import (
  describe_validation_protocol,
  format_metrics,
)
from maml_jax.utils.distributed import describe_devices
from maml_jax.utils.progress import progress_bar

__all__ = ['TrainingDisplay']


class TrainingDisplay:
  """A progress bar, and one line per epoch; a context manager.

  Args:
    config: of the run.
    step: the meta-iteration at which training starts.
    placement: where the images are stored, such as 'device'.
    devices: the devices in use; default all.
  """

  def __init__(self, config, step: int, placement: str = '', devices: str = ''):
    self._length = config.train.steps_per_epoch
    self._epochs = config.train.num_epochs
    self._total = self._epochs * self._length
    self._num_val = config.val.num_tasks
    self._protocol = describe_validation_protocol(config)
    self._first, self._start = step, time.monotonic()
    self._rows = []
    self._bar = progress_bar(self._total, 'it', 'training', start=step)
    self._bar.set_postfix_str('compiling')
    task, ways = f'{config.task.shots}-shot', config.task.ways
    task = f'{ways}-way {task}' if ways > 1 else f'{task} regression'
    batch = f'{config.train.meta_batch_size} tasks'
    if config.train.objective == 'classes':
      task = 'pre-training on all classes'
      size = config.train.meta_batch_size * config.pretrain.batch_size
      batch = f'{size} images'
    self._bar.write(
      f'{config.data.name}, {task}, {batch} per step on '
      f'{devices or describe_devices()}'
      + (f', images on the {placement}' if placement else '')
      + f'; starting at step {step} of {self._total}'
    )

  def train(self, rows: Mapping[str, np.ndarray]) -> None:
    """Advances the bar by n meta-iterations with metrics [n]."""
    n = len(rows['loss'])
    names = ('loss', 'accuracy') if 'accuracy' in rows else ('loss',)
    self._rows += zip(*(rows[name] for name in names), strict=True)
    self._bar.set_postfix_str(self._train_means(), refresh=False)
    if self._bar.n == self._first:  # exclude compilation from the rate
      self._bar.reset(self._total)
      self._bar.initial = self._bar.n = self._first + n
    else:
      self._bar.update(n)

  def validation(self) -> tqdm:
    """Returns a progress bar for one validation; a context manager."""
    return progress_bar(self._num_val, 'task', 'validating')

  def epoch(
    self,
    step: int,
    val: Mapping[str, float],
    is_best: bool,
    learned: Mapping[str, float],
  ) -> None:
    """Prints the line of the epoch that ended at `step`.

    Args:
      step: the meta-iteration.
      val: the metrics of the validation.
      is_best: whether it is the best so far.
      learned: from `inner_loop.learned_ranges`.
    """
    parts = [f'epoch {step // self._length}/{self._epochs}, step {step}']
    if self._rows:
      parts.append(f'train {self._train_means()}')
    best = ' (best)' if is_best else ''
    parts.append(f'val {self._protocol}: {format_metrics(val)}{best}')
    for name in [n.removesuffix('_min') for n in learned if n.endswith('_min')]:
      low, high = learned[f'{name}_min'], learned[f'{name}_max']
      parts.append(f'inner {name} {low:.3g}..{high:.3g}')
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
