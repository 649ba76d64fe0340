"""Evaluates a checkpoint over a grid of norm modes, query counts and steps.

All cells use the same tasks, so differences are taken task by task. With fewer
query images, a cell uses the first ones of each class.
"""

import os
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from maml_jax.config import NORMS
from maml_jax.evaluation.measurement import Evaluation
from maml_jax.evaluation.statistics import (
  mean_interval,
  paired_difference,
  share_at_chance,
)
from maml_jax.experiment import setup
from maml_jax.experiment.formatting import (
  describe_data,
  describe_protocol,
  describe_task,
  format_metric,
  norm_label,
)
from maml_jax.experiment.metrics import is_transductive, primary_metric
from maml_jax.experiment.transfer import transfer_params
from maml_jax.learner import Learner
from maml_jax.types import Batch
from maml_jax.utils import console, distributed
from maml_jax.utils.errors import UserError

__all__ = [
  'describe_grid',
  'evaluate_grid',
  'first_queries',
  'make_grid_measure',
]


def evaluate_grid(
  config: ConfigDict,
  source: str | os.PathLike,
  workdir: str | os.PathLike | None = None,
  *,
  overwrite: bool = True,
) -> dict:
  """Evaluates a checkpoint in every cell of a grid, prints and saves it.

  Args:
    config: `eval.grid_norms`, `eval.grid_queries` and `eval.grid_steps` are the
      axes of the grid; see `evaluate`.
    source: a workdir or one checkpoint.
    workdir: where results are saved; default `source`.
    overwrite: repeat the evaluation and replace a saved result.

  Returns:
    The content of WORKDIR/eval/NAME.json. NAME.npz holds accuracy and loss of
    each cell and task, [cells, T].

  Raises:
    UserError: the checkpoint is missing, damaged, has another config, or lacks
      the statistics that one of `eval.grid_norms` needs.
  """
  norms = config.eval.grid_norms or _all_norms(config)
  queries = tuple(sorted(set(config.eval.grid_queries)))
  steps = tuple(sorted(set(config.eval.grid_steps)))
  phase = setup.eval_phase(config)._replace(
    queries=queries[-1], num_steps=steps[-1]
  )
  e = Evaluation(config, source, workdir or source, phase, 'grid')
  if not overwrite and (result := distributed.on_main_process(e.find_saved)):
    return result
  cells, arrays = _measure(e, norms, queries, steps)
  base = _base_cell(config, cells)
  result = {
    'kind': 'grid',
    'base': {k: cells[base][k] for k in ('norm', 'queries', 'num_steps')},
    'cells': _summarize(cells, arrays, base, phase.ways),
  }
  return e.save(
    result,
    arrays,
    lambda r: console.print_result('\n'.join(describe_grid(r))),
  )


def _all_norms(config: ConfigDict) -> tuple:
  """Returns the norm mode of the training, then all others."""
  trained = config.model.norm
  if config.eval.ways == 1:  # regression has no batch norm
    return (trained,)
  return (trained, *(norm for norm in NORMS if norm != trained))


def _measure(e: Evaluation, norms, queries, steps) -> tuple[list[dict], dict]:
  """Returns the cells, and the metrics of the tasks in each, [cells, T]."""
  cells, rows = [], []
  for norm in norms:
    learner = setup.phase_learner(e.config, e.phase._replace(norm=norm))
    try:
      transfer_params(learner, e.saved.params, e.saved.stats)
    except UserError:
      if e.config.eval.grid_norms:
        raise
      continue  # the checkpoint lacks the statistics of this mode
    measure = make_grid_measure(learner, queries, steps, e.phase.ways)
    measured = e.measure(norm_label(norm), learner, measure)
    for i, q in enumerate(queries):
      for j, k in enumerate(steps):
        cells.append(
          {
            'norm': norm,
            'transductive': is_transductive(norm),
            'queries': q,
            'num_steps': k,
          }
        )
        rows.append({name: x[:, j, i] for name, x in measured.items()})
  arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
  return cells, arrays


def describe_grid(result: dict) -> Iterator[str]:
  """Yields one line per norm mode and number of query images."""
  cells, base = result['cells'], result['base']
  steps = sorted({cell['num_steps'] for cell in cells})
  name = primary_metric(cells[0])
  norm = f'{norm_label(base["norm"])}, '
  if name == 'loss':
    norm = ''
  yield (
    f'{describe_data(result)}, {describe_task(result)}, the same '
    f'{result["num_tasks"]} tasks in every cell; checkpoint of step '
    f'{result["step"]}. {name.capitalize()} with its 95 % confidence '
    f'interval, and its difference from {norm}{base["queries"]} queries, '
    f'{base["num_steps"]} steps:'
  )
  head = ''.join(f'{f"{k} steps":^30}' for k in steps)
  yield f'{"":47}{head}'.rstrip()
  for start in range(0, len(cells), len(steps)):
    row = cells[start : start + len(steps)]
    norm, queries = row[0]['norm'], row[0]['queries']
    line = f'{norm_label(norm):11}{describe_protocol(norm, queries):36}'
    if name == 'loss':
      line = f'{f"{queries} queries":47}'
    line += ''.join(map(_format_cell, row))
    yield line.rstrip()


def _format_cell(cell: dict) -> str:
  """Formats a cell in 30 columns: its value and difference from the base."""
  name = primary_metric(cell)
  unit, digits = (100, 2) if name == 'accuracy' else (1, 3)
  difference = f'{unit * cell["difference"]:+.{digits}f}'
  if cell['difference_interval']:
    difference += f' +-{unit * cell["difference_interval"]:.{digits}f}'
  value = format_metric(name, cell[name], cell['interval'])
  return f'{value:>16} {difference:13}'


def make_grid_measure(
  learner: Learner, queries: Sequence[int], steps: Sequence[int], ways: int
) -> Callable:
  """Makes `measure(params, stats, episode)` for all cells of one norm mode.

  Args:
    learner: its number of inner steps is the maximum of `steps`.
    queries: numbers of query images per class, at most those of the episode.
    steps: numbers of inner steps, ascending.
    ways: W.

  Returns:
    A function that returns accuracy and loss, [steps, queries] each.
  """

  def measure(params, stats, episode):
    def observe(params, stats):
      metrics = [
        learner.evaluate(params, stats, first_queries(episode.query, q, ways))
        for q in queries
      ]
      return jax.tree.map(lambda *x: jnp.stack(x), *metrics)

    return learner.adapt_and_observe(
      params, stats, episode.support, observe, steps
    )

  return measure


def first_queries(batch: Batch, queries: int, ways: int) -> Batch:
  """Returns the first `queries` images of each class; sorted by class."""

  def first(x):
    x = x.reshape(ways, -1, *x.shape[1:])[:, :queries]
    return x.reshape(-1, *x.shape[2:])

  return jax.tree.map(first, batch)


def _base_cell(config: ConfigDict, cells: list[dict]) -> int:
  """Returns the index of the cell closest to the configured evaluation."""

  def distance(i):
    cell = cells[i]
    return (
      cell['norm'] != config.eval.norm,
      abs(cell['queries'] - config.eval.queries),
      abs(cell['num_steps'] - config.eval.num_steps),
    )

  return min(range(len(cells)), key=distance)


def _summarize(cells, arrays, base: int, ways: int) -> list[dict]:
  name = primary_metric(arrays)
  values = np.asarray(arrays[name], np.float64)
  summaries = []
  for i, cell in enumerate(cells):
    mean, interval = mean_interval(values[i])
    difference, half_width = paired_difference(values[i], values[base])
    summary = {
      'loss': float(arrays['loss'][i].mean()),
      name: mean,
      'interval': interval,
      'median': float(np.median(values[i])),
      'difference': difference,
      'difference_interval': half_width,
    }
    if name == 'accuracy':
      summary['at_chance'] = share_at_chance(values[i], ways)
    summaries.append(cell | summary)
  return summaries
