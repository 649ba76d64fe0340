"""Tests of regression of sine waves, from training to the report."""

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
from maml_jax.evaluation.statistics import mean_interval
from maml_jax.experiment import (
  checkpoint,
  metrics,
  metrics_log,
  setup,
  task_source,
)
from maml_jax.learner import squared_error
from maml_jax.train import train
from maml_jax.utils.errors import UserError

PRESET = pathlib.Path(__file__).parent.parent / 'configs' / 'sinusoid.py'


def config(**overrides):
  """Returns the config of a small run."""
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


def draw_episodes(num_tasks, **shape):
  sample = jax.vmap(lambda key: sinusoid.sample_episode(key, **shape))
  return sample(jax.random.split(jax.random.key(0), num_tasks))


def test_tasks_are_sine_waves_as_in_the_maml_paper():
  """Fits amplitude and phase to each task; checks fit and ranges."""
  episode = draw_episodes(500, shots=3, queries=4)
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
  outputs, targets = jnp.array([[1.0], [2.0]]), jnp.array([[0.0], [4.0]])
  assert squared_error(outputs, targets) == 2.5


def test_random_number_streams_of_splits_and_training_differ():
  sharding = setup.eval_sharding(config())
  phase = setup.eval_phase(config())
  episodes = []
  for split in ('train', 'val', 'test'):
    tasks = task_source.eval_tasks(
      config(), phase._replace(split=split), 5, sharding
    )
    episodes.append(tasks.build_episode(tasks.keys[0], tasks.shared))
  tasks = task_source.train_tasks(config(), sharding)
  episodes.append(tasks.sample_episode(jax.random.key(0), tasks.shared))
  inputs = [episode.query.inputs for episode in episodes]
  for i, a in enumerate(inputs):
    for b in inputs[:i]:
      assert not np.isin(a, b).any()


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The workdir of a trained run."""
  path = tmp_path_factory.mktemp('sinusoid')
  assert train(config(), path) == 0
  return path


def test_best_checkpoint_has_the_lowest_loss(run):
  val = [r for r in metrics_log.read_records(run) if r['split'] == 'val']
  assert 'accuracy' not in val[0]
  best = min(val, key=lambda r: r['loss'])
  saved = checkpoint.load(run)
  assert saved.step == best['step']
  assert saved.metrics['loss'] == best['loss']
  assert saved.metrics['interval'] == best['interval'] > 0


def test_is_better_compares_losses_or_accuracies():
  assert metrics.is_better({'loss': 0.5}, {'loss': 0.6})
  assert not metrics.is_better({'loss': 0.7}, {'loss': 0.6})
  assert metrics.is_better({'loss': 9, 'accuracy': 0.1}, {})
  assert not metrics.is_better(
    {'loss': 0, 'accuracy': 0.1}, {'loss': 1, 'accuracy': 0.2}
  )


@pytest.mark.slow
def test_evaluation_reports_loss_and_equals_op_by_op(run, capsys):
  result = evaluate.evaluate(config(), run)
  line = capsys.readouterr().out
  assert 'sinusoid test, 10 points, 100 queries, 10 inner steps: loss' in line
  assert 'accuracy' not in line and 'transductive' not in line
  saved = checkpoint.load(run)
  phase = setup.eval_phase(config())
  sharding = setup.eval_sharding(config())
  tasks = task_source.eval_tasks(config(), phase, 80, sharding)
  learner = setup.phase_learner(config(), phase)
  losses = []
  with jax.disable_jit():
    for key in tasks.keys[:5]:
      episode = tasks.build_episode(key, tasks.shared)
      losses.append(learner.loss(saved.params, saved.stats, episode)[0])
  path = next((run / 'eval').glob('*.npz'))
  np.testing.assert_allclose(np.load(path)['loss'][:5], losses, rtol=1e-4)
  expected = mean_interval(np.load(path)['loss'])
  assert (result['loss'], result['interval']) == pytest.approx(expected)


def test_grid_reports_losses_equal_to_evaluations(run, capsys):
  result = sweep.evaluate_grid(config(**{'eval.grid_queries': '5,100'}), run)
  out = capsys.readouterr().out
  assert 'Loss with its 95 % confidence interval' in out
  assert 'accuracy' not in out and 'transductive' not in out
  assert [(c['queries'], c['num_steps']) for c in result['cells']] == [
    (q, k) for q in (5, 100) for k in (0, 1, 5, 10)
  ]
  cell = result['cells'][-1]
  expected = evaluate.evaluate(config(), run)
  for name in ('loss', 'interval'):
    assert cell[name] == pytest.approx(expected[name], rel=1e-5)
  assert f'{cell["loss"]:.3f} +-{cell["interval"]:.3f} +0.000' in out


def test_demo_draws_curves_and_fits(run, capsys):
  report.draw_demo(config(), run)
  printed = capsys.readouterr().out
  for name in ('curves.png', 'regression.png'):
    assert str(run / name) in printed
    with Image.open(run / name) as picture:
      assert picture.size[0] == 1650


@pytest.mark.parametrize(
  'field', ['inner.head=prototype', 'inner.class_weights=balanced']
)
def test_settings_that_need_classes_are_rejected(field):
  with pytest.raises(UserError, match=f'{field}: needs classes, but .*sinu'):
    config_lib.load(str(PRESET), [f'--config.{field}'])
