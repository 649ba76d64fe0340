"""Regression: the learner is not tied to classification."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from maml_jax import config as config_lib
from maml_jax import report
from maml_jax.data.datasets import sinusoid
from maml_jax.evaluation import evaluate, sweep
from maml_jax.experiment import (
  checkpoint,
  metrics,
  metrics_log,
  setup,
  task_source,
)
from maml_jax.learner import squared_error
from maml_jax.train import train

PRESET = pathlib.Path(__file__).parent.parent / 'configs' / 'sinusoid.py'


def config(**overrides):
  fields = {
    'train.num_epochs': 2,
    'train.steps_per_epoch': 30,
    'train.tasks_per_chunk': 5,
    'train.meta_batch_size': 40,
    'train.steps_per_call': 20,
    'val.num_tasks': 80,
    'eval.num_tasks': 80,
  } | overrides
  flags = [f'--config.{name}={value}' for name, value in fields.items()]
  return config_lib.load(str(PRESET), flags)


def draw(num_tasks, **shape):
  sample = jax.vmap(lambda key: sinusoid.sample_episode(key, **shape))
  return sample(jax.random.split(jax.random.key(0), num_tasks))


def test_a_task_is_one_sine_wave_of_the_paper():
  """Amplitude and phase, solved for from two points, explain all others."""
  episode = draw(500, shots=3, queries=4)
  x = np.concatenate([b.inputs[..., 0] for b in episode], axis=1, dtype=float)
  y = np.concatenate([b.targets[..., 0] for b in episode], axis=1, dtype=float)
  assert episode.support.inputs.shape == (500, 3, 1)
  assert episode.query.targets.shape == (500, 4, 1)
  basis = np.stack([np.sin(x), np.cos(x)], axis=-1)
  pairs = zip(basis, y, strict=True)
  waves = np.stack([np.linalg.lstsq(b, v, rcond=None)[0] for b, v in pairs])
  np.testing.assert_allclose(
    np.einsum('tnk,tk->tn', basis, waves), y, atol=1e-4
  )
  amplitude, phase = np.hypot(*waves.T), np.arctan2(-waves[:, 1], waves[:, 0])
  assert 0.09 < amplitude.min() < 0.3 and 4.8 < amplitude.max() < 5.01
  assert -0.01 < phase.min() < 0.1 and 3.0 < phase.max() < 3.15
  assert abs(amplitude.mean() - 2.55) < 0.2 and abs(phase.mean() - 1.57) < 0.15
  assert -5 <= x.min() < -4.9 and 4.9 < x.max() <= 5


def test_squared_error_is_the_mean_of_squares():
  outputs, label = jnp.array([[1.0], [2.0]]), jnp.array([[0.0], [4.0]])
  assert squared_error(outputs, label) == 2.5


def test_streams_of_splits_and_of_training_differ():
  machine = setup.eval_sharding(config())
  phase = setup.eval_phase(config())
  fixed = [
    task_source.eval_tasks(config(), phase._replace(split=split), 5, machine)
    for split in ('train', 'val', 'test')
  ]
  first = [f.build_episode(f.keys[0], f.shared).query.inputs for f in fixed]
  stream = task_source.train_tasks(config(), machine)
  first.append(stream.sample(jax.random.key(0), stream.shared).query.inputs)
  for i, a in enumerate(first):
    for b in first[:i]:
      assert not np.isin(a, b).any()


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  path = tmp_path_factory.mktemp('sinusoid')
  assert train(config(), path) == 0
  return path


def test_keeps_the_checkpoint_of_the_lowest_loss(run):
  val = [r for r in metrics_log.read_records(run) if r['split'] == 'val']
  assert 'accuracy' not in val[0]
  best = min(val, key=lambda r: r['loss'])
  saved = checkpoint.load(run)
  assert saved.step == best['step']
  assert saved.metrics['loss'] == best['loss']
  assert saved.metrics['interval'] == best['interval'] > 0


def test_a_worse_loss_is_not_kept():
  assert metrics.is_better({'loss': 0.5}, {'loss': 0.6})
  assert not metrics.is_better({'loss': 0.7}, {'loss': 0.6})
  assert metrics.is_better({'loss': 9, 'accuracy': 0.1}, {})
  assert not metrics.is_better(
    {'loss': 0, 'accuracy': 0.1}, {'loss': 1, 'accuracy': 0.2}
  )


def test_evaluation_equals_op_by_op_and_speaks_of_loss(run, capsys):
  result = evaluate.evaluate(config(), run)
  line = capsys.readouterr().out
  assert 'sinusoid test, 10 points, 100 queries, 10 inner steps: loss' in line
  assert 'accuracy' not in line and 'transductive' not in line
  saved = checkpoint.load(run)
  phase = setup.eval_phase(config())
  machine = setup.eval_sharding(config())
  fixed = task_source.eval_tasks(config(), phase, 80, machine)
  learner = setup.phase_learner(config(), phase)
  losses = []
  with jax.disable_jit():
    for key in fixed.keys[:5]:
      episode = fixed.build_episode(key, fixed.shared)
      losses.append(learner.loss(saved.params, saved.stats, episode)[0])
  path = next((run / 'eval').glob('*.npz'))
  np.testing.assert_allclose(np.load(path)['loss'][:5], losses, rtol=1e-4)
  mean, half = metrics_log.mean_interval(np.load(path)['loss'])
  assert (result['loss'], result['interval']) == (
    pytest.approx(mean),
    pytest.approx(half),
  )


def test_a_grid_is_of_losses_and_agrees_with_evaluations(run, capsys):
  result = sweep.evaluate_grid(config(**{'eval.grid_queries': '5,100'}), run)
  out = capsys.readouterr().out
  assert 'Loss with its 95 % interval' in out
  assert 'accuracy' not in out and 'transductive' not in out
  assert [(c['queries'], c['num_steps']) for c in result['cells']] == [
    (q, k) for q in (5, 100) for k in (0, 1, 5, 10)
  ]
  cell = result['cells'][-1]
  alone = evaluate.evaluate(config(), run)
  for name in ('loss', 'interval'):
    assert cell[name] == pytest.approx(alone[name], rel=1e-5)
  assert f'{cell["loss"]:.3f} +-{cell["interval"]:.3f} +0.000' in out


def test_report_draws_curves_and_fits(run, capsys):
  report.draw_demo(config(), run)
  printed = capsys.readouterr().out
  for name in ('curves.png', 'regression.png'):
    assert str(run / name) in printed
    with Image.open(run / name) as picture:
      assert picture.size[0] == 1650
