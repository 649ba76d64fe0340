"""The parts of `studies.family` on disk: one JSON file for each.

A tuning has the fields
  rates, accuracy  the compared inner learning rates, and validation accuracies
  rate             the best rate
and a training with its evaluation
  rate, num_steps  inner learning rate and inner steps at test
  classes          number of classes in each split of the data set
  rows             name of the row -> protocol -> accuracy; `right` is the
                   number of right answers in each task, see `pack_counts`
  steps            inner steps at test -> transductive accuracy
and a timing, which needs an idle machine,
  seconds_per_iteration, megabytes
                   of a meta-iteration; temporary memory of each device
All have the settings, the duration in seconds, the commit, versions and the
machine.
"""

import base64
import json
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from benchmarks.machine import count_cores, processor_name
from maml_jax import default_config
from maml_jax.config import flatten
from maml_jax.evaluation import results
from maml_jax.utils.files import write_text
from studies.family_methods import METHODS, read_config, tuned_rates

__all__ = [
  'STAGES',
  'Cell',
  'Store',
  'make_cells',
  'pack_counts',
  'unpack_counts',
]

STAGES = ('tune', 'run', 'time')
# The training of a timing. The second epoch is timed, in which MAML++ has the
# loss that most of its training has.
TIMED = {
  'train.num_epochs': 2,
  'train.steps_per_epoch': 30,
  'val.num_tasks': 8,
}


class Cell(NamedTuple):
  """A part of the study.

  Attributes:
    dataset: name of the data set.
    method: a key of `METHODS`.
    seed: of the training; tuning and timing use 0.
    stage: 'tune'; 'run', a training and its evaluation; or 'time'.
  """

  dataset: str
  method: str
  seed: int
  stage: str

  @property
  def name(self) -> str:
    """The name of its file in --results, without the suffix."""
    last = f'seed{self.seed}' if self.stage == 'run' else self.stage
    return f'{self.dataset}-{self.method}-{last}'


class Store:
  """The cells on disk.

  Args:
    folder: of the JSON files.
    quick: whether the cells have the settings of --quick.
  """

  def __init__(self, folder: pathlib.Path, quick: bool):
    self.folder, self.quick = folder, quick

  def path(self, cell: Cell) -> pathlib.Path:
    """Returns the file of a cell."""
    return self.folder / f'{cell.name}.json'

  def read(self, cell: Cell) -> dict | None:
    """Returns a complete cell; None if it is missing or has other settings."""
    saved = results.read_result(self.path(cell))
    return saved if saved.get('settings') == self.settings(cell) else None

  def write(self, cell: Cell, result: dict) -> None:
    """Writes a complete cell with its settings and the machine."""
    result = {
      **cell._asdict(),
      'settings': self.settings(cell),
      **result,
      **results.provenance(),
      'processor': processor_name(),
      'cores': count_cores(),
    }
    self.folder.mkdir(parents=True, exist_ok=True)
    write_text(self.path(cell), json.dumps(result, indent=1) + '\n')

  def rate(self, cell: Cell) -> float | None:
    """Returns the tuned inner learning rate; None if there is none yet."""
    if not tuned_rates(cell.method):
      return None
    tuned = self.read(cell._replace(seed=0, stage='tune'))
    return tuned['rate'] if tuned else None

  def config(self, cell: Cell, rate: float | None):
    """Returns the config of a training of a cell."""
    config = read_config(*cell[:3], rate, quick=self.quick)
    if cell.stage == 'time':
      config.update_from_flattened_dict(TIMED)
    return config

  def settings(self, cell: Cell) -> dict:
    """Returns the config fields that are not at their defaults, as JSON."""
    defaults = flatten(default_config.get_config())
    rate = None if cell.stage == 'tune' else self.rate(cell)
    fields = flatten(self.config(cell, rate))
    changed = {k: v for k, v in fields.items() if v != defaults[k]}
    if cell.stage == 'tune':
      changed['rates'] = tuned_rates(cell.method, quick=self.quick)
    return json.loads(json.dumps(changed))


def make_cells(datasets, methods, seeds) -> Iterator[Cell]:
  """Yields all methods with one seed, then the next; last, the timings."""
  tuned = set()
  for seed in seeds:
    for dataset in datasets:
      for method in methods:
        if dataset not in METHODS[method].datasets:
          continue
        if tuned_rates(method) and (dataset, method) not in tuned:
          tuned.add((dataset, method))
          yield Cell(dataset, method, 0, 'tune')
        yield Cell(dataset, method, seed, 'run')
  for dataset in datasets:
    for method in methods:
      if dataset in METHODS[method].datasets:
        yield Cell(dataset, method, 0, 'time')


def pack_counts(counts: np.ndarray) -> str:
  """Encodes numbers 0..255 as text."""
  return base64.b85encode(counts.astype(np.uint8).tobytes()).decode()


def unpack_counts(text: str) -> np.ndarray:
  """Decodes the numbers of `pack_counts`."""
  return np.frombuffer(base64.b85decode(text), np.uint8)
