"""Writes the figures of a report: inline, and as PNG files in a folder."""

import io
import pathlib
import re

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from maml_jax.report.style import PALETTE

__all__ = ['FigureWriter']

NO_METADATA = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))


class FigureWriter:
  """Saves figures as PNG files and returns them as SVG.

  Args:
    folder: the folder of the PNG files; created with the first figure.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder = folder

  def save(self, name: str, figure: Figure) -> str:
    """Writes FOLDER/NAME.png and returns '', for templates."""
    self._folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(self._folder / f'{name}.png', facecolor='white')
    return ''

  def embed(self, name: str, figure: Figure, alt: str) -> Markup:
    """Writes FOLDER/NAME.png and returns the figure as an SVG element.

    Args:
      name: the file name without suffix.
      figure: is drawn in the light colors, which become CSS variables.
      alt: a description for screen readers.
    """
    self.save(name, figure)
    file = io.StringIO()
    with matplotlib.rc_context({'svg.hashsalt': alt}):  # makes ids unique
      figure.savefig(file, format='svg', transparent=True, metadata=NO_METADATA)
    _, _, svg = file.getvalue().partition('<svg ')
    svg = re.sub(r'<g id="[^"]*"', '<g', svg)
    svg = re.sub(r'-?\d+\.\d{2,}', lambda m: f'{float(m[0]):.2f}', svg)
    for color, (light, _) in PALETTE.items():
      svg = svg.replace(light, f'var(--{color})')
    return Markup('<svg role="img" aria-label="{}" ').format(alt) + Markup(svg)
