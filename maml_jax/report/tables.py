"""The numbers in the tables of the HTML report.

The sections in templates/sections.html call these functions.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from maml_jax import data
from maml_jax.evaluation.statistics import combine_seeds, paired_difference
from maml_jax.experiment import checkpoint
from maml_jax.experiment.formatting import format_norm, pluralize, protocol
from maml_jax.experiment.metrics import primary_metric
from maml_jax.inner_loop import rate_table
from maml_jax.report.formatting import PERCENT, format_difference, format_number
from maml_jax.report.run_groups import SAME_TASKS, EvaluationGroup, RunGroup
from maml_jax.report.runs import CELL_FIELDS
from maml_jax.report.task_plots import draw_regression
from maml_jax.utils.errors import UserError

__all__ = [
  'all_grids',
  'compare_baselines',
  'compare_runs',
  'fitted_curves',
  'rate_tables',
]


def compare_runs(groups: Sequence[EvaluationGroup]) -> list[tuple]:
  """Returns (evaluation, difference from the first, number of tasks).

  Only evaluations on the same tasks as the first one are compared.
  """
  groups = [group for group in groups if len(group.values)]
  rows = []
  for group in groups:
    first, other = groups[0], group
    if all(first.result.get(f) == other.result.get(f) for f in SAME_TASKS):
      n = min(len(first.values), len(other.values))
      difference = paired_difference(other.values[:n], first.values[:n])
      rows.append((group, difference, n))
  return rows


def all_grids(run_groups: Sequence[RunGroup]) -> list[dict]:
  """Returns the grids of all runs: norm modes x queries x inner steps."""
  return [
    _grid(group, i) for g in run_groups for i, group in enumerate(g.grid_groups)
  ]


def _grid(group: EvaluationGroup, index: int) -> dict:
  """Returns a grid, combined over seeds.

  `rows` are a label (norm mode, protocol, queries) and the cells for each
  number of steps, (value, difference) or () if there is none.
  """
  seeds: dict[tuple, list[dict]] = {}
  for cell in (cell for result in group.results for cell in result['cells']):
    seeds.setdefault(_cell_key(cell), []).append(cell)
  metric, base = primary_metric(cell), group.result.get('base')
  values = {k: combine_seeds(cells, metric) for k, cells in seeds.items()}
  texts = {}
  for k, cells in seeds.items():
    difference = ''
    if base == {field: cells[0][field] for field in CELL_FIELDS}:
      difference = 'base'
    elif all(cell.get('difference') is not None for cell in cells):
      value = combine_seeds(cells, 'difference', 'difference_interval')
      difference = format_difference(metric, *value)
    text = format_number(metric, *values[k]).removesuffix(PERCENT)
    texts[k] = text, difference
  labels = dict.fromkeys(label for label, _ in seeds)
  steps = sorted({step for _, step in seeds})
  order = sorted(values, key=lambda k: values[k][0])
  return {
    'name': f'{group.name}, step {group.result.get("step", "?")}',
    'figure': f'grid_{group.number}_{index}',
    'group': group,
    'metric': metric,
    'columns': [pluralize(step, 'step') for step in steps],
    'rows': [(x, [texts.get((x, k), ()) for k in steps]) for x in labels],
    'means': [[values.get((x, k), [np.nan])[0] for k in steps] for x in labels],
    'extremes': [
      f'{format_number(metric, *values[label, step])} ({", ".join(label)}, '
      f'{pluralize(step, "step")})'
      for label, step in (order[0], order[-1])
    ],
  }


def _cell_key(cell: dict) -> tuple[tuple[str, ...], int]:
  """Returns the label of the row of a cell, and its inner steps."""
  norm = format_norm(cell['norm'])
  queries = pluralize(cell['queries'], 'query', 'queries')
  return (norm, protocol(cell), queries), cell['num_steps']


def compare_baselines(group: EvaluationGroup) -> list[tuple]:
  """Compares learners without the inner loop with MAML, on the same tasks.

  Returns:
    (name, description, value and difference with their intervals) of each.
  """
  by_seed = [
    {b['name']: b for b in r.get('baselines') or () if group.metric in b}
    for r in group.results
  ]
  rows = []
  for name in by_seed[0]:
    seeds = [found[name] for found in by_seed if name in found]
    value = combine_seeds(seeds, group.metric)
    difference = combine_seeds(seeds, 'difference', 'difference_interval')
    about = seeds[0].get('about', '')
    rows.append((name.replace('_', ' '), about, value, difference))
  return rows


def rate_tables(run_groups: Sequence[RunGroup]) -> Iterator[tuple]:
  """Yields groups with learned rates, and the rates of the first run.

  They are the step of the checkpoint and the arguments of
  `figures.plot_heat_map`, or None and the reason why there are none.
  """
  for group in run_groups:
    config = group.runs[0].config
    is_alfa = config.get('inner.rule') == 'alfa'
    if not is_alfa and config.get('inner.learn_lr', 'none') == 'none':
      continue
    try:
      saved = checkpoint.load(group.runs[0].path)
    except UserError as error:
      yield group, None, str(error)
      continue
    per_step = is_alfa or 'lr' in config['inner.per_step']
    rows, values = rate_table(saved.params, per_step=per_step)
    steps = [f'step {k + 1}' for k in range(values.shape[1])]
    columns = steps if per_step else ['every step']
    texts = [[f'{x:.3g}' for x in row] for row in values]
    yield group, saved.step, (columns, rows, values, texts)


def fitted_curves(run_groups: Sequence[RunGroup]) -> Iterator[tuple]:
  """Yields each regression with a figure, or the reason why there is none."""
  for group in run_groups:
    if group.runs[0].config.get('data.name') in data.REGRESSIONS:
      try:
        saved = checkpoint.load(group.runs[0].path)
        yield group, draw_regression(saved.config, saved, 3, 1, width=6)
      except UserError as error:
        yield group, str(error)
