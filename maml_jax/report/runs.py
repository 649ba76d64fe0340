"""What lies in workdirs, read and put in order for the page.

Nothing that is missing, older or damaged is an error here, but a directory that
is no run at all.
"""

import json
import os
import pathlib
import re
import zipfile
import zlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from maml_jax import config as config_lib
from maml_jax.experiment import metrics, metrics_log
from maml_jax.experiment.run_dir import RESUME_IGNORED_FIELDS
from maml_jax.utils.errors import UserError

# What runs that are drawn as one may differ in.
SEED_IGNORED_FIELDS = (
  'seed',
  *(field for field in RESUME_IGNORED_FIELDS if 'epochs' not in field),
)
RECORD_FIELDS = {'step', 'split', 'loss'}
CELL_FIELDS = (
  'norm',
  'queries',
  'num_steps',
)  # what sets cells of a grid apart
TASK_FIELDS = ('data', 'split', 'ways', 'shots', 'num_tasks')
REQUIRED_FIELDS = {
  'tasks': {*TASK_FIELDS, *CELL_FIELDS, 'loss', 'transductive'},
  'grid': {*TASK_FIELDS, 'cells'},
}
SETUP_FIELDS = (
  'data',
  'split',
  'ways',
  'shots',
  'queries',
  'num_steps',
  'norm',
  'augment_support',
)


class Evaluation(NamedTuple):
  """What WORKDIR/eval/NAME.json and NAME.npz hold.

  Attributes:
    path: of the JSON file.
    facts: what it holds; fields of later versions may be missing.
    arrays: of the NPZ file; {} if there is none.
  """

  path: pathlib.Path
  facts: dict
  arrays: dict[str, np.ndarray]

  @property
  def score(self) -> str:
    """What counts: 'accuracy' or, in regression, 'loss'."""
    return metrics.primary_metric(self.facts)


class Run(NamedTuple):
  """One workdir.

  Attributes:
    path: of the directory.
    seed: of the training.
    config: its fields, {'task.ways': 5, ...}; {} if it is not known.
    records: of `metrics.jsonl`.
    evaluations: of kind 'tasks', newest first.
    grids: of kind 'grid', newest first.
    notes: a line for each file that cannot be read.
  """

  path: pathlib.Path
  seed: int | None
  config: dict
  records: list[dict]
  evaluations: list[Evaluation]
  grids: list[Evaluation]
  notes: list[str]


class EvaluationGroup(NamedTuple):
  """One kind of evaluation, of runs that differ in their seed alone.

  Attributes:
    name: of the runs.
    number: of the group, which decides colour and dashes.
    evaluations: one for each seed.
  """

  name: str
  number: int
  evaluations: list[Evaluation]

  @property
  def facts(self) -> dict:
    """Those of the first seed."""
    return self.evaluations[0].facts

  @property
  def score(self) -> str:
    return self.evaluations[0].score

  def array(self, name: str) -> np.ndarray | None:
    """An array of all seeds: [seeds, T, ...]; None if one has no such.

    T is that of the seed with the fewest tasks.
    """
    found = [e.arrays.get(name) for e in self.evaluations]
    if any(array is None or not len(array) for array in found):
      return None
    least = min(map(len, found))
    return np.stack([array[:least] for array in found])


class RunGroup(NamedTuple):
  """Runs that differ in their seed alone.

  Attributes:
    name: unlike that of any other group.
    number: of the group, which decides its colour.
    runs: one for each seed.
  """

  name: str
  number: int
  runs: list[Run]

  @property
  def path(self) -> pathlib.Path:
    """The first workdir, to be named in commands."""
    return self.runs[0].path

  @property
  def measured(self) -> list[EvaluationGroup]:
    """The evaluations, newest first; those of the same kind are one."""
    return self._by_kind(run.evaluations for run in self.runs)

  @property
  def grids(self) -> list[EvaluationGroup]:
    """Likewise."""
    return self._by_kind(run.grids for run in self.runs)

  def _by_kind(
    self, lists: Iterable[list[Evaluation]]
  ) -> list[EvaluationGroup]:
    kinds = []
    for kind in _by_kind(lists):
      name, count = self.name, len(self.runs)
      if len(kind) < count:
        name = name.replace(f'({count} ', f'({len(kind)} of {count} ')
      kinds.append(EvaluationGroup(name, self.number, kind))
    return kinds


def read_run(workdir: str | os.PathLike) -> Run:
  """Reads one workdir.

  Raises:
    UserError: it is no directory, or holds neither metrics nor evaluations.
  """
  path, notes = pathlib.Path(workdir), []
  if not path.is_dir():
    raise UserError(f'no such workdir: {path}')
  files = sorted(
    path.glob('eval/*.json'), key=lambda f: (-f.stat().st_mtime, f.name)
  )
  found = [e for file in files if (e := _evaluation(file, notes))]
  records = [
    r
    for r in metrics_log.read_records(path)
    if isinstance(r, dict) and RECORD_FIELDS <= r.keys()
  ]
  if not found and not records:
    raise UserError(
      f'no run in {path}: it holds neither {metrics_log.METRICS_FILE} nor eval/*.json'
    )
  config = _config(path, found)
  seed = config.get('seed', found[0].facts.get('seed') if found else None)
  grids = [e for e in found if e.facts['kind'] == 'grid']
  tasks = [e for e in found if e.facts['kind'] == 'tasks']
  return Run(path, seed, config, records, tasks, grids, notes)


def group_runs(runs: Sequence[Run]) -> list[RunGroup]:
  """Puts runs together that differ in their seed alone.

  A run of the same config and the same seed as another is no second seed.
  """

  def course(run):
    fields = {f: v for f, v in run.config.items() if not _may_differ(f)}
    return json.dumps(fields, sort_keys=True) if fields else str(run.path)

  grouped = _by_occurrence(runs, course, lambda run: (course(run), run.seed))
  names = _names([[run.path for run in runs] for runs in grouped])
  return [
    RunGroup(name, number, sorted(runs, key=lambda run: run.seed or 0))
    for number, (name, runs) in enumerate(zip(names, grouped, strict=True))
  ]


def main_evaluations(groups: Sequence[RunGroup]) -> list[EvaluationGroup]:
  """The evaluation of each group that is shown at length.

  Of the kinds that every group has, the one with the most seeds, else the
  newest; without any, likewise for each group on its own.
  """
  lists = [group.measured for group in groups if group.measured]
  kinds = [{_kind(m.evaluations[0]): m for m in found[::-1]} for found in lists]
  shared = [
    [known[kind] for known in kinds]
    for kind in (_kind(m.evaluations[0]) for m in (lists[0] if lists else ()))
    if all(kind in known for known in kinds)
  ]
  if shared:
    return max(shared, key=lambda ms: sum(len(m.evaluations) for m in ms))
  return [max(found, key=lambda m: len(m.evaluations)) for found in lists]


def first_evaluations_with(
  groups: Sequence[RunGroup], has: Callable[[EvaluationGroup], bool]
) -> dict[int, EvaluationGroup]:
  """The first evaluation of each group that has something, if any does.

  Those of `chosen` go first. The keys are the numbers of the groups.
  """
  main = {m.number: m for m in main_evaluations(groups)}
  found = {}
  for group in groups:
    kept = [main[group.number]] if group.number in main else []
    found[group.number] = next(filter(has, kept + group.measured), None)
  return {number: m for number, m in found.items() if m}


def has_predictions(measured: EvaluationGroup) -> bool:
  """Whether it is known what every single query image was taken for."""
  needed = ('predicted', 'classes', 'accuracy', 'loss')
  return all(measured.array(name) is not None for name in needed)


def differing_fields(groups: Sequence[RunGroup]) -> dict[str, list]:
  """The fields that differ among groups, with the value in each."""
  configs = [group.runs[0].config for group in groups]
  fields = sorted({field for config in configs for field in config})
  rows = {
    field: [config.get(field, '–') for config in configs]
    for field in fields
    if not _may_differ(field)
  }
  return {
    field: values
    for field, values in rows.items()
    if any(value != values[0] for value in values)
  }


def _may_differ(field: str) -> bool:
  return any(f'{field}.'.startswith(f'{part}.') for part in SEED_IGNORED_FIELDS)


def _by_kind(lists: Iterable[list[Evaluation]]) -> list[list[Evaluation]]:
  """Puts evaluations of several seeds together that measure the same.

  Args:
    lists: of each seed, newest first. A kind that comes twice in a list, such
      as of an earlier checkpoint, goes with the second of the others.
  """
  numbered = [(i, e) for i, found in enumerate(lists) for e in found]
  grouped = _by_occurrence(
    numbered, lambda pair: _kind(pair[1]), lambda p: (p[0], _kind(p[1]))
  )
  return [[evaluation for _, evaluation in pairs] for pairs in grouped]


def _kind(evaluation: Evaluation) -> str:
  """What evaluations of several seeds must have in common."""
  facts = evaluation.facts
  cells = [[c[f] for f in CELL_FIELDS] for c in facts.get('cells', ())]
  return json.dumps([[facts.get(field) for field in SETUP_FIELDS], cells])


def _evaluation(file: pathlib.Path, notes: list[str]) -> Evaluation | None:
  """Reads one; says in `notes` what cannot be read."""
  try:
    facts = json.loads(file.read_text())
    facts = {'kind': 'tasks'} | facts
    if (
      not REQUIRED_FIELDS[facts['kind']] <= facts.keys()
      or facts.get('cells') == []
    ):
      raise ValueError('fields are missing')
    if facts['kind'] == 'grid':  # a single cell has these
      facts = {k: v for k, v in facts.items() if k not in CELL_FIELDS}
  except (OSError, ValueError, TypeError, KeyError) as error:
    notes.append(
      f'{file} is passed over, for it is damaged or of another version: {error}'
    )
    return None
  tables = file.with_suffix('.npz')
  try:
    # Of a damaged file, NumPy would leave its own open.
    with tables.open('rb') as opened, np.load(opened) as arrays:
      return Evaluation(file, facts, dict(arrays))
  except FileNotFoundError:
    notes.append(f'{tables} is missing: no figures of single tasks')
  except (
    OSError,
    ValueError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
  ) as error:
    notes.append(f'{tables} cannot be read: {error}')
  return Evaluation(file, facts, {})


def _config(path: pathlib.Path, found: Sequence[Evaluation]) -> dict:
  """The config of a run, or that of its checkpoint that was measured."""
  texts = [json.dumps(e.facts['config']) for e in found if 'config' in e.facts]
  file = path / 'config.json'
  if file.is_file():
    texts.insert(0, file.read_text(errors='replace'))
  for text in texts:
    try:
      return config_lib.flatten(config_lib.from_json(text))
    except (ValueError, TypeError, AttributeError):
      continue
  return {}


def _by_occurrence(
  items: Iterable, key: Callable, unique: Callable
) -> list[list]:
  """Puts items of one key together, no two of them with one `unique`.

  The nth item of a `unique` goes to the nth list of its key.
  """
  lists: dict[Hashable, list] = {}
  counts: dict[Hashable, int] = {}
  for item in items:
    number = counts[unique(item)] = counts.get(unique(item), -1) + 1
    lists.setdefault((key(item), number), []).append(item)
  return list(lists.values())


def _names(paths: list[list[pathlib.Path]]) -> list[str]:
  """A name for each group: of directories, as many levels as it takes.

  That of several seeds is what their names begin with, without 'seed'.
  """
  parts = [group[0].resolve().parts for group in paths]
  depth, most = 1, max(map(len, parts))
  while depth < most and len({p[-depth:] for p in parts}) < len(parts):
    depth += 1
  names = ['/'.join(p[-depth:]) for p in parts]
  for i, group in enumerate(paths):
    if len(group) > 1:
      begin = os.path.commonprefix([path.resolve().name for path in group])
      begin = re.sub(r'[-_ ]*(seed)?[-_ ]*$', '', begin)
      if begin and begin not in names:
        names[i] = begin
      names[i] += f' ({len(group)} seeds)'
  return names
