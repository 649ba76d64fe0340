"""Converts figures to inline SVG that follows the reader's color scheme."""

import io
import re

import matplotlib
from matplotlib.figure import Figure

from maml_jax.report import markup
from maml_jax.report.style import PALETTE

__all__ = ['figure_to_svg']


def figure_to_svg(figure: Figure, alt: str) -> markup.Html:
  """Returns a figure as an SVG element.

  Args:
    figure: drawn in the colors of `style.PALETTE`, which become CSS variables.
    alt: a description for screen readers.
  """
  file = io.StringIO()
  with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': alt}):
    figure.savefig(
      file, format='svg', transparent=True, metadata={'Date': None}
    )
  _, _, text = file.getvalue().partition('<svg ')
  text = re.sub(r'<metadata>.*?</metadata>|<!--.*?-->', '', text, flags=re.S)
  text = re.sub(r'<style type="text/css">.*?</style>', '', text, flags=re.S)
  text = re.sub(r'<g id="[^"]*"', '<g', text)
  text = re.sub(r'-?\d+\.\d{2,}', lambda m: f'{float(m[0]):.2f}', text)
  for name, (light, _) in PALETTE.items():
    text = text.replace(light, f'var(--{name})')
  text = re.sub(r'\n\s*', '\n', text)
  view_box = re.findall(r'viewBox="[^"]*"', text)[0]
  title = markup.element('title', alt)
  body = text[text.index('>') + 1 :].strip()
  return markup.Html(
    f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {view_box} role="img" '
    f'aria-label="{markup.escape(alt)}">{title}{body}'
  )
