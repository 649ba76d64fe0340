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

from maml_jax import console, experiment, hosts
from maml_jax.config import NORMS
from maml_jax.errors import UserError
from maml_jax.evaluate import Evaluation, fit, norm_name
from maml_jax.intervals import at_chance, mean_interval, paired_difference
from maml_jax.learner import Learner
from maml_jax.metrics import is_transductive, kind, percent, score
from maml_jax.types import Batch


def grid(
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
  if config.eval.grid_norms:
    norms = config.eval.grid_norms
  else:
    own = config.model.norm
    norms = (own, *(norm for norm in NORMS if norm != own))
  queries = tuple(sorted(set(config.eval.grid_queries)))
  steps = tuple(sorted(set(config.eval.grid_steps)))
  phase = experiment.eval_phase(config)._replace(
      queries=queries[-1], num_steps=steps[-1]
  )
  e = Evaluation(config, source, workdir or source, phase, 'grid')
  if not again and (result := hosts.first(e.kept)):
    return result
  cells, rows = [], []
  for norm in norms:
    learner = experiment.phase_learner(config, phase._replace(norm=norm))
    try:
      fit(learner, e.saved.params, e.saved.stats)
    except UserError:
      if config.eval.grid_norms:
        raise
      continue  # such a checkpoint has not the statistics of this mode
    measure = make_measure(learner, queries, steps, phase.ways)
    measured = e.measure(norm_name(norm), learner, measure)
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
  base = _base(config, cells)
  result = {
      'kind': 'grid',
      'base': {k: cells[base][k] for k in ('norm', 'queries', 'num_steps')},
      'cells': _summarize(cells, arrays, base, phase.ways),
  }
  return e.write(
      result, arrays, lambda r: console.result('\n'.join(describe(r)))
  )


def describe(result: dict) -> Iterator[str]:
  """Lines for people: one for each norm mode and number of query images."""
  cells = result['cells']
  steps = sorted({cell['num_steps'] for cell in cells})
  base = result['base']
  yield (
      f'{result["data"]} {result["split"]}, {result["ways"]}-way '
      f'{result["shots"]}-shot, the same {result["num_tasks"]} tasks in every '
      f'cell; checkpoint of step {result["step"]}. Accuracy with its 95 % '
      f'interval, and its difference from {norm_name(base["norm"])}, '
      f'{base["queries"]} queries, {base["num_steps"]} steps:'
  )
  head = ''.join(f'{f"{k} steps":^30}' for k in steps)
  yield f'{"":47}{head}'.rstrip()
  for start in range(0, len(cells), len(steps)):
    row = cells[start : start + len(steps)]
    norm = row[0]['norm']
    line = f'{norm_name(norm):11}{kind(norm, row[0]["queries"]):36}'
    for cell in row:
      name = percent(cell['accuracy'], cell['interval'])
      more = f'{100 * cell["difference"]:+.2f}'
      if cell['difference_interval']:
        more += f' +-{100 * cell["difference_interval"]:.2f}'
      line += f'{name:>16} {more:13}'
    yield line.rstrip()


def make_measure(learner: Learner, queries, steps, ways: int) -> Callable:
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
          learner.judge(params, stats, first(episode.query, q, ways))
          for q in queries
      ]
      return jax.tree.map(lambda *x: jnp.stack(x), *judged)

    return learner.trace(params, stats, episode.support, observe, steps)

  return measure


def first(batch: Batch, queries: int, ways: int) -> Batch:
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
  name = score(arrays)
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
      summary['at_chance'] = at_chance(values[i], ways)
    summaries.append(cell | summary)
  return summaries
