"""What a run has come to, drawn; the only place that draws.

`report` draws the pictures of `--mode=demo`; `write` makes the page of
`--mode=report`.
"""

from maml_jax.report.demo_plots import (
  draw_demo,
  plot_curves,
  plot_episode,
  plot_regression,
)
from maml_jax.report.markup import Html, element, note, paragraph, table, tag
from maml_jax.report.page import write_report

__all__ = [
  'Html',
  'element',
  'note',
  'paragraph',
  'plot_curves',
  'plot_episode',
  'plot_regression',
  'report',
  'table',
  'tag',
  'write',
]
