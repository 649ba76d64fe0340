"""Figures of accuracy and loss during meta-training."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from maml_jax.experiment import metrics
from maml_jax.report.axes import (
  add_legend,
  format_as_count,
  format_as_percent,
  make_axes,
  mask_infinite,
  plot_band,
)
from maml_jax.report.run_groups import RunGroup
from maml_jax.report.style import line_style

__all__ = ['MAX_POINTS', 'plot_learning_curves']

MAX_POINTS = 300  # of a curve
MAX_MARKED_POINTS = 40  # longer curves have no markers


class Curve(NamedTuple):
  """A metric against the meta-iteration, with a band; arrays [n].

  Attributes:
    step: the meta-iterations.
    value: the metric.
    low: the lower end of the band.
    high: the upper end of the band.
  """

  step: np.ndarray
  value: np.ndarray
  low: np.ndarray
  high: np.ndarray


def plot_learning_curves(
  run_groups: Sequence[RunGroup], name: str
) -> Figure | None:
  """Plots a metric against the meta-iteration.

  Training tasks are a thin, smoothed line. Validation is a line with a band:
  the 95 % interval of a single seed, or the range of several seeds.

  Args:
    run_groups: the runs, one color per group.
    name: 'accuracy' or 'loss'.

  Returns:
    The figure; None if no run has the metric.
  """
  figure, axes = make_axes(f'Query {name}', 'meta-iteration')
  for group in run_groups:
    color, dashes = line_style(group.number)
    train, val = (
      _group_curve(group, split, name) for split in ('train', 'val')
    )
    if train:
      axes.plot(
        train.step,
        train.value,
        linestyle=dashes,
        color=color,
        alpha=0.55,
        linewidth=0.9,
        label=f'{group.name}, training',
      )
    if val:
      _plot_validation(axes, group, val, name)
  format_as_count(axes.xaxis)
  if name == 'accuracy':
    format_as_percent(axes.yaxis)
  return add_legend(figure, axes)


def _plot_validation(axes, group: RunGroup, val: Curve, name: str) -> None:
  """Plots a validation curve with its band and a star at the best value."""
  color, dashes = line_style(group.number)
  plot_band(axes, val.step, val.low, val.high, color)
  axes.plot(
    val.step,
    val.value,
    linestyle=dashes,
    color=color,
    marker='o' if len(val.step) < MAX_MARKED_POINTS else None,
    markersize=3.5,
    linewidth=1.8,
    label=f'{group.name}, validation',
  )
  best = (np.argmax if name == 'accuracy' else np.argmin)(val.value)
  axes.plot(val.step[best], val.value[best], '*', color=color, markersize=11)


def _group_curve(group: RunGroup, split: str, name: str) -> Curve | None:
  """Returns the mean curve of the seeds, or the curve of a single seed."""
  curves = [
    curve
    for run in group.runs
    if (curve := _run_curve(run.records, split, name)) is not None
  ]
  if not curves:
    return None
  if len(curves) == 1:
    return curves[0]
  step = np.unique(np.concatenate([c.step for c in curves]))
  step = step[step <= min(c.step[-1] for c in curves)]
  step = step[step >= max(c.step[0] for c in curves)]
  if not len(step):
    return curves[0]
  values = np.stack([np.interp(step, c.step, c.value) for c in curves])
  return Curve(step, values.mean(0), values.min(0), values.max(0))


def _run_curve(records: list[dict], split: str, name: str) -> Curve | None:
  """Returns the curve of a single run, with its intervals as the band."""
  kept = [r for r in records if r['split'] == split and name in r]
  if not kept:
    return None
  step, value = (np.array([r[key] for r in kept]) for key in ('step', name))
  half_width = mask_infinite([r.get('interval', 0) for r in kept])
  if split != 'val' or name != metrics.primary_metric(kept[0]):
    half_width = np.zeros_like(half_width)  # it belongs to another metric
  if split == 'train':
    size = max(1, len(value) // 30)
    value = np.convolve(value, np.full(size, 1 / size), 'valid')
    step = step[size // 2 :][: len(value)]
    half_width = half_width[: len(value)]
  chosen = np.unique(np.linspace(0, len(step) - 1, MAX_POINTS).astype(int))
  step, value, half_width = step[chosen], value[chosen], half_width[chosen]
  return Curve(step, value, value - half_width, value + half_width)
