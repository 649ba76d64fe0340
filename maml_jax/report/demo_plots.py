"""Figures of one run: learning curves and test tasks, for `--mode=demo`."""

import os
import pathlib
from collections.abc import Sequence

import jax
import matplotlib
import numpy as np
from scipy.special import softmax

from maml_jax import data
from maml_jax.data.episodes import split_episode
from maml_jax.experiment import checkpoint, metrics_log, setup, transfer
from maml_jax.experiment.checkpoint import Checkpoint
from maml_jax.experiment.metrics import primary_metric
from maml_jax.experiment.task_source import eval_task_indices, task_classes
from maml_jax.report.figures import plot_learning_curves
from maml_jax.report.formatting import format_number
from maml_jax.report.run_groups import group_runs
from maml_jax.report.runs import read_run
from maml_jax.report.style import RC, SERIES
from maml_jax.report.task_plots import draw_episode, draw_regression
from maml_jax.types import Array, Episode
from maml_jax.utils.errors import UserError

__all__ = ['draw_demo', 'plot_curves', 'plot_episode']


@matplotlib.rc_context(RC)
def draw_demo(config, workdir: str | os.PathLike) -> None:
  """Draws the learning curves of a run and its predictions for test tasks.

  The `eval` section of the config configures the tasks; the rest is that of
  the run.

  Raises:
    UserError: the run has no metrics or no checkpoint.
  """
  folder = pathlib.Path(workdir)
  saved = checkpoint.load(workdir, config.eval.checkpoint)
  print(f'checkpoint  {saved.path}')
  print(f'curves      {plot_curves(workdir)}')
  if config.data.name in data.REGRESSIONS:
    path = folder / 'regression.png'
    draw_regression(config, saved).savefig(path)
    print(f'test tasks  {path}')
  else:
    task = _adapt_to_first_task(config, saved)
    print(f'test task   {plot_episode(folder / "episode.png", *task)}')


@matplotlib.rc_context(RC)
def plot_curves(workdir: str | os.PathLike) -> pathlib.Path:
  """Plots the learning curves of a run to WORKDIR/curves.png, and returns it.

  Raises:
    UserError: the run has no metrics.
  """
  path = pathlib.Path(workdir) / 'curves.png'
  if not metrics_log.read_records(path.parent):
    raise UserError(f'cannot draw learning curves: no metrics in {workdir}')
  groups = group_runs([read_run(workdir)])
  primary = primary_metric(groups[0].records[0])
  names = ('accuracy', 'loss') if primary == 'accuracy' else ('loss',)
  figure = plot_learning_curves(groups, *names, size=(11, 4.4))
  assert figure  # there are records
  if val := [r for r in groups[0].records if r['split'] == 'val']:
    sign = 1 if primary == 'accuracy' else -1
    best = max(val, key=lambda r: sign * r[primary])
    text = f'★ best {format_number(primary, best[primary], best["interval"])}'
    figure.axes[0].set_title(text, loc='right', color=SERIES[0])
  figure.savefig(path)
  return path


def plot_episode(
  path: pathlib.Path,
  episode: Episode,
  logits: Array,
  class_names: Sequence[str] = (),
) -> pathlib.Path:
  """Writes an image of one task to a path, which it returns.

  It is drawn by `task_plots.draw_episode`; logits [N, W] are for the queries.
  """
  scores = np.asarray(logits)
  predicted, probability = scores.argmax(-1), softmax(scores, axis=-1).max(-1)
  draw_episode(episode, predicted, probability, class_names).savefig(path)
  return path


def _adapt_to_first_task(
  config, saved: Checkpoint
) -> tuple[Episode, Array, list[str]]:
  """Returns the first task, logits for its queries, and its class names."""
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
