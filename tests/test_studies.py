"""The arithmetic of the studies; what they train is tested elsewhere."""

import json

import numpy as np

from maml_jax.evaluation.statistics import mean_interval
from maml_jax.experiment import setup
from studies import precision

FLAGS = '--seeds 3 4 --iterations 7 --num_tasks 5 --config.task.queries=2'


def test_precisions_are_compared_task_by_task_and_over_seeds(
  monkeypatch, tmp_path, capsys
):
  def accuracies(config, workdir):
    assert config.train.num_epochs * config.train.steps_per_epoch == 7
    assert config.task.queries == 2
    assert workdir.name == f'{config.precision}-seed{config.seed}-7'
    tasks = np.random.RandomState(0).rand(config.eval.num_tasks)
    worse = list(setup.PRECISIONS).index(config.precision)
    return tasks / 2 - worse * np.arange(5) * config.seed / 1000

  monkeypatch.setattr(precision, 'accuracies', accuracies)
  file = tmp_path / 'rows.jsonl'
  precision.main([*FLAGS.split(), f'--json={file}'])
  rows = [json.loads(line) for line in file.read_text().splitlines()]
  assert len(rows) == 9 and 'difference' not in rows[0]
  by_name = {(row['precision'], row['seed']): row for row in rows}
  one = by_name['bfloat16', 4]
  np.testing.assert_allclose(
    (one['difference'], one['difference_interval']),
    mean_interval(-2 * np.arange(5) * 4 / 1000),
  )
  both = by_name['bfloat16', 'all']
  np.testing.assert_allclose(
    (both['difference'], both['difference_interval']),
    mean_interval([-2 * 2 * 3 / 1000, -2 * 2 * 4 / 1000]),
  )
  assert '-1.40 +-' in capsys.readouterr().out
