"""The colors of figures and page, and the common style of the figures.

Figures are drawn in the light colors. In the page each color is a CSS variable,
which the dark scheme redefines. The series colors are those of Okabe and Ito,
which color-blind readers can distinguish, darkened where they are too pale for
lines on white. No information is given by color alone.
"""

from typing import Any

__all__ = ['INK', 'LINE', 'MUTED', 'PALETTE', 'RC', 'SERIES', 'line_style']

# name -> (light, dark)
PALETTE = {
  'page': ('#ffffff', '#11161c'),
  'card': ('#f5f7f9', '#1a2129'),
  'ink': ('#1b2127', '#e7ebef'),
  'muted': ('#56616c', '#a3aeb9'),
  'line': ('#dde2e7', '#323b45'),
  'series0': ('#0072b2', '#58b1ea'),
  'series1': ('#d55e00', '#ff9149'),
  'series2': ('#008f68', '#35c99d'),
  'series3': ('#b85c94', '#e59cc8'),
  'series4': ('#9a7400', '#e5b53a'),
  'series5': ('#5b6bc0', '#a3b0ff'),
}
INK, MUTED, LINE = (PALETTE[name][0] for name in ('ink', 'muted', 'line'))
SERIES = [light for name, (light, _) in PALETTE.items() if 'series' in name]
DASHES = ('-', (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1.5, 1.5)))

# For `matplotlib.rc_context`.
RC: Any = {
  'axes.axisbelow': True,
  'axes.edgecolor': LINE,
  'axes.facecolor': 'none',
  'axes.grid': True,
  'axes.labelcolor': MUTED,
  'axes.spines.right': False,
  'axes.spines.top': False,
  'axes.titlecolor': INK,
  'axes.titlelocation': 'left',
  'axes.titlesize': 11,
  'axes.titleweight': 'bold',
  'figure.constrained_layout.use': True,
  'figure.dpi': 150,
  'figure.figsize': (6.0, 3.7),
  'grid.color': LINE,
  'legend.fontsize': 9,
  'legend.frameon': False,
  'legend.labelcolor': INK,
  'lines.linewidth': 1.6,
  'patch.linewidth': 1.6,
  'svg.fonttype': 'none',
  'text.parse_math': False,  # names of runs and classes may contain $
  'xtick.color': LINE,
  'xtick.labelcolor': MUTED,
  'ytick.color': LINE,
  'ytick.labelcolor': MUTED,
}


def line_style(number: int) -> dict:
  """Returns color and dashes of a line; those of numbers 0..23 are distinct."""
  dashes = DASHES[(number + number // len(SERIES)) % len(DASHES)]
  return {'color': SERIES[number % len(SERIES)], 'linestyle': dashes}
