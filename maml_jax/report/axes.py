"""The common style of the figures' axes."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from maml_jax.report.style import INK, LINE, MUTED

__all__ = [
  'FIGURE_SIZE',
  'add_legend',
  'format_as_count',
  'format_as_percent',
  'make_axes',
  'mask_infinite',
  'plot_band',
  'plot_chance',
  'style_axes',
]

FIGURE_SIZE = (6.0, 3.7)  # inches
MAX_LABEL_LENGTH = 45


def make_axes(title: str, xlabel: str, ylabel: str = '') -> tuple:
  """Returns a new figure of one panel, and its axes."""
  figure = Figure(figsize=FIGURE_SIZE, dpi=150, layout='constrained')
  axes = figure.add_subplot()
  style_axes(axes)
  axes.set_title(title, loc='left', fontweight='bold', fontsize=11, color=INK)
  axes.set_xlabel(xlabel, color=MUTED)
  axes.set_ylabel(ylabel, color=MUTED)
  return figure, axes


def style_axes(axes) -> None:
  """Sets a thin gray grid and removes the top and right spines."""
  axes.grid(color=LINE, linewidth=0.8)
  axes.set_axisbelow(True)
  axes.spines[['top', 'right']].set_visible(False)
  axes.spines[['left', 'bottom']].set_color(LINE)
  axes.tick_params(which='both', color=LINE, labelcolor=MUTED)
  axes.patch.set_visible(False)


def add_legend(figure: Figure, axes) -> Figure | None:
  """Adds a legend above the axes; returns None if the axes are empty."""
  handles, labels = axes.get_legend_handles_labels()
  if not handles:
    return None
  labels = [
    label if len(label) < MAX_LABEL_LENGTH else f'…{label[-43:]}'
    for label in labels
  ]
  figure.legend(
    handles,
    labels,
    loc='outside upper left',
    frameon=False,
    ncols=1 if max(map(len, labels)) > 30 else 2,
    fontsize=9,
    labelcolor=INK,
  )
  return figure


def format_as_percent(axis, decimals: int | None = 0) -> None:
  """Labels the ticks of an axis in percent."""
  axis.set_major_formatter(PercentFormatter(1, decimals=decimals, symbol=' %'))


def format_as_count(axis) -> None:
  """Labels the ticks of an axis with thousands separators."""
  axis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:,.0f}'))


def plot_band(axes, x, low, high, color: str) -> None:
  """Fills the area between two curves."""
  axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)


def plot_chance(axes, ways: set[int], *, vertical: bool) -> None:
  """Draws a line at chance accuracy for each number of ways above 1."""
  draw_line = axes.axvline if vertical else axes.axhline
  for n in sorted(ways):
    if n > 1:
      draw_line(
        1 / n,
        color=MUTED,
        linewidth=1.2,
        linestyle='-.',
        label=f'chance, {100 / n:.3g} %',
      )


def mask_infinite(half_width) -> np.ndarray:
  """Replaces infinite and undefined half-widths by 0."""
  half_width = np.asarray(half_width, float)
  return np.where(np.isfinite(half_width), half_width, 0)
