"""Curves fitted to regression tasks."""

from collections.abc import Sequence

from maml_jax import data
from maml_jax.experiment import checkpoint
from maml_jax.report.figure_writer import FigureWriter
from maml_jax.report.markup import Html, element, join, note
from maml_jax.report.regression_plot import draw_regression
from maml_jax.report.run_groups import RunGroup
from maml_jax.utils.errors import UserError

__all__ = ['regressions']


def regressions(
  run_groups: Sequence[RunGroup], figure_writer: FigureWriter
) -> Html:
  """Returns curves fitted to the first test tasks of each regression."""
  shown = []
  for group in run_groups:
    run = group.runs[0]
    if run.config.get('data.name') not in data.REGRESSIONS:
      continue
    try:
      saved = checkpoint.load(run.path)
    except UserError as error:
      shown.append(note(f'{group.name}: no fitted curves: {error}'))
      continue
    figure = draw_regression(saved.config, saved, 3, columns=1, width=6)
    shown.append(
      figure_writer.embed(
        f'regression_{group.number}',
        figure,
        'Curves fitted to test tasks before and after the inner steps',
        f'{group.name}: three test tasks and the curves fitted to them.',
      )
    )
  if not shown:
    return Html()
  return join(
    [element('h2', 'Fitted curves'), element('div', *shown, class_='panels')]
  )
