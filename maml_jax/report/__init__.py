"""Figures and HTML reports; the only package that uses matplotlib.

`draw_demo` draws the figures of `--mode=demo`; `write_report` writes the HTML
report of `--mode=report`.
"""

from maml_jax.report.demo_plots import (
  draw_demo,
  plot_curves,
  plot_episode,
  plot_regression,
)
from maml_jax.report.page import write_report

__all__ = [
  'draw_demo',
  'plot_curves',
  'plot_episode',
  'plot_regression',
  'write_report',
]
