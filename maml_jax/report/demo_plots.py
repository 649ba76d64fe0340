"""Figures of one run: learning curves and test tasks, for `--mode=demo`."""

import os
import pathlib
from collections.abc import Sequence

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from scipy.special import softmax

from maml_jax import data
from maml_jax.data.episodes import split_episode
from maml_jax.experiment import (
  checkpoint,
  metrics,
  metrics_log,
  setup,
  transfer,
)
from maml_jax.experiment.checkpoint import Checkpoint
from maml_jax.experiment.task_source import eval_task_indices, task_classes
from maml_jax.report.figures import COUNT_FORMAT
from maml_jax.report.style import MUTED, RC, SERIES
from maml_jax.report.task_plots import draw_episode, draw_regression
from maml_jax.types import Array, Episode
from maml_jax.utils.errors import UserError

__all__ = ['draw_demo', 'plot_curves', 'plot_episode', 'plot_regression']

GRAY, BLUE = MUTED, SERIES[0]


def draw_demo(config, workdir: str | os.PathLike) -> None:
  """Draws the learning curves of a run and its predictions for test tasks.

  Args:
    config: its `eval` section configures the tasks; the rest is that of the
      run.
    workdir: the directory of the run.

  Raises:
    UserError: the run has no metrics or no checkpoint.
  """
  saved = checkpoint.load(workdir, config.eval.checkpoint)
  print(f'checkpoint  {saved.path}')
  print(f'curves      {plot_curves(workdir)}')
  if config.data.name in data.REGRESSIONS:
    path = pathlib.Path(workdir) / 'regression.png'
    print(f'test tasks  {plot_regression(path, config, saved)}')
    return
  episode, logits, names = _adapt_to_first_task(config, saved)
  path = pathlib.Path(workdir) / 'episode.png'
  print(f'test task   {plot_episode(path, episode, logits, names)}')


@matplotlib.rc_context(RC)
def plot_curves(workdir: str | os.PathLike) -> pathlib.Path:
  """Plots accuracy and loss against the meta-iteration.

  Args:
    workdir: a run, with its `metrics.jsonl`; see `experiment.metrics_log`.

  Returns:
    The path of the image, WORKDIR/curves.png.

  Raises:
    UserError: the run has no metrics.
  """
  records = metrics_log.read_records(pathlib.Path(workdir))
  if not records:
    raise UserError(f'cannot draw learning curves: no metrics in {workdir}')
  train, val = (
    [record for record in records if record['split'] == split]
    for split in ('train', 'val')
  )
  primary = metrics.primary_metric(records[0])
  names = ('accuracy', 'loss') if primary == 'accuracy' else ('loss',)
  figure = Figure(figsize=(11, 4.4))
  panels = np.ravel(figure.subplots(1, len(names)))
  for name, axes in zip(names, panels, strict=True):
    axes.set(title=f'Query {name}', xlabel='meta-iteration')
    axes.xaxis.set_major_formatter(COUNT_FORMAT)
    _plot_train(axes, train, name)
    _plot_val(axes, val, name, name == primary)
  if primary == 'accuracy':
    panels[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
  panels[0].legend(loc='best')
  figure.suptitle(pathlib.Path(workdir).resolve().name, color=GRAY)
  path = pathlib.Path(workdir) / 'curves.png'
  figure.savefig(path)
  return path


@matplotlib.rc_context(RC)
def plot_regression(
  path: str | os.PathLike, config, saved: Checkpoint, num_tasks: int = 4
) -> pathlib.Path:
  """Writes an image of `task_plots.draw_regression`, and returns its path."""
  draw_regression(config, saved, num_tasks).savefig(path)
  return pathlib.Path(path)


def plot_episode(
  path: str | os.PathLike,
  episode: Episode,
  logits: Array,
  class_names: Sequence[str] = (),
) -> pathlib.Path:
  """Writes an image of one task, and returns its path.

  Args:
    path: the image to write.
    episode: see `task_plots.draw_episode`.
    logits: [N, W] for the query images.
    class_names: see `task_plots.draw_episode`.
  """
  scores = np.asarray(logits)
  probability = softmax(scores, axis=-1).max(-1)
  predicted = scores.argmax(-1)
  draw_episode(episode, predicted, probability, class_names).savefig(path)
  return pathlib.Path(path)


def _adapt_to_first_task(
  config, saved: Checkpoint
) -> tuple[Episode, Array, list[str]]:
  """Adapts a checkpoint to the first task of its evaluation.

  Returns:
    The task, logits [N, W] for its query images, and the names of its classes.
  """
  phase = setup.eval_phase(config)
  dataset = setup.load_split(config, phase)
  (positions,), (key,) = eval_task_indices(dataset, phase, 1)
  images = setup.model_images(config, phase, dataset.images[positions])
  episode = setup.phase_transform(config, phase)(
    key, split_episode(images, shots=phase.shots)
  )
  learner = setup.phase_learner(config, phase)

  @jax.jit
  def adapt_and_predict(params, stats):
    adapted, stats, _ = learner.adapt(params, stats, episode.support)
    return learner.predict(adapted, stats, episode.query.inputs)

  with setup.matmul_precision(config):
    logits = adapt_and_predict(
      *transfer.transfer_params(learner, saved.params, saved.stats)
    )
  root = config.data.root if phase.data_root is None else phase.data_root
  names = data.class_names(phase.data, phase.split, root or None)
  return episode, logits, [names[c] for c in task_classes(dataset, positions)]


def _plot_train(axes, records: list[dict], name: str) -> None:
  """Plots all records in a pale color and their moving average on top."""
  step, value = (np.array([r[key] for r in records]) for key in ('step', name))
  axes.plot(step, value, color=GRAY, alpha=0.25, linewidth=0.8)
  half = len(value) // 50
  window = np.full(2 * half + 1, 1 / (2 * half + 1))
  if records:
    label = 'training tasks' + ', smoothed' * bool(half)
    mean = np.convolve(value, window, 'valid')
    axes.plot(step[half : len(step) - half], mean, color=GRAY, label=label)


def _plot_val(axes, records: list[dict], name: str, is_primary: bool) -> None:
  """Plots validation; for the primary metric, with intervals and a star."""
  if not records:
    return
  step, value = ([r[key] for r in records] for key in ('step', name))
  # The interval of a single task is infinite.
  interval = [min(r['interval'], 1) for r in records] if is_primary else None
  style = {'color': BLUE, 'marker': 'o', 'markersize': 4}
  label = 'validation, 95 % interval'
  axes.errorbar(step, value, interval, label=label, capsize=2, **style)
  if not is_primary:
    return
  best = (max if name == 'accuracy' else min)(records, key=lambda r: r[name])
  axes.plot(best['step'], best[name], color=BLUE, marker='*', markersize=13)
  text = f'★ best {best[name]:.3f} ± {best["interval"]:.3f}'
  if name == 'accuracy':
    text = f'★ best {best[name]:.1%} ± {100 * best["interval"]:.1f}'
  axes.set_title(text, loc='right', color=BLUE)
