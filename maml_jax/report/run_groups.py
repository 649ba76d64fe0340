"""Groups runs, and their evaluations, that differ only in the seed."""

import json
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from maml_jax.evaluation.statistics import mean_interval
from maml_jax.experiment.metrics import primary_metric
from maml_jax.experiment.run_dir import RESUME_IGNORED_FIELDS
from maml_jax.report.runs import CELL_FIELDS, Evaluation, Run

__all__ = [
  'EvaluationGroup',
  'RunGroup',
  'combine_seeds',
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
# Fields in which the evaluations of a group agree.
SETUP_FIELDS = (
  *('data', 'data_root', 'split', 'ways', 'shots'),
  *('queries', 'num_steps', 'norm', 'augment_support'),
)


class EvaluationGroup(NamedTuple):
  """Evaluations with the same setup, one per seed, of the runs of one group."""

  name: str  # of the run group, with the number of seeds
  number: int  # of the run group, which determines color and dashes
  evaluations: list[Evaluation]

  @property
  def result(self) -> dict:
    """The result of the first seed."""
    return self.evaluations[0].result

  @property
  def results(self) -> list[dict]:
    """The results of all seeds."""
    return [evaluation.result for evaluation in self.evaluations]

  @property
  def metric(self) -> str:
    """The primary metric: 'accuracy' or, for regression, 'loss'."""
    return primary_metric(self.result)

  @property
  def setup(self) -> str:
    """A string that is equal for evaluations with the same setup."""
    return _setup(self.result)

  @property
  def mean(self) -> tuple[float, float | None]:
    """The primary metric over all seeds with its interval."""
    return combine_seeds(self.results, self.metric)

  def average(self, name: str) -> float | None:
    """Returns the mean of a field over the seeds that have it, if any."""
    known = [r[name] for r in self.results if r.get(name) is not None]
    return sum(known) / len(known) if known else None

  def has(self, *names: str) -> bool:
    """Returns whether all seeds have these arrays."""
    arrays = [e.arrays.get(name) for e in self.evaluations for name in names]
    return all(array is not None and len(array) for array in arrays)

  @property
  def has_predictions(self) -> bool:
    """Whether all seeds have the prediction for every query image."""
    return self.has('predicted', 'classes', 'accuracy', 'loss')

  def array(self, name: str) -> np.ndarray:
    """Returns an array of all seeds, [seeds, T, ...]; T is the smallest."""
    found = [e.arrays[name] for e in self.evaluations]
    num_tasks = min(map(len, found))
    return np.stack([array[:num_tasks] for array in found])

  def task_means(self) -> np.ndarray:
    """Returns the primary metric of each task, averaged over seeds, [T]."""
    return self.array(self.metric).mean(0)


class RunGroup(NamedTuple):
  """Runs that differ only in the seed, one per seed."""

  name: str  # unique among the groups
  number: int  # index of the group, which determines color and dashes
  runs: list[Run]

  @property
  def path(self) -> pathlib.Path:
    """The workdir of the first run."""
    return self.runs[0].path

  @property
  def records(self) -> list[dict]:
    """The metrics of all runs."""
    return [record for run in self.runs for record in run.records]

  @property
  def saved(self) -> list[Evaluation]:
    """All evaluations and grids."""
    return [e for run in self.runs for e in (*run.evaluations, *run.grids)]

  @property
  def evaluation_groups(self) -> list[EvaluationGroup]:
    """The evaluations, grouped by setup, newest first."""
    return self._group([run.evaluations for run in self.runs])

  @property
  def grid_groups(self) -> list[EvaluationGroup]:
    """The grids, grouped by setup, newest first."""
    return self._group([run.grids for run in self.runs])

  def _group(self, lists: list[list[Evaluation]]) -> list[EvaluationGroup]:
    items = [
      (_setup(e.result), seed, e) for seed, es in enumerate(lists) for e in es
    ]
    groups, count = [], len(self.runs)
    for found in _group_unique(items):
      name = self.name
      if len(found) < count:
        name = name.replace(f'({count} ', f'({len(found)} of {count} ')
      groups.append(EvaluationGroup(name, self.number, found))
    return groups


def combine_seeds(
  results: Sequence[dict], field: str, interval: str = 'interval'
) -> tuple[float, float | None]:
  """Combines a number in the results of several seeds, and its interval.

  For one seed, the interval is over tasks and has the name `interval`; for
  several seeds, it is the t interval over seeds.
  """
  if len(results) == 1:
    return results[0][field], results[0].get(interval)
  return mean_interval([result[field] for result in results])


def group_runs(runs: Sequence[Run]) -> list[RunGroup]:
  """Groups runs that differ only in the seed.

  A second run with the same config and seed starts a new group.
  """

  def config_key(run):
    fields = {f: v for f, v in run.config.items() if not _is_ignored(f)}
    return json.dumps(fields, sort_keys=True) if fields else str(run.path)

  grouped = _group_unique([(config_key(r), r.seed, r) for r in runs])
  names = _group_names([[run.path for run in runs] for runs in grouped])
  return [
    RunGroup(name, number, sorted(runs, key=lambda run: run.seed or 0))
    for number, (name, runs) in enumerate(zip(names, grouped, strict=True))
  ]


def main_evaluations(run_groups: Sequence[RunGroup]) -> list[EvaluationGroup]:
  """Returns the evaluation of each run group that is shown in detail.

  If all run groups have evaluations with the same setup, it is the setup with
  the most seeds, otherwise the evaluation of each group with the most seeds;
  the newest one if several have the same number of seeds.
  """
  lists = [g.evaluation_groups for g in run_groups if g.evaluation_groups]
  by_setup = [{e.setup: e for e in reversed(groups)} for groups in lists]
  shared = [
    [known[e.setup] for known in by_setup]
    for e in (lists[0] if lists else ())
    if all(e.setup in known for known in by_setup)
  ]
  if shared:
    return max(shared, key=lambda es: sum(len(e.evaluations) for e in es))
  return [max(es, key=lambda e: len(e.evaluations)) for es in lists]


def first_evaluations_with(
  run_groups: Sequence[RunGroup], name: str
) -> list[EvaluationGroup]:
  """Returns the first evaluation of each run group that has some data, if any.

  Those of `main_evaluations` come first. `name` is a field of the results, or
  'predictions'.
  """
  groups = main_evaluations(run_groups)
  groups += [e for g in run_groups for e in g.evaluation_groups]
  found = {}
  for e in groups:
    if e.has_predictions if name == 'predictions' else e.result.get(name):
      found.setdefault(e.number, e)
  return [found[number] for number in sorted(found)]


def differing_fields(run_groups: Sequence[RunGroup]) -> list[list]:
  """Returns the config fields that differ, with the value in each group."""
  configs = [group.runs[0].config for group in run_groups]
  fields = sorted({f for c in configs for f in c if not _is_ignored(f)})
  rows = [[f, *(config.get(f, '–') for config in configs)] for f in fields]
  return [row for row in rows if any(value != row[1] for value in row[1:])]


def _is_ignored(field: str) -> bool:
  return f'{field}.'.startswith(IGNORED_PREFIXES)


def _setup(result: dict) -> str:
  cells = [[c[f] for f in CELL_FIELDS] for c in result.get('cells', ())]
  return json.dumps([[result.get(field) for field in SETUP_FIELDS], cells])


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
