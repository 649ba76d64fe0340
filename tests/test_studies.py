"""Tests of the precision study, with stand-ins for its trainings."""

import json

import numpy as np
import pytest

from maml_jax import train
from maml_jax.evaluation.statistics import mean_interval
from maml_jax.experiment import setup
from studies import precision

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
