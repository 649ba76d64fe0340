"""Tests of the findings study, with stand-ins for its trainings."""

import argparse
import json

import numpy as np
import pytest
from markupsafe import escape

from maml_jax import config as config_lib
from maml_jax import train
from maml_jax.evaluation import evaluate, sweep
from maml_jax.evaluation.statistics import mean_interval
from maml_jax.experiment import setup
from maml_jax.report import page
from studies import findings


def make_args(scale):
  return argparse.Namespace(scale=scale, num_tasks=None, many_tasks=None)


@pytest.mark.parametrize('scale', findings.SCALES)
def test_runs_differ_only_in_their_own_fields(scale):
  args = make_args(scale)
  base = findings.read_config(args, [], 'second_order', 0)
  for name, fields in findings.RUNS.items():
    config = findings.read_config(args, [], name, 0)
    different = {
      line.partition(':')[0]
      for line in config_lib.config_differences(base, config)
    }
    assert different - {'eval.norm'} == fields.keys()


def make_measurements(seeds=1, many=6000):
  """Accuracies with known differences, and shared variation over tasks."""
  measured = []
  for seed in range(seeds):
    rng = np.random.default_rng(seed)
    shared = rng.normal(0.6, 0.1, 600)
    run_loss = {
      'second_order': 0,
      'first_order': 0.001,
      'second_order_inductive': 0.04,
      'first_order_inductive': 0.3,
      'frozen_encoder': -0.02,
    }
    cell_loss = {
      ('batch', 1): 0,
      ('batch', 5): 0.015,
      ('batch', 15): 0.025,
      ('episodic', 15): 0.07,
      ('cumulative', 15): 0.025,
      ('support', 15): 0.065,
    }
    runs, cells = (
      {key: shared - x + rng.normal(0, 0.01, 600) for key, x in losses.items()}
      for losses in (run_loss, cell_loss)
    )
    many_tasks = rng.normal(0.6, 0.1, many)
    measured.append(findings.Measurements(runs, cells, many_tasks, 1.0))
  return measured


@pytest.mark.parametrize('seeds', [1, 3])
def test_verdicts_match_the_differences(seeds):
  found = findings.findings(make_measurements(seeds))
  verdicts = [(f.claim[:3], f.verdict.partition(':')[0]) for f in found]
  assert verdicts == [
    ('(1)', 'holds'),
    ('(1)', 'holds'),
    ('(2)', 'does not hold'),
    ('(3)', 'holds'),
    ('(3)', 'inconclusive'),
    ('(3)', 'holds'),
    ('(3)', 'holds'),
    ('(4)', 'holds'),
    ('(4)', 'holds'),
    ('(5)', 'does not hold'),
  ]
  np.testing.assert_allclose(found[1].numbers['difference'], -0.025, atol=2e-3)
  assert '-2.' in found[1].measured
  for f in found:
    assert 'transductive' in f.measured or 'inductive' in f.measured
    assert 'quer' in f.measured


def test_difference_of_one_seed_is_paired_over_tasks():
  (m,) = make_measurements()
  pair = m.cells['batch', 1], m.cells['batch', 5]
  numbers = findings.compare([pair])
  expected = mean_interval(pair[1] - pair[0])
  assert (numbers['difference'], numbers['interval']) == expected


def test_difference_of_several_seeds_is_over_seeds():
  measured = make_measurements(seeds=3)
  pairs = [(m.cells['batch', 1], m.cells['batch', 5]) for m in measured]
  numbers = findings.compare(pairs)
  np.testing.assert_allclose(
    (numbers['difference'], numbers['interval']),
    mean_interval([b.mean() - a.mean() for a, b in pairs]),
  )
  assert numbers['seeds'] == 3


def test_higher_accuracy_of_first_tasks_beyond_random_variation():
  (m,) = make_measurements()
  m.many[:600] += 0.04
  found = findings.findings([m])[2]
  assert found.verdict == 'holds: the difference exceeds random variation'
  margin = 1.96 * m.many.std(ddof=1) * (1 / 600 - 1 / 6000) ** 0.5
  assert found.numbers['margin'] == pytest.approx(margin, rel=1e-3)
  assert f'= ± {100 * margin:.2f} points' in found.measured


@pytest.mark.parametrize(
  'difference, interval, verdict',
  [
    (-0.015, 0.001, 'holds: the interval is below 0'),
    (
      -0.005,
      0.001,
      'holds: the interval is below 0; the difference is less than 1.5',
    ),
    (
      -0.025,
      0.001,
      'holds: the interval is below 0; the difference is more than 1.5',
    ),
    (0.005, 0.001, 'does not hold: it is higher'),
    (-0.015, 0.02, 'inconclusive'),
  ],
)
def test_judge_lower(difference, interval, verdict):
  numbers = {'difference': difference, 'interval': interval}
  assert findings.judge_lower(numbers, 1.5).startswith(verdict)
  assert ';' not in findings.judge_lower(numbers)


@pytest.mark.parametrize(
  'difference, interval, verdict',
  [
    (0.0, 0.009, 'holds'),
    (-0.004, 0.004, 'holds'),
    (-0.02, 0.01, 'does not hold: it is lower'),
    (0.02, 0.01, 'does not hold: it is higher'),
    (0.005, 0.02, 'inconclusive'),
  ],
)
def test_judge_equal_allows_one_point(difference, interval, verdict):
  numbers = {'difference': difference, 'interval': interval}
  assert findings.judge_equal(numbers).startswith(verdict)


def save_accuracies(workdir, name, accuracy):
  path = workdir / 'eval' / f'{name}.npz'
  path.parent.mkdir(parents=True, exist_ok=True)
  np.savez(path, accuracy=accuracy)


@pytest.fixture
def calls(monkeypatch):
  """Replaces training, evaluation and report; returns the calls of each."""
  calls = {'configure': [], 'train': [], 'report': []}
  rng = np.random.default_rng(0)

  def fake_train(config, workdir):
    assert len(calls['configure']) > len(calls['train'])
    calls['train'].append(workdir.name)
    return 0

  def fake_evaluate(config, workdir, overwrite):
    num_tasks = config.eval.num_tasks
    accuracy = rng.uniform(size=num_tasks).astype(np.float32)
    name = f'tasks{num_tasks}'
    save_accuracies(workdir, name, accuracy)
    return {'name': name}

  def fake_grid(config, workdir, overwrite):
    cells = [
      {'norm': norm, 'queries': q, 'num_steps': k}
      for norm in ('batch', *findings.INDUCTIVE)
      for q in (1, 5, 15)
      for k in config.eval.grid_steps
    ]
    accuracy = rng.uniform(size=(len(cells), config.eval.num_tasks))
    save_accuracies(workdir, 'grid', accuracy)
    return {'name': 'grid', 'cells': cells}

  def fake_report(path, workdirs, **options):
    calls['report'].append((path, workdirs, options))

  monkeypatch.setattr(setup, 'configure_jax', calls['configure'].append)
  monkeypatch.setattr(train, 'train', fake_train)
  monkeypatch.setattr(evaluate, 'evaluate', fake_evaluate)
  monkeypatch.setattr(sweep, 'evaluate_grid', fake_grid)
  monkeypatch.setattr(page, 'write_report', fake_report)
  return calls


def test_study_trains_evaluates_and_writes_results(calls, tmp_path, capsys):
  flags = '--num_tasks=20 --many_tasks=700 --seeds 3 4 --train.num_epochs=1'
  findings.main([f'--workdir={tmp_path}', *flags.split()])
  names = [f'{name}-seed{seed}' for seed in (3, 4) for name in findings.RUNS]
  assert calls['train'] == names
  summary = json.loads((tmp_path / 'findings.json').read_text())
  assert (summary['num_tasks'], summary['many_tasks']) == (20, 700)
  assert len(summary['findings']) == 10
  ((path, workdirs, options),) = calls['report']
  assert path == tmp_path / 'findings.html'
  assert sorted(path.name for path in workdirs) == sorted(names)
  for row in summary['findings']:
    claim = row['claim'].partition('`')[0]
    assert any(
      cells[0].startswith(escape(claim)) and cells[1] == row['measured']
      for cells in options['first_section'].rows
    )
  assert (tmp_path / 'findings.md').read_text() in capsys.readouterr().out
