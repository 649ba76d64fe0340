"""One checkpoint in every way at once: norm modes, query images, inner steps.

All cells are measured on the same tasks, so each difference is taken task by
task. With fewer query images a cell is judged on the first of each class.
"""

import os
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from maml_jax.utils import console, distributed
from maml_jax.experiment import setup
from maml_jax.config import NORMS
from maml_jax.utils.errors import UserError
from maml_jax.evaluation.evaluate import Evaluation
from maml_jax.experiment.transfer import transfer_params
from maml_jax.experiment.formatting import norm_label
from maml_jax.evaluation.statistics import mean_interval, paired_difference, share_at_chance
from maml_jax.learner import Learner
from maml_jax.experiment.metrics import is_transductive, primary_metric
from maml_jax.experiment.formatting import describe_protocol, format_metric
from maml_jax.types import Batch


def evaluate_grid(
    config: ConfigDict,
    source: str | os.PathLike,
    workdir: str | os.PathLike | None = None,
    *,
    again: bool = True,
) -> dict:
  """Measures a checkpoint in every cell of a grid, and says so.

  Args:
    config: `eval.grid_norms`, `eval.grid_queries` and `eval.grid_steps` are the
      sides of the grid; see `evaluate`.
    source: a workdir, or one checkpoint.
    workdir: where results are kept; by default `source`.
    again: measure even if there is a result of the same by the same version.

  Returns:
    What WORKDIR/eval/NAME.json holds. NAME.npz has accuracy and loss of each
    cell and task, [cells, T].

  Raises:
    UserError: there is no sound checkpoint, it is of another config, or has
      not the statistics that one of `eval.grid_norms` needs.
  """
  norms = config.eval.grid_norms or _all_norms(config)
  queries = tuple(sorted(set(config.eval.grid_queries)))
  steps = tuple(sorted(set(config.eval.grid_steps)))
  phase = setup.eval_phase(config)._replace(
      queries=queries[-1], num_steps=steps[-1]
  )
  e = Evaluation(config, source, workdir or source, phase, 'grid')
  if not again and (result := distributed.on_main_process(e.kept)):
    return result
  cells, arrays = _measure(e, norms, queries, steps)
  base = _base(config, cells)
  result = {
      'kind': 'grid',
      'base': {k: cells[base][k] for k in ('norm', 'queries', 'num_steps')},
      'cells': _summarize(cells, arrays, base, phase.ways),
  }
  return e.write(
      result, arrays, lambda r: console.print_result('\n'.join(describe_grid(r)))
  )


def _all_norms(config: ConfigDict) -> tuple:
  """That of the training, then the others; that alone in regression."""
  own = config.model.norm
  if config.eval.ways == 1:  # without batch norm all would be the same
    return (own,)
  return (own, *(norm for norm in NORMS if norm != own))


def _measure(e: Evaluation, norms, queries, steps) -> tuple[list[dict], dict]:
  """The cells, and what was measured of the tasks in each, [cells, T]."""
  cells, rows = [], []
  for norm in norms:
    learner = setup.phase_learner(e.config, e.phase._replace(norm=norm))
    try:
      transfer_params(learner, e.saved.params, e.saved.stats)
    except UserError:
      if e.config.eval.grid_norms:
        raise
      continue  # such a checkpoint has not the statistics of this mode
    measure = make_grid_measure(learner, queries, steps, e.phase.ways)
    measured = e.measure(norm_label(norm), learner, measure)
    for i, q in enumerate(queries):
      for j, k in enumerate(steps):
        cells.append({
            'norm': norm,
            'transductive': is_transductive(norm),
            'queries': q,
            'num_steps': k,
        })
        rows.append({name: x[:, j, i] for name, x in measured.items()})
  arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
  return cells, arrays


def describe_grid(result: dict) -> Iterator[str]:
  """Lines for people: one for each norm mode and number of query images."""
  cells, base = result['cells'], result['base']
  steps = sorted({cell['num_steps'] for cell in cells})
  name = primary_metric(cells[0])
  task = f'{result["ways"]}-way {result["shots"]}-shot'
  way = f'{norm_label(base["norm"])}, '
  if name == 'loss':
    task, way = f'{result["shots"]} points', ''
  yield (
      f'{result["data"]} {result["split"]}, {task}, the same '
      f'{result["num_tasks"]} tasks in every cell; checkpoint of step '
      f'{result["step"]}. {name.capitalize()} with its 95 % interval, and its '
      f'difference from {way}{base["queries"]} queries, {base["num_steps"]} '
      'steps:'
  )
  head = ''.join(f'{f"{k} steps":^30}' for k in steps)
  yield f'{"":47}{head}'.rstrip()
  for start in range(0, len(cells), len(steps)):
    row = cells[start : start + len(steps)]
    norm, queries = row[0]['norm'], row[0]['queries']
    line = f'{norm_label(norm):11}{describe_protocol(norm, queries):36}'
    if name == 'loss':
      line = f'{f"{queries} queries":47}'
    line += ''.join(map(_shown, row))
    yield line.rstrip()


def _shown(cell: dict) -> str:
  """A cell in 30 columns: its value, its difference from the base."""
  name = primary_metric(cell)
  unit, digits = (100, 2) if name == 'accuracy' else (1, 3)
  more = f'{unit * cell["difference"]:+.{digits}f}'
  if cell['difference_interval']:
    more += f' +-{unit * cell["difference_interval"]:.{digits}f}'
  return f'{format_metric(name, cell[name], cell["interval"]):>16} {more:13}'


def make_grid_measure(learner: Learner, queries, steps, ways: int) -> Callable:
  """`measure(params, stats, episode)` of all cells of one norm mode.

  Args:
    learner: takes as many inner steps as `steps` has at most.
    queries: numbers of query images per class, at most those of the episode.
    steps: numbers of inner steps, rising.
    ways: W.

  Returns:
    A function whose results are accuracy and loss, [steps, queries] each.
  """

  def measure(params, stats, episode):
    def observe(params, stats):
      judged = [
          learner.judge(params, stats, first_queries(episode.query, q, ways))
          for q in queries
      ]
      return jax.tree.map(lambda *x: jnp.stack(x), *judged)

    return learner.trace(params, stats, episode.support, observe, steps)

  return measure


def first_queries(batch: Batch, queries: int, ways: int) -> Batch:
  """The first images of each class, of a batch that is class after class."""

  def cut(x):
    x = x.reshape(ways, -1, *x.shape[1:])[:, :queries]
    return x.reshape(-1, *x.shape[2:])

  return jax.tree.map(cut, batch)


def _base(config: ConfigDict, cells: list[dict]) -> int:
  """The cell that the others are compared with: as trained and evaluated."""

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
    difference, half = paired_difference(values[i], values[base])
    summary = {
        'loss': float(arrays['loss'][i].mean()),
        name: mean,
        'interval': interval,
        'median': float(np.median(values[i])),
        'difference': difference,
        'difference_interval': half,
    }
    if name == 'accuracy':
      summary['at_chance'] = share_at_chance(values[i], ways)
    summaries.append(cell | summary)
  return summaries
