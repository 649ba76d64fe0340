"""Figures of values in cells: grids and confusion matrices."""

from collections.abc import Sequence

import matplotlib.colors
import numpy as np
from matplotlib.figure import Figure

from maml_jax.report.style import INK, LINE, MUTED, PALETTE

__all__ = ['plot_confusion_matrix', 'plot_heat_map', 'scale_to_unit']


def plot_heat_map(
  columns: Sequence[str], rows: Sequence[str], values, texts
) -> Figure:
  """Plots a heat map with the values as text.

  Args:
    columns: the names of the columns.
    rows: the names of the rows.
    values: [rows, columns], NaN for empty cells.
    texts: [rows][columns], the text of each cell.
  """
  size = (2.4 + 1.5 * len(columns), 0.7 + 0.5 * len(rows))
  figure = Figure(figsize=size, dpi=150, layout='constrained')
  axes = figure.add_subplot()
  scaled = scale_to_unit(values)
  axes.imshow(_to_rgba(scaled), aspect='auto', interpolation='none')
  for i, j in np.ndindex(scaled.shape):
    if np.isfinite(scaled[i, j]):
      axes.text(
        j, i, texts[i][j], ha='center', va='center', fontsize=8.5, color=INK
      )
  axes.set_xticks(range(len(columns)), columns)
  axes.set_yticks(range(len(rows)), rows)
  axes.tick_params(
    length=0, top=False, labeltop=True, labelbottom=False, labelcolor=INK
  )
  axes.spines[:].set_visible(False)
  return figure


def plot_confusion_matrix(rate, names: Sequence[str]) -> Figure:
  """Plots how often each class was predicted as each other class.

  Args:
    rate: [C, C] in [0, 1]; rows are true classes, columns predictions. NaN
      where no task contains both classes.
    names: C class names.
  """
  size = 2.0 + 0.24 * len(names)
  figure = Figure(figsize=(size, size), dpi=150, layout='constrained')
  axes = figure.add_subplot()
  is_diagonal = np.eye(len(rate), dtype=bool)
  confusions = rate[~is_diagonal]
  highest = np.nanmax(confusions) if np.isfinite(confusions).any() else 1
  scaled = np.where(is_diagonal, np.nan, rate / (highest or 1))
  axes.imshow(_to_rgba(0.9 * scaled, 'series1'), interpolation='none')
  for spine in axes.spines.values():
    spine.set_color(LINE)
  axes.set_xticks(range(len(names)), names, rotation=90)
  axes.set_yticks(range(len(names)), names)
  axes.tick_params(length=0, labelsize=9, labelcolor=INK)
  axes.set_xlabel('predicted class', color=MUTED)
  axes.set_ylabel('true class', color=MUTED)
  figure.text(
    0.01, 0.01, f'maximum: {100 * highest:.3g} %', color=MUTED, fontsize=9
  )
  return figure


def scale_to_unit(values) -> np.ndarray:
  """Scales values linearly to 0..1 from the minimum to the maximum."""
  values = np.asarray(values, float)
  low, high = np.nanmin(values), np.nanmax(values)
  return (values - low) / ((high - low) or 1)


def _to_rgba(values, color: str = 'series0') -> np.ndarray:
  """Returns a color with opacity 6 to 70 % for values 0..1; 0 % for NaN."""
  values = np.asarray(values, float)
  image = np.zeros((*values.shape, 4))
  image[..., :3] = matplotlib.colors.to_rgb(PALETTE[color][0])
  image[..., 3] = np.where(np.isfinite(values), 0.06 + 0.64 * values, 0)
  return image
