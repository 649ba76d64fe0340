"""Writes the figures of a report: inline, and as PNG files in a folder."""

import pathlib

from matplotlib.figure import Figure

from maml_jax.report import markup
from maml_jax.report.svg import figure_to_svg

__all__ = ['FigureWriter']


class FigureWriter:
  """Saves figures as PNG files and returns them as HTML.

  Args:
    folder: the folder of the PNG files; created with the first figure.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder = folder

  def save(self, name: str, figure: Figure) -> None:
    """Writes FOLDER/NAME.png."""
    self._folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(self._folder / f'{name}.png', facecolor='white')

  def embed(
    self, name: str, figure: Figure | None, alt: str, caption: object = ''
  ) -> markup.Html | str:
    """Writes FOLDER/NAME.png and returns the figure as HTML.

    Args:
      name: the file name without suffix.
      figure: if None, nothing is written and '' is returned.
      alt: a description for screen readers.
      caption: text below the figure.
    """
    if figure is None:
      return ''
    self.save(name, figure)
    return markup.figure(figure_to_svg(figure, alt), caption)
