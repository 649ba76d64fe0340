"""The pictures of one page: inline, and as PNGs in a folder beside it."""

import pathlib

from matplotlib.figure import Figure

from maml_jax.report import figures, markup


class FigureWriter:
  """Keeps each figure as a PNG, and returns it as HTML.

  Args:
    folder: of the PNGs; made when the first is kept.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder = folder

  def keep(self, name: str, figure: Figure) -> None:
    """Writes FOLDER/NAME.png alone."""
    self._folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(self._folder / f'{name}.png', facecolor='white')

  def show(
    self, name: str, figure: Figure | None, alt: str, caption: object = ''
  ) -> markup.Html | str:
    """Writes FOLDER/NAME.png, and returns the figure for the page.

    Args:
      name: without a suffix.
      figure: None for nothing.
      alt: what it shows, for those who cannot see it.
      caption: what to read from it.
    """
    if figure is None:
      return ''
    self.keep(name, figure)
    return markup.figure(figures.figure_to_svg(figure, alt), caption)
