"""Tests of studies, with stand-ins for trainings and checkpoints."""

import json

import numpy as np
import pytest

from maml_jax import train
from maml_jax.evaluation.statistics import mean_interval
from maml_jax.experiment import setup
from maml_jax.types import Dataset
from studies import own_images, precision

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
