"""The numbers in the tables of the HTML report.

The sections in templates/sections.html call these functions.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from maml_jax import data
from maml_jax.evaluation.statistics import (
  mean_interval,
  paired_difference,
  prefix_difference,
)
from maml_jax.experiment import checkpoint
from maml_jax.experiment.metrics import primary_metric
from maml_jax.inner_loop import flatten, split_learned
from maml_jax.report import formatting
from maml_jax.report.figures import scale_to_unit
from maml_jax.report.formatting import (
  format_difference,
  format_margin,
  format_norm,
  format_number,
  pluralize,
  protocol,
)
from maml_jax.report.run_groups import (
  EvaluationGroup,
  RunGroup,
  combine_seeds,
  main_evaluations,
)
from maml_jax.report.task_plots import draw_regression
from maml_jax.utils.errors import UserError

__all__ = [
  'all_grids',
  'compare_baselines',
  'compare_runs',
  'fitted_curves',
  'precisions',
  'rate_table',
  'rate_tables',
  'task_groups',
]

# Fields in which evaluations must agree to be compared task by task.
SAME_TASK_FIELDS = ('data', 'data_root', 'split', 'ways', 'shots', 'queries')
PREFIXES = (100, 200, 600, 1_000, 2_000, 6_000, 10_000)


def compare_runs(groups: Sequence[EvaluationGroup]) -> list[tuple]:
  """Returns (evaluation, difference from the first, number of tasks).

  Only evaluations on the same tasks as the first one are compared.
  """
  groups = [g for g in groups if g.has(g.metric)]
  rows = []
  for group in groups:
    first, other = groups[0].result, group.result
    if all(first.get(f) == other.get(f) for f in SAME_TASK_FIELDS):
      a, b = group.task_means(), groups[0].task_means()
      n = min(len(a), len(b))
      rows.append((group, paired_difference(a[:n], b[:n]), n))
  return rows


def task_groups(run_groups: Sequence[RunGroup]) -> list[list[EvaluationGroup]]:
  """Returns the main evaluations with results per task, by primary metric."""
  groups = [g for g in main_evaluations(run_groups) if g.has(g.metric)]
  metrics = sorted({g.metric for g in groups})
  return [[g for g in groups if g.metric == metric] for metric in metrics]


def precisions(groups: Sequence[EvaluationGroup]) -> Iterator[dict]:
  """Yields the precision of the means of evaluations with several tasks.

  `rows` maps n to the mean of the first n tasks, the difference from the mean
  of all tasks, and its margin.
  """
  for group in groups:
    metric, values = group.metric, group.task_means()
    total = len(values)
    if total == 1:
      continue
    rows = {}
    for n in sorted({n for n in PREFIXES if n < total} | {total}):
      rows[n] = [format_number(metric, *mean_interval(values[:n])), '–', '–']
      if n < total:
        difference, margin = prefix_difference(values, n)
        rows[n][1] = format_difference(metric, difference)
        rows[n][2] = format_margin(metric, margin)
    yield {
      'group': group,
      'total': total,
      'deviation': values.std(ddof=1),
      'goal': 0.005 if metric == 'accuracy' else 0.05 * abs(values.mean()),
      'rows': rows,
    }


def all_grids(run_groups: Sequence[RunGroup]) -> list[dict]:
  """Returns the grids of all runs: norm modes x queries x inner steps."""
  return [
    _grid(group) | {'figure': f'grid_{run_group.number}_{i}'}
    for run_group in run_groups
    for i, group in enumerate(run_group.grid_groups)
  ]


def _grid(group: EvaluationGroup) -> dict:
  """Returns a grid, combined over seeds, as rows of cells."""

  def key(cell):
    return format_norm(cell['norm']), cell['queries'], cell['num_steps']

  seeds: dict[tuple, list[dict]] = {}
  for cell in (cell for result in group.results for cell in result['cells']):
    seeds.setdefault(key(cell), []).append(cell)
  metric, base = primary_metric(cell), group.result.get('base')
  labels, values, cells = {}, {}, {}
  for k, found in seeds.items():
    labels[k[:2]] = (
      k[0],
      protocol(found[0]),
      pluralize(k[1], 'query', 'queries'),
    )
    values[k] = combine_seeds(found, metric)
    difference = ''
    if base and k == key(base):
      difference = 'base'
    elif all(cell.get('difference') is not None for cell in found):
      value = combine_seeds(found, 'difference', 'difference_interval')
      difference = format_difference(metric, *value)
    text = format_number(metric, *values[k]).removesuffix(formatting.PERCENT)
    cells[k] = [text, difference]
  steps = sorted({k[2] for k in seeds})
  keys = [[(*row, step) for step in steps] for row in labels]
  means = [[values.get(k, [np.nan])[0] for k in row] for row in keys]
  order = sorted(values, key=lambda k: values[k][0])
  return {
    'name': f'{group.name}, step {group.result.get("step", "?")}',
    'group': group,
    'metric': metric,
    'columns': [pluralize(step, 'step') for step in steps],
    'labels': list(labels.values()),
    'means': means,
    'shades': scale_to_unit(means),
    'cells': [[cells.get(k, ['', '']) for k in row] for row in keys],
    'extremes': [
      f'{format_number(metric, *values[k])} ({", ".join(labels[k[:2]])}, '
      f'{pluralize(k[2], "step")})'
      for k in (order[0], order[-1])
    ],
  }


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
      saved = checkpoint.load(group.path)
    except UserError as error:
      yield group, None, str(error)
      continue
    per_step = is_alfa or 'lr' in config['inner.per_step']
    rows, values = rate_table(saved.params, per_step=per_step)
    columns = [f'step {k + 1}' for k in range(values.shape[1])]
    texts = [[f'{x:.3g}' for x in row] for row in values]
    columns = columns if per_step else ['every step']
    yield group, saved.step, (columns, rows, values, texts)


def rate_table(params, *, per_step: bool) -> tuple[list[str], np.ndarray]:
  """Returns parameter names, and the means of their rates [names, steps].

  Args:
    params: meta-parameters with learned rates, or those of ALFA.
    per_step: whether the rates have a leading axis of inner steps; if not, the
      means have one column.
  """
  learned = split_learned(params)[1]
  rates, _ = flatten(learned.get('lr') or learned['alfa']['lr'])
  means = [
    np.reshape(x, (len(x) if per_step else 1, -1)).mean(1)
    for x in rates.values()
  ]
  return list(rates), np.stack(means)


def fitted_curves(run_groups: Sequence[RunGroup]) -> Iterator[tuple]:
  """Yields each regression with a figure, or the reason why there is none."""
  for group in run_groups:
    if group.runs[0].config.get('data.name') in data.REGRESSIONS:
      try:
        saved = checkpoint.load(group.path)
      except UserError as error:
        yield group, str(error)
      else:
        yield group, draw_regression(saved.config, saved, 3, 1, width=6)
