"""Draws curves fitted to regression tasks."""

import numpy as np
from matplotlib.figure import Figure

from maml_jax import data
from maml_jax.experiment import setup
from maml_jax.experiment.checkpoint import Checkpoint
from maml_jax.experiment.task_source import eval_tasks
from maml_jax.report.axes import style_axes
from maml_jax.report.formatting import pluralize
from maml_jax.report.style import INK, MUTED, SERIES
from maml_jax.types import Episode

__all__ = ['draw_regression']

# Color and line style after no, one and all inner steps.
STYLES = (MUTED, ':'), (SERIES[1], '--'), (SERIES[0], '-')
NUM_CURVE_POINTS = 201


def draw_regression(
  config,
  saved: Checkpoint,
  num_tasks: int,
  *,
  columns: int = 2,
  width: float = 11.0,
) -> Figure:
  """Draws curves fitted to the first tasks of an evaluation.

  Args:
    config: the config of a regression.
    saved: a checkpoint of it.
    num_tasks: number of tasks, one panel each.
    columns: number of columns of panels.
    width: in inches.
  """
  phase = setup.eval_phase(config)
  tasks = eval_tasks(config, phase, num_tasks, setup.eval_sharding(config))
  episodes = [tasks.build_episode(key, tasks.shared) for key in tasks.keys]
  rows = -(-num_tasks // columns)
  size = width, 0.6 + 2.9 * rows * min(1, width / columns / 5.5) ** 0.5
  figure = Figure(figsize=size, dpi=150, layout='constrained')
  panels = np.ravel(figure.subplots(rows, columns, sharex=True))
  for axes, episode in zip(panels, episodes, strict=False):
    _plot_points(axes, episode)
  low, high = data.REGRESSIONS[config.data.name].RANGE
  x = np.linspace(low, high, NUM_CURVE_POINTS, dtype=np.float32)[:, None]
  steps = sorted({0, 1, max(phase.num_steps, 1)})
  for num_steps, (color, style) in zip(steps, STYLES, strict=False):
    learner = setup.phase_learner(config, phase._replace(num_steps=num_steps))
    label = f'after {pluralize(num_steps, "inner step")}'
    for axes, episode in zip(panels, episodes, strict=False):
      adapted, stats, _ = learner.adapt(
        saved.params, saved.stats, episode.support
      )
      y = learner.predict(adapted, stats, x)
      axes.plot(x[:, 0], y[:, 0], style, color=color, label=label)
  figure.legend(
    *panels[0].get_legend_handles_labels(),
    frameon=False,
    loc='outside upper center',
    ncols=max(2, round(width / 2.2)),
    labelcolor=INK,
  )
  return figure


def _plot_points(axes, episode: Episode) -> None:
  """Plots the many query points as a curve, and the support points."""
  x, y = (np.ravel(values) for values in episode.query)
  order = np.argsort(x)
  axes.plot(
    x[order],
    y[order],
    color=MUTED,
    linewidth=5,
    alpha=0.35,
    label='ground truth',
  )
  x, y = (np.ravel(values) for values in episode.support)
  axes.plot(
    x,
    y,
    '^',
    color=INK,
    markersize=7,
    zorder=3,
    label=pluralize(len(x), 'support point'),
  )
  style_axes(axes)
