"""Learned rates of the inner loop, by parameter and step."""

from collections.abc import Sequence

import numpy as np

from maml_jax.experiment import checkpoint
from maml_jax.inner_loop import flatten, split_learned
from maml_jax.report.figure_writer import FigureWriter
from maml_jax.report.heat_maps import plot_heat_map
from maml_jax.report.markup import Html, element, join, note
from maml_jax.report.run_groups import RunGroup
from maml_jax.utils.errors import UserError

__all__ = ['learned_rates', 'rate_table']


def learned_rates(
  run_groups: Sequence[RunGroup], figure_writer: FigureWriter
) -> Html:
  """Returns the learned rates of the first run of each group."""
  shown = []
  for group in run_groups:
    run = group.runs[0]
    is_alfa = run.config.get('inner.rule') == 'alfa'
    if not is_alfa and run.config.get('inner.learn_lr', 'none') == 'none':
      continue
    try:
      saved = checkpoint.load(run.path)
    except UserError as error:
      shown.append(note(f'{group.name}: no learned rates: {error}'))
      continue
    per_step = is_alfa or 'lr' in run.config['inner.per_step']
    rows, values = rate_table(saved.params, per_step=per_step)
    columns = ['every step']
    if per_step:
      columns = [f'step {k + 1}' for k in range(values.shape[1])]
    texts = [[f'{x:.3g}' for x in row] for row in values]
    shown.append(
      figure_writer.embed(
        f'learned_rates_{group.number}',
        plot_heat_map(columns, rows, values, texts),
        'Learned rates of the inner loop by parameter and step',
        f'{group.name}, checkpoint of step {saved.step}. A stronger color '
        'means a higher rate. With a rate for each number of a parameter, the '
        'mean is shown; with ALFA, the rate before its factor.',
      )
    )
  if not shown:
    return Html()
  return join([element('h2', 'Learned rates'), element('div', *shown)])


def rate_table(params, *, per_step: bool) -> tuple[list[str], np.ndarray]:
  """Returns the learned rates of meta-parameters as a table.

  Args:
    params: with learned rates, or those of ALFA.
    per_step: whether the rates have a leading axis of inner steps.

  Returns:
    The names of the rows, such as 'encoder/conv1/conv/kernel', and the means
    of the rates [rows, steps], with one column unless `per_step`.
  """
  learned = split_learned(params)[1]
  rates, _ = flatten(learned.get('lr') or learned['alfa']['lr'])
  return list(rates), np.stack(
    [
      np.reshape(rate, (len(rate) if per_step else 1, -1)).mean(1)
      for rate in rates.values()
    ]
  )
