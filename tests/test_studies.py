"""Tests of studies, with stand-ins for trainings and checkpoints."""

import json

import numpy as np
import pytest

from maml_jax import train
from maml_jax.evaluation.statistics import mean_interval
from maml_jax.experiment import setup
from maml_jax.types import Dataset
from studies import family, family_tables, own_images, precision
from studies.family_cells import Cell, Store, make_cells, pack_counts
from studies.family_methods import METHODS, read_config

FLAGS = '--seeds 3 4 --iterations 7 --num_tasks 5 --config.task.queries=2'


def test_differences_are_paired_over_tasks_and_over_seeds(
  monkeypatch, tmp_path, capsys
):
  def measure_accuracies(config, workdir):
    assert config.train.num_epochs * config.train.steps_per_epoch == 7
    assert config.task.queries == 2
    assert workdir.name == f'{config.precision}-seed{config.seed}-7'
    tasks = np.random.RandomState(0).rand(config.eval.num_tasks)
    loss = list(setup.PRECISIONS).index(config.precision)
    return tasks / 2 - loss * np.arange(5) * config.seed / 1000

  monkeypatch.setattr(precision, 'measure_accuracies', measure_accuracies)
  file = tmp_path / 'rows.jsonl'
  precision.main([*FLAGS.split(), f'--json={file}'])
  rows = [json.loads(line) for line in file.read_text().splitlines()]
  assert len(rows) == 9
  assert 'difference' not in rows[0]
  by_name = {(row['precision'], row['seed']): row for row in rows}
  seed4 = by_name['bfloat16', 4]
  np.testing.assert_allclose(
    (seed4['difference'], seed4['difference_interval']),
    mean_interval(-2 * np.arange(5) * 4 / 1000),
  )
  all_seeds = by_name['bfloat16', 'all']
  np.testing.assert_allclose(
    (all_seeds['difference'], all_seeds['difference_interval']),
    mean_interval([-2 * 2 * 3 / 1000, -2 * 2 * 4 / 1000]),
  )
  assert '-1.40 +-' in capsys.readouterr().out


def test_jax_is_configured_before_training(monkeypatch, tmp_path):
  class Trained(Exception):
    """Ends the study at its first training."""

  def train_once(config, workdir):
    raise Trained

  calls = []
  monkeypatch.setattr(setup, 'configure_jax', calls.append)
  monkeypatch.setattr(train, 'train', train_once)
  with pytest.raises(Trained):
    precision.main([*FLAGS.split(), f'--workdir={tmp_path}'])
  assert [config.seed for config in calls] == [3]


def test_own_images_are_disjoint_and_scored_per_draw(monkeypatch):
  """With a classifier that knows the class of every image but one in four."""
  index = np.arange(8 * 30).reshape(8, 30)
  images = np.zeros((240, 2, 1, 1), np.uint8)
  images[:, 0, 0, 0] = np.arange(240)
  dataset = Dataset(images, index, np.full(8, 30))

  class Learner:
    def fit(self, support, labels):
      rows = support[:, 0, 0, 0]
      np.testing.assert_array_equal(labels, rows // 30)
      self.support = rows
      return self

    def predict(self, query):
      rows = query[:, 0, 0, 0]
      assert not set(rows) & set(self.support)
      assert len(set(rows)) == 75 and len(set(self.support)) == 25
      return np.where(np.arange(75) % 4 == 0, -1, np.int32(rows // 30))

  monkeypatch.setattr(own_images.maml_jax, 'load', lambda path: Learner())
  values = list(own_images.measure('checkpoint', dataset, range(3)))
  assert values == [56 / 75] * 3
  first, second = (own_images.draw(dataset, seed)[2] for seed in (0, 1))
  assert first.tolist() != second.tolist()


def make_cell(method, seed, right, **fields):
  """Returns a cell of `studies.family`; `right` are counts of 10 queries."""
  row = {
    'norm': 'batch',
    'accuracy': 0.0,
    'interval': 0.0,
    'queries': 10,
    'right': pack_counts(np.array(right)),
    'before': 0.05,
  }
  result = {
    'rate': 0.1,
    'num_steps': 5,
    'classes': {'train': 60, 'val': 20, 'test': 30},
    'rows': {method: {'transductive': row, 'inductive': row}},
    'steps': {'0': 0.05, '5': 0.5},
    'seconds': 100.0,
    'commit': 'abc',
    'jax': '0.10',
    'processor': 'CPU',
    'cores': 2,
  }
  return Cell('glyphs', method, seed, 'run'), result | fields


def test_family_differences_are_paired_over_tasks_and_over_seeds():
  cells = dict(
    [
      make_cell('maml', 0, [1, 4, 7, 9]),
      make_cell('maml', 1, [2, 4, 8, 8]),
      make_cell('anil', 0, [2, 5, 9, 10]),
      make_cell('anil', 1, [2, 5, 9, 8]),
      make_cell('anil', 2, [10, 10, 10, 10]),
    ]
  )
  rows = family_tables.make_rows(cells, 'glyphs')
  assert [row.name for row in rows] == ['anil', 'maml']
  found = family_tables.difference(rows[0], 'inductive')
  assert found is not None
  over_tasks = mean_interval(np.array([0.5, 1, 1.5, 0.5]) / 10)
  over_seeds = mean_interval(np.array([1.25, 0.5]) / 10)
  np.testing.assert_allclose(found, (*over_tasks, over_seeds[1]))


def test_family_tables_state_missing_cells():
  missing = Cell('glyphs', 'maml', 1, 'run')
  cells = dict([make_cell('maml', 0, [5, 5, 5])]) | {missing: None}
  timing = {'seconds_per_iteration': 0.25, 'megabytes': 12.3}
  _, result = make_cell('maml', 0, [5], **timing)
  cells[Cell('glyphs', 'maml', 0, 'time')] = result
  text = family_tables.markdown(cells)
  line = '| MAML | 0.1 | 5 | 50.0 ± 0.0 |  | 50.0 ± 0.0 |  | 5.0 | 0.25 | 12 |'
  assert line in text
  assert text.endswith('missing: glyphs-maml-seed1.')


def test_family_methods_share_encoder_tasks_and_iterations():
  shared = {}
  for cell in make_cells(['glyphs'], METHODS, [0]):
    if cell.stage == 'run':
      config = read_config(cell.dataset, cell.method, cell.seed, 0.2)
      shared[cell.method] = (
        config.model.encoder,
        config.task.ways,
        config.task.shots + config.task.queries,
        (config.eval.ways, config.eval.shots, config.eval.queries),
        config.train.meta_batch_size,
        config.train.num_epochs * config.train.steps_per_epoch,
      )
  assert len(shared) == len(METHODS) - 1  # one is for Omniglot only
  assert set(shared.values()) == {('convnet4', 20, 6, (20, 1, 5), 4, 500)}


def test_family_cells_are_breadth_first_and_tuned_once():
  cells = list(
    make_cells(['glyphs', 'omniglot'], ['maml', 'proto_net'], [0, 1])
  )
  assert [cell.name for cell in cells[:4]] == [
    'glyphs-maml-tune',
    'glyphs-maml-seed0',
    'glyphs-proto_net-seed0',
    'omniglot-maml-tune',
  ]
  assert [cell.name for cell in cells[6:8]] == [
    'glyphs-maml-seed1',
    'glyphs-proto_net-seed1',
  ]
  assert cells[-1].name == 'omniglot-proto_net-time'


def test_family_cells_of_other_settings_are_missing(tmp_path):
  store = Store(tmp_path, quick=True)
  cell = Cell('glyphs', 'maml', 0, 'tune')
  store.write(cell, {'rate': 0.1, 'seconds': 1.0})
  assert store.read(cell)
  run = cell._replace(stage='run')
  store.write(run, {'seconds': 2.0})
  assert store.read(run)
  store.write(cell, {'rate': 0.4, 'seconds': 1.0})
  assert store.read(run) is None
  assert Store(tmp_path, quick=False).read(cell) is None


@pytest.mark.slow
def test_family_runs_resumes_and_draws(monkeypatch, tmp_path, capsys):
  flags = ['--quick', f'--workdir={tmp_path}', '--only', 'maml', 'pretrain']
  assert family.main(flags) == 0
  assert 'Pre-trained, SimpleShot' in capsys.readouterr().out
  figure = tmp_path / 'quick' / 'family.png'
  assert figure.read_bytes().startswith(b'\x89PNG')
  monkeypatch.setattr(family, 'run_cell', None)
  assert family.main(flags) == 0
