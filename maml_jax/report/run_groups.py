"""Groups runs, and their evaluations, that differ only in the seed."""

import json
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from maml_jax.evaluation.statistics import combine_seeds
from maml_jax.experiment.metrics import primary_metric
from maml_jax.experiment.run_dir import RESUME_IGNORED_FIELDS
from maml_jax.report.runs import CELL_FIELDS, Evaluation, Run

__all__ = [
  'SAME_TASKS',
  'EvaluationGroup',
  'RunGroup',
  'differing_fields',
  'first_evaluations_with',
  'group_runs',
  'main_evaluations',
]

T = TypeVar('T')

# Prefixes of the config fields in which the runs of a group may differ.
IGNORED_PREFIXES = (
  'seed.',
  *(f'{field}.' for field in RESUME_IGNORED_FIELDS if 'epochs' not in field),
)
# Fields in which evaluations with the same tasks agree, and those of a group.
SAME_TASKS = ('data', 'data_root', 'split', 'ways', 'shots', 'queries')
SETUP_FIELDS = (*SAME_TASKS, 'num_steps', 'norm', 'augment_support')
ARRAYS = ('accuracy', 'loss', 'classes', 'predicted')


class EvaluationGroup(NamedTuple):
  """Evaluations with the same setup, one per seed, of the runs of one group."""

  name: str  # of the run group, with the number of seeds
  number: int  # of the run group, which determines color and dashes
  evaluations: list[Evaluation]
  results: list[dict]  # of all seeds
  result: dict  # of the first seed
  metric: str  # the primary metric: 'accuracy' or, for regression, 'loss'
  arrays: dict[str, np.ndarray]  # those that all seeds have, [seeds, T, ...]
  has_predictions: bool  # whether `arrays` has all ARRAYS
  values: np.ndarray  # the metric of each task, averaged over seeds, [T]

  @property
  def mean(self) -> tuple[float, float | None]:
    """The primary metric over all seeds with its interval."""
    return combine_seeds(self.results, self.metric)

  def average(self, name: str) -> float | None:
    """Returns the mean of a field over the seeds that have it, if any."""
    known = [r[name] for r in self.results if r.get(name) is not None]
    return sum(known) / len(known) if known else None


class RunGroup(NamedTuple):
  """Runs that differ only in the seed, one per seed."""

  name: str  # unique among the groups
  number: int  # index of the group, which determines color and dashes
  runs: list[Run]
  records: list[dict]  # the metrics of all runs
  evaluation_groups: list[EvaluationGroup]  # by setup, newest first
  grid_groups: list[EvaluationGroup]  # the grids, in the same order


def group_runs(runs: Sequence[Run]) -> list[RunGroup]:
  """Groups runs that differ only in the seed.

  A second run with the same config and seed starts a new group.
  """
  configs = [_seedless(run) or str(run.path) for run in runs]
  keys = [json.dumps(config, sort_keys=True) for config in configs]
  found = _group_unique(
    zip(keys, (run.seed for run in runs), runs, strict=True)
  )
  names = _group_names([[run.path for run in group] for group in found])
  groups = []
  for number, (name, group) in enumerate(zip(names, found, strict=True)):
    group = sorted(group, key=lambda run: run.seed or 0)
    records = [record for run in group for record in run.records]
    kinds = [_group_results(name, number, group, k) for k in ('tasks', 'grid')]
    groups.append(RunGroup(name, number, group, records, *kinds))
  return groups


def main_evaluations(run_groups: Sequence[RunGroup]) -> list[EvaluationGroup]:
  """Returns the evaluation of each run group that is shown in detail.

  If all run groups have evaluations with the same setup, it is the setup with
  the most seeds, otherwise the evaluation of each group with the most seeds;
  the newest one if several have the same number of seeds.
  """
  lists = [g.evaluation_groups for g in run_groups if g.evaluation_groups]
  by_setup = [{_setup(e.result): e for e in reversed(es)} for es in lists]
  setups = [_setup(e.result) for e in (lists[0] if lists else ())]
  shared = [s for s in setups if all(s in known for known in by_setup)]
  if not shared:
    return [max(es, key=lambda e: len(e.evaluations)) for es in lists]
  found = [[known[setup] for known in by_setup] for setup in shared]
  return max(found, key=lambda es: sum(len(e.evaluations) for e in es))


def first_evaluations_with(
  run_groups: Sequence[RunGroup], name: str
) -> list[EvaluationGroup]:
  """Returns the first evaluation of each run group that has some data, if any.

  Those of `main_evaluations` come first. `name` is a field of the results, or
  'predictions'.
  """
  groups = main_evaluations(run_groups)
  groups += [e for g in run_groups for e in g.evaluation_groups]
  if name == 'predictions':
    groups = [e for e in groups if e.has_predictions]
  else:
    groups = [e for e in groups if e.result.get(name)]
  first = {e.number: e for e in reversed(groups)}
  return [first[number] for number in sorted(first)]


def differing_fields(run_groups: Sequence[RunGroup]) -> list[list]:
  """Returns the config fields that differ, with the value in each group."""
  configs = [_seedless(group.runs[0]) for group in run_groups]
  fields = sorted({field for config in configs for field in config})
  rows = [[f, *(config.get(f, '–') for config in configs)] for f in fields]
  return [row for row in rows if any(value != row[1] for value in row[1:])]


def _seedless(run: Run) -> dict:
  """Returns the config fields in which the runs of a group agree."""
  return {
    field: value
    for field, value in run.config.items()
    if not f'{field}.'.startswith(IGNORED_PREFIXES)
  }


def _setup(result: dict) -> str:
  cells = [[c[f] for f in CELL_FIELDS] for c in result.get('cells', ())]
  return json.dumps([[result.get(field) for field in SETUP_FIELDS], cells])


def _group_results(
  name: str, number: int, runs: Sequence[Run], kind: str
) -> list[EvaluationGroup]:
  """Groups the evaluations ('tasks') or grids ('grid') of the runs by setup."""
  items = [
    (_setup(e.result), seed, e)
    for seed, run in enumerate(runs)
    for e in run.evaluations
    if e.result['kind'] == kind
  ]
  groups = []
  for found in _group_unique(items):
    seeds = f'({len(runs)} ', f'({len(found)} of {len(runs)} '
    label = name if len(found) == len(runs) else name.replace(*seeds)
    results = [e.result for e in found]
    metric, arrays = primary_metric(results[0]), {}
    for field in ARRAYS:
      per_seed = [e.arrays.get(field, ()) for e in found]
      if num_tasks := min(map(len, per_seed)):
        arrays[field] = np.stack([array[:num_tasks] for array in per_seed])
    values = arrays[metric].mean(0) if metric in arrays else np.zeros(0)
    has_all = len(arrays) == len(ARRAYS)
    derived = results, results[0], metric, arrays, has_all, values
    groups.append(EvaluationGroup(label, number, found, *derived))
  return groups


def _group_unique(items: Iterable[tuple[str, object, T]]) -> list[list[T]]:
  """Groups (key, seed, item) by key, with distinct seeds within each group.

  The nth item of a key and a seed goes to the nth group of the key, so a second
  evaluation, such as that of an earlier checkpoint, joins the second ones of
  the other seeds.
  """
  groups: dict[tuple[str, int], list[T]] = {}
  counts: dict[tuple[str, object], int] = {}
  for key, seed, item in items:
    n = counts[key, seed] = counts.get((key, seed), -1) + 1
    groups.setdefault((key, n), []).append(item)
  return list(groups.values())


def _group_names(paths: list[list[pathlib.Path]]) -> list[str]:
  """Returns a unique name for each group of workdirs.

  It consists of as many trailing path components as necessary. Several seeds
  are named after the common prefix of their directories, without 'seed'.
  """
  parts = [group[0].resolve().parts for group in paths]
  depth, max_depth = 1, max(map(len, parts))
  while depth < max_depth and len({p[-depth:] for p in parts}) < len(parts):
    depth += 1
  names = ['/'.join(p[-depth:]) for p in parts]
  for i, group in enumerate(paths):
    if len(group) > 1:
      prefix = os.path.commonprefix([path.resolve().name for path in group])
      prefix = re.sub(r'[-_ ]*(seed)?[-_ ]*$', '', prefix)
      if prefix and prefix not in names:
        names[i] = prefix
      names[i] += f' ({len(group)} seeds)'
  return names
