"""Draws single tasks with their predictions."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from maml_jax import data
from maml_jax.experiment import setup
from maml_jax.experiment.checkpoint import Checkpoint
from maml_jax.experiment.formatting import pluralize
from maml_jax.experiment.task_source import eval_tasks
from maml_jax.report.style import INK, MUTED, SERIES
from maml_jax.types import Episode

__all__ = ['draw_episode', 'draw_regression', 'label_letter']

MAX_IMAGES = 10  # of one class, in the support set and in the query set
ROW_HEIGHT = 1.34  # in widths of an image
# Edge, line width and dashes of the frames of wrong and correct predictions.
FRAMES = (SERIES[1], 3, (0, (2, 1))), (SERIES[0], 2, '-')

# Color and line style after no, one and all inner steps.
STYLES = (MUTED, ':'), (SERIES[1], '--'), (SERIES[0], '-')
NUM_CURVE_POINTS = 201


def label_letter(index: int) -> str:
  """Returns 'A', 'B', ..., 'Z' for labels 0..25, the number for others."""
  return chr(ord('A') + index) if index < 26 else str(index)


def draw_episode(
  episode: Episode,
  predicted,
  probability=None,
  class_names: Sequence[str] = (),
) -> Figure:
  """Draws one task: a row per class, its support images, then its queries.

  Below each query image is the predicted class with its probability. A tick and
  a solid frame mark correct predictions, a cross and a dashed frame wrong ones.

  Args:
    episode: images [N, H, W, C], C = 1 or 3, in any range; labels 0..W-1.
    predicted: [N], the predicted label of each query image.
    probability: [N], the probability of that label; None if unknown.
    class_names: W names, drawn next to the letters A, B, ...
  """
  labels = [np.asarray(batch.targets) for batch in episode]
  rows = [
    [np.flatnonzero(label == c) for c in np.unique(label)] for label in labels
  ]
  shots, queries = (min(MAX_IMAGES, max(map(len, part))) for part in rows)
  start, edge = shots + 0.5, -1.75 if len(class_names) else -0.45
  # The unit is the width of an image; x = 0 is the first support image, and y
  # grows downwards.
  left, right = edge - 0.15, start + queries + 0.1
  bottom, top = ROW_HEIGHT * len(rows[0]), -1.15
  figure = Figure(figsize=(right - left, bottom - top))
  figure.set_layout_engine('none')
  axes = figure.add_axes((0, 0, 1, 1), xlim=(left, right), ylim=(bottom, top))
  axes.axis('off')
  num_correct = (predicted == labels[1]).sum()
  title = f'{num_correct} of {len(labels[1])} query images correct'
  legend = 'predicted class'
  legend += '' if probability is None else ' and its probability'
  if queries < max(map(len, rows[1])):
    legend += f'; the first {queries} of each class are shown'
  axes.text(edge, -0.85, title, fontsize=12, fontweight='bold')
  axes.text(edge, -0.6, legend, fontsize=9, color=MUTED)
  axes.text(0.03, -0.1, 'support', fontsize=10)
  axes.text(start + 0.03, -0.1, 'query', fontsize=10)
  support, query = _images_in_unit_range(episode)
  for row, (own_support, own_query) in enumerate(zip(*rows, strict=True)):
    y = ROW_HEIGHT * row
    place = {'va': 'center', 'fontweight': 'bold', 'fontsize': 16}
    axes.text(edge, y + 0.5, label_letter(row), **place)
    if len(class_names):
      name = textwrap.fill(class_names[row], 14, max_lines=4)
      axes.text(-1.35, y + 0.5, name, va='center', fontsize=8, color=MUTED)
    for x, i in enumerate(own_support[:shots]):
      axes.imshow(support[i], extent=(x + 0.03, x + 0.97, y + 0.97, y + 0.03))
    for x, i in zip(np.arange(queries) + start, own_query, strict=False):
      axes.imshow(query[i], extent=(x + 0.03, x + 0.97, y + 0.97, y + 0.03))
      text = label_letter(predicted[i])
      text += '' if probability is None else f' {probability[i]:.0%}'
      _draw_prediction(axes, x, y, text, predicted[i] == row)
  return figure


def draw_regression(
  config, saved: Checkpoint, num_tasks: int = 4, columns: int = 2, width=11.0
) -> Figure:
  """Draws curves that a regression fits to its first evaluation tasks.

  There is one panel per task, in `columns`; `width` is in inches.
  """
  phase = setup.eval_phase(config)
  tasks = eval_tasks(config, phase, num_tasks, setup.eval_sharding(config))
  rows = -(-num_tasks // columns)
  height = 0.6 + 2.9 * rows * min(1, width / columns / 5.5) ** 0.5
  figure = Figure(figsize=(width, height))
  panels = np.ravel(figure.subplots(rows, columns, sharex=True))
  low, high = data.REGRESSIONS[config.data.name].RANGE
  curve_x = np.linspace(low, high, NUM_CURVE_POINTS, dtype=np.float32)[:, None]
  steps = sorted({0, 1, max(phase.num_steps, 1)})
  learners = [
    setup.phase_learner(config, phase._replace(num_steps=k)) for k in steps
  ]
  for axes, key in zip(panels, tasks.keys, strict=False):
    episode = tasks.build_episode(key, tasks.shared)
    x, y = (np.ravel(values) for values in episode.query)  # many: a curve
    order, thick = np.argsort(x), {'linewidth': 5, 'alpha': 0.35}
    axes.plot(x[order], y[order], color=MUTED, label='ground truth', **thick)
    x, y = (np.ravel(values) for values in episode.support)
    label = pluralize(len(x), 'support point')
    axes.plot(x, y, '^', color=INK, markersize=7, zorder=3, label=label)
    for k, learner, (color, style) in zip(
      steps, learners, STYLES, strict=False
    ):
      params, stats, _ = learner.adapt(
        saved.params, saved.stats, episode.support
      )
      y = learner.predict(params, stats, curve_x)
      label = f'after {pluralize(k, "inner step")}'
      axes.plot(curve_x[:, 0], y[:, 0], style, color=color, label=label)
  handles = panels[0].get_legend_handles_labels()
  ncols = max(2, round(width / 2.2))
  figure.legend(*handles, loc='outside upper center', ncols=ncols)
  return figure


def _images_in_unit_range(episode: Episode) -> list[np.ndarray]:
  """Returns support and query images as RGB, rescaled if outside of 0..1."""
  images = [np.asarray(batch.inputs) for batch in episode]
  low = min(0, *(image.min() for image in images))
  high = max(1, *(image.max() for image in images))
  return [
    np.broadcast_to((image - low) / (high - low), (*image.shape[:3], 3))
    for image in images
  ]


def _draw_prediction(axes, x, y, text: str, is_correct: bool) -> None:
  """Draws the frame of a query image and the prediction below it."""
  color, width, dashes = FRAMES[int(is_correct)]
  frame = {'edgecolor': color, 'linewidth': width, 'linestyle': dashes}
  corner = x + 0.03, y + 0.03
  axes.add_patch(Rectangle(corner, 0.94, 0.94, fill=False, **frame))
  font = {'fontsize': 9, 'fontweight': 'normal' if is_correct else 'bold'}
  place = {'ha': 'center', 'va': 'center', 'color': color}
  text = f'{"✓" if is_correct else "✗"} {text}'
  axes.text(x + 0.5, y + 1.12, text, **place, **font)
