"""The arithmetic of the findings study; what it trains is tested elsewhere."""

import json

import numpy as np
import pytest

from maml_jax import config as config_lib
from maml_jax import train
from maml_jax.evaluation import evaluate, sweep
from maml_jax.evaluation.statistics import mean_interval
from maml_jax.report import markup, page
from studies import findings


def args(**changed):
  values = {'scale': 'omniglot', 'num_tasks': None, 'many_tasks': None}
  return type('args', (), values | changed)


@pytest.mark.parametrize('scale', findings.SCALES)
def test_runs_differ_in_what_is_asked_alone(scale):
  base = findings.read_config(args(scale=scale), [], 'second_order', 0)
  for name, fields in findings.RUNS.items():
    config = findings.read_config(args(scale=scale), [], name, 0)
    differ = {
      line.partition(':')[0]
      for line in config_lib.config_differences(base, config)
    }
    assert differ - {'eval.norm'} == fields.keys()


def make(seeds=1, many=6000):
  """Accuracies with known differences in points, and noise that is shared."""
  made = []
  for seed in range(seeds):
    rng = np.random.default_rng(seed)
    hard, own = rng.normal(0.6, 0.1, 600), lambda r=rng: r.normal(0, 0.01, 600)
    lower = {
      'second_order': 0,
      'first_order': 0.001,
      'second_order_inductive': 0.04,
      'first_order_inductive': 0.3,
      'frozen_encoder': -0.02,
    }
    cells = {
      ('batch', 1): 0,
      ('batch', 5): 0.015,
      ('batch', 15): 0.025,
      ('episodic', 15): 0.07,
      ('cumulative', 15): 0.025,
      ('support', 15): 0.065,
    }
    made.append(
      findings.Measured(
        {name: hard - x + own() for name, x in lower.items()},
        {cell: hard - x + own() for cell, x in cells.items()},
        rng.normal(0.6, 0.1, many),
        1.0,
      )
    )
  return made


@pytest.mark.parametrize('seeds', [1, 3])
def test_verdicts_follow_the_differences(seeds):
  found = findings.findings(make(seeds))
  verdicts = [f.verdict.partition(':')[0] for f in found]
  assert [f.claim[:3] for f in found] == [
    '(1)',
    '(1)',
    '(2)',
    '(3)',
    '(3)',
    '(3)',
    '(3)',
    '(4)',
    '(4)',
    '(5)',
  ]
  assert verdicts == [
    'holds',
    'holds',
    'does not hold',
    'holds',
    'not decided',
    'holds',
    'holds',
    'holds',
    'holds',
    'does not hold',
  ]
  np.testing.assert_allclose(found[1].numbers['difference'], -0.025, atol=2e-3)
  assert '-2.' in found[1].measured
  for f in found:
    assert 'transductive' in f.measured or 'inductive' in f.measured
    assert 'quer' in f.measured


def test_differences_are_over_tasks_or_over_seeds():
  one, three = make(1), make(3)
  pairs = [(m.cells['batch', 1], m.cells['batch', 5]) for m in three]
  numbers = findings.compare(pairs[:1])
  expected = mean_interval(one[0].cells['batch', 5] - one[0].cells['batch', 1])
  assert (numbers['difference'], numbers['interval']) == expected
  numbers = findings.compare(pairs)
  expected = mean_interval([b.mean() - a.mean() for a, b in pairs])
  np.testing.assert_allclose(
    (numbers['difference'], numbers['interval']), expected
  )
  assert numbers['seeds'] == 3


def test_first_tasks_that_are_better_than_luck_allows():
  (m,) = make()
  m.many[:600] += 0.04
  found = findings.findings([m])[2]
  assert found.verdict == 'holds: more than luck allows'
  luck = 1.96 * m.many.std(ddof=1) * (1 / 600 - 1 / 6000) ** 0.5
  assert found.numbers['luck'] == pytest.approx(luck, rel=1e-3)
  assert f'= ± {100 * luck:.2f} points' in found.measured


@pytest.mark.parametrize(
  'difference, interval, verdict',
  [
    (-0.015, 0.001, 'holds: the interval is below 0'),
    (-0.005, 0.001, 'holds: the interval is below 0; it is less than 1.5'),
    (-0.025, 0.001, 'holds: the interval is below 0; it is more than 1.5'),
    (0.005, 0.001, 'does not hold: it is higher'),
    (-0.015, 0.02, 'not decided'),
  ],
)
def test_lower_by_so_many_points(difference, interval, verdict):
  numbers = {'difference': difference, 'interval': interval}
  assert findings.falls(numbers, 1.5).startswith(verdict)
  assert ';' not in findings.falls(numbers)


@pytest.mark.parametrize(
  'difference, interval, verdict',
  [
    (0.0, 0.009, 'holds'),
    (-0.004, 0.004, 'holds'),
    (-0.02, 0.01, 'does not hold: it is lower'),
    (0.02, 0.01, 'does not hold: it is higher'),
    (0.005, 0.02, 'not decided'),
  ],
)
def test_alike_means_within_a_point(difference, interval, verdict):
  numbers = {'difference': difference, 'interval': interval}
  assert findings.matches(numbers).startswith(verdict)


def test_trains_all_measures_all_and_writes(monkeypatch, tmp_path, capsys):
  trained, pages, rng = [], [], np.random.default_rng(0)

  def keep(config, workdir, result, accuracy):
    path = workdir / 'eval' / f'{result["name"]}.npz'
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, accuracy=accuracy)
    return result

  def evaluated(config, workdir, again):
    num_tasks = config.eval.num_tasks
    accuracy = rng.uniform(size=num_tasks).astype(np.float32)
    return keep(config, workdir, {'name': f'tasks{num_tasks}'}, accuracy)

  def gridded(config, workdir, again):
    cells = [
      {'norm': norm, 'queries': q, 'num_steps': k}
      for norm in ('batch', *findings.INDUCTIVE)
      for q in (1, 5, 15)
      for k in config.eval.grid_steps
    ]
    accuracy = rng.uniform(size=(len(cells), config.eval.num_tasks))
    return keep(config, workdir, {'name': 'grid', 'cells': cells}, accuracy)

  monkeypatch.setattr(
    train, 'train', lambda config, workdir: trained.append(workdir.name) or 0
  )
  monkeypatch.setattr(evaluate, 'evaluate', evaluated)
  monkeypatch.setattr(
    page, 'write_report', lambda *args, **words: pages.append((*args, words))
  )
  monkeypatch.setattr(sweep, 'evaluate_grid', gridded)
  findings.main(
    [
      f'--workdir={tmp_path}',
      '--num_tasks=20',
      '--many_tasks=700',
      '--seeds',
      '3',
      '4',
      '--train.num_epochs=1',
    ]
  )
  names = [f'{name}-seed{seed}' for seed in (3, 4) for name in findings.RUNS]
  assert trained == names
  facts = json.loads((tmp_path / 'findings.json').read_text())
  assert (facts['num_tasks'], facts['many_tasks']) == (20, 700)
  assert len(facts['findings']) == 10
  ((path, workdirs, words),) = pages
  assert path == tmp_path / 'findings.html'
  assert sorted(path.name for path in workdirs) == sorted(trained)
  for row in facts['findings']:
    first = row['claim'].partition('`')[0]
    assert markup.escape(first) in words['extra_html']
  assert (tmp_path / 'findings.md').read_text() in capsys.readouterr().out
