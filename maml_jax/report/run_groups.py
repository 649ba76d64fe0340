"""Groups runs, and their evaluations, that differ only in the seed."""

import json
import os
import pathlib
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from maml_jax.experiment.run_dir import RESUME_IGNORED_FIELDS
from maml_jax.report.runs import CELL_FIELDS, Evaluation, Run

__all__ = [
  'EvaluationGroup',
  'RunGroup',
  'differing_fields',
  'first_evaluations_with',
  'group_runs',
  'has_predictions',
  'main_evaluations',
]

# Config fields in which the runs of a group may differ.
SEED_IGNORED_FIELDS = (
  'seed',
  *(field for field in RESUME_IGNORED_FIELDS if 'epochs' not in field),
)
# Fields in which the evaluations of a group agree.
SETUP_FIELDS = (
  'data',
  'data_root',
  'split',
  'ways',
  'shots',
  'queries',
  'num_steps',
  'norm',
  'augment_support',
)


class EvaluationGroup(NamedTuple):
  """Evaluations with the same setup, of the runs of one group.

  Attributes:
    name: the name of the run group, with the number of seeds.
    number: the number of the run group, which determines color and dashes.
    evaluations: one per seed.
  """

  name: str
  number: int
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
    return self.evaluations[0].metric

  def has(self, name: str) -> bool:
    """Returns whether all seeds have an array."""
    found = [e.arrays.get(name) for e in self.evaluations]
    return all(array is not None and len(array) for array in found)

  def array(self, name: str) -> np.ndarray:
    """Returns an array that all seeds have, [seeds, T, ...].

    T is the smallest number of tasks of any seed.
    """
    found = [e.arrays[name] for e in self.evaluations]
    num_tasks = min(map(len, found))
    return np.stack([array[:num_tasks] for array in found])


class RunGroup(NamedTuple):
  """Runs that differ only in the seed.

  Attributes:
    name: unique among the groups.
    number: index of the group, which determines its color.
    runs: one per seed.
  """

  name: str
  number: int
  runs: list[Run]

  @property
  def path(self) -> pathlib.Path:
    """The workdir of the first run."""
    return self.runs[0].path

  @property
  def evaluation_groups(self) -> list[EvaluationGroup]:
    """The evaluations, grouped by setup, newest first."""
    return self._group(run.evaluations for run in self.runs)

  @property
  def grid_groups(self) -> list[EvaluationGroup]:
    """The grids, grouped by setup, newest first."""
    return self._group(run.grids for run in self.runs)

  def _group(self, lists: Iterable[list[Evaluation]]) -> list[EvaluationGroup]:
    groups = []
    for evaluations in _group_evaluations(lists):
      name, count = self.name, len(self.runs)
      if len(evaluations) < count:
        name = name.replace(f'({count} ', f'({len(evaluations)} of {count} ')
      groups.append(EvaluationGroup(name, self.number, evaluations))
    return groups


def group_runs(runs: Sequence[Run]) -> list[RunGroup]:
  """Groups runs that differ only in the seed.

  A second run with the same config and seed starts a new group.
  """

  def config_key(run):
    fields = {f: v for f, v in run.config.items() if not _is_ignored(f)}
    return json.dumps(fields, sort_keys=True) if fields else str(run.path)

  grouped = _group_unique(
    runs, config_key, lambda run: (config_key(run), run.seed)
  )
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
  by_setup = [
    {_setup_key(e.evaluations[0]): e for e in reversed(groups)}
    for groups in lists
  ]
  setups = [_setup_key(e.evaluations[0]) for e in (lists[0] if lists else ())]
  shared = [
    [known[setup] for known in by_setup]
    for setup in setups
    if all(setup in known for known in by_setup)
  ]
  if shared:
    return max(shared, key=lambda es: sum(len(e.evaluations) for e in es))
  return [max(found, key=lambda e: len(e.evaluations)) for found in lists]


def first_evaluations_with(
  run_groups: Sequence[RunGroup], predicate: Callable[[EvaluationGroup], bool]
) -> dict[int, EvaluationGroup]:
  """Returns the first evaluation of each run group that satisfies a predicate.

  Those of `main_evaluations` come first. The keys are the numbers of the run
  groups; run groups without such an evaluation are omitted.
  """
  main = {e.number: e for e in main_evaluations(run_groups)}
  found = {}
  for group in run_groups:
    first = [main[group.number]] if group.number in main else []
    candidates = first + group.evaluation_groups
    found[group.number] = next(filter(predicate, candidates), None)
  return {number: e for number, e in found.items() if e}


def has_predictions(group: EvaluationGroup) -> bool:
  """Returns whether the prediction for every query image is known."""
  required = ('predicted', 'classes', 'accuracy', 'loss')
  return all(group.has(name) for name in required)


def differing_fields(run_groups: Sequence[RunGroup]) -> dict[str, list]:
  """Returns the config fields that differ, with the value in each group."""
  configs = [group.runs[0].config for group in run_groups]
  fields = sorted({field for config in configs for field in config})
  rows = {
    field: [config.get(field, '–') for config in configs]
    for field in fields
    if not _is_ignored(field)
  }
  return {
    field: values
    for field, values in rows.items()
    if any(value != values[0] for value in values)
  }


def _is_ignored(field: str) -> bool:
  return any(
    f'{field}.'.startswith(f'{prefix}.') for prefix in SEED_IGNORED_FIELDS
  )


def _group_evaluations(
  lists: Iterable[list[Evaluation]],
) -> list[list[Evaluation]]:
  """Groups the evaluations of several seeds by setup.

  Args:
    lists: the evaluations of each seed, newest first. The second evaluation of
      a seed with the same setup, such as that of an earlier checkpoint, is
      grouped with the second ones of the other seeds.
  """
  pairs = [(i, e) for i, found in enumerate(lists) for e in found]
  grouped = _group_unique(
    pairs,
    lambda pair: _setup_key(pair[1]),
    lambda pair: (pair[0], _setup_key(pair[1])),
  )
  return [[evaluation for _, evaluation in group] for group in grouped]


def _setup_key(evaluation: Evaluation) -> str:
  """Returns a string that is equal for evaluations with the same setup."""
  result = evaluation.result
  cells = [[c[f] for f in CELL_FIELDS] for c in result.get('cells', ())]
  return json.dumps([[result.get(field) for field in SETUP_FIELDS], cells])


def _group_unique(
  items: Iterable, key: Callable, unique_key: Callable
) -> list[list]:
  """Groups items by `key`, with distinct unique keys within each group.

  The nth item of a unique key goes to the nth group of its key.
  """
  groups: dict[Hashable, list] = {}
  counts: dict[Hashable, int] = {}
  for item in items:
    n = counts[unique_key(item)] = counts.get(unique_key(item), -1) + 1
    groups.setdefault((key(item), n), []).append(item)
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
