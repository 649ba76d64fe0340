"""Draws one few-shot task with its predictions."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from maml_jax.report.style import MUTED, SERIES
from maml_jax.types import Batch, Episode

__all__ = ['draw_episode', 'label_letter']

BLUE, VERMILION = SERIES[:2]
MAX_IMAGES = 10  # of one class, in the support set and in the query set

# Layout in units of images: x = 0 is the left edge of the first support image,
# y grows downwards.
TOP_MARGIN, ROW_HEIGHT = 1.15, 1.34


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
  support, query = (_indices_by_class(batch) for batch in episode)
  label = np.asarray(episode.query.targets)
  shots = min(MAX_IMAGES, max(map(len, support.values())))
  queries = min(MAX_IMAGES, max(map(len, query.values())))
  left, start = (1.9 if len(class_names) else 0.6), shots + 0.5
  figure, axes = _make_axes(
    left, left + start + queries + 0.1, TOP_MARGIN + ROW_HEIGHT * len(support)
  )
  legend = 'predicted class'
  if probability is not None:
    legend += ' and its probability'
  if queries < max(map(len, query.values())):
    legend += f'; the first {queries} of each class are shown'
  title = f'{(predicted == label).sum()} of {len(label)} query images correct'
  edge = 0.15 - left
  _draw_title(axes, edge, start, title, legend)
  draw_image = _image_drawer(axes, episode)
  for row in range(len(support)):
    y = ROW_HEIGHT * row
    _draw_class_name(axes, edge, y, row, class_names)
    for column, i in enumerate(support[row][:shots]):
      draw_image(episode.support.inputs[i], column, y)
    for column, i in enumerate(query[row][:queries]):
      draw_image(episode.query.inputs[i], start + column, y)
      p = None if probability is None else probability[i]
      _draw_prediction(axes, start + column, y, predicted[i], p, label[i])
  return figure


def label_letter(index: int) -> str:
  """Returns 'A', 'B', ..., 'Z' for labels 0..25, the number for others."""
  return chr(ord('A') + index) if index < 26 else str(index)


def _make_axes(left: float, width: float, height: float) -> tuple:
  """Returns a figure of that size, and axes that fill it, without ticks."""
  figure = Figure(figsize=(width, height), dpi=150)
  axes = figure.add_axes((0, 0, 1, 1))
  axes.set(xlim=(-left, width - left), ylim=(height - TOP_MARGIN, -TOP_MARGIN))
  axes.axis('off')
  return figure, axes


def _draw_title(axes, edge, start, title: str, legend: str) -> None:
  axes.text(edge, -0.85, title, fontsize=12, fontweight='bold')
  axes.text(edge, -0.6, legend, fontsize=9, color=MUTED)
  axes.text(0.03, -0.1, 'support', fontsize=10)
  axes.text(start + 0.03, -0.1, 'query', fontsize=10)


def _draw_class_name(
  axes, edge, y, row: int, class_names: Sequence[str]
) -> None:
  axes.text(
    edge,
    y + 0.5,
    label_letter(row),
    va='center',
    fontweight='bold',
    fontsize=16,
  )
  if len(class_names):
    name = textwrap.fill(class_names[row], 14, max_lines=4)
    axes.text(-1.35, y + 0.5, name, va='center', fontsize=8, color=MUTED)


def _indices_by_class(batch: Batch) -> dict[int, np.ndarray]:
  label = np.asarray(batch.targets)
  return {int(c): np.flatnonzero(label == c) for c in np.unique(label)}


def _image_drawer(axes, episode: Episode):
  """Returns `draw(image, x, y)`, which rescales images outside of 0..1."""
  images = [np.asarray(batch.inputs) for batch in episode]
  low = min(0, *(image.min() for image in images))
  high = max(1, *(image.max() for image in images))

  def draw(image, x, y):
    image = (np.asarray(image) - low) / (high - low)
    if image.shape[-1] == 1:
      image = np.repeat(image, 3, axis=-1)
    axes.imshow(image, extent=(x + 0.03, x + 0.97, y + 0.97, y + 0.03))

  return draw


def _draw_prediction(axes, x, y, predicted, probability, label) -> None:
  """Draws the frame of a query image and the prediction below it."""
  is_correct = predicted == label
  color = BLUE if is_correct else VERMILION
  axes.add_patch(
    Rectangle(
      (x + 0.03, y + 0.03),
      0.94,
      0.94,
      fill=False,
      edgecolor=color,
      linewidth=2 if is_correct else 3,
      linestyle='-' if is_correct else (0, (2, 1)),
    )
  )
  text = f'{"✓" if is_correct else "✗"} {label_letter(predicted)}'
  if probability is not None:
    text += f' {probability:.0%}'
  axes.text(
    x + 0.5,
    y + 1.12,
    text,
    ha='center',
    va='center',
    color=color,
    fontsize=9,
    fontweight='normal' if is_correct else 'bold',
  )
