"""Tests of grids: every cell is an evaluation on the same tasks."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run

from maml_jax.evaluation import measurement, results, sweep
from maml_jax.evaluation.statistics import mean_interval
from maml_jax.experiment import checkpoint, setup, task_source, transfer
from maml_jax.learner import Batch, Episode, InnerConfig, make_learner
from maml_jax.models import make_model
from maml_jax.utils.errors import UserError

TASKS = 20
FIELDS = {
  'model__width': 2,
  'eval__num_tasks': TASKS,
  'eval__grid_queries': '3,1',
  'eval__grid_steps': '0,2',
  'eval__grid_norms': 'batch,support',
}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A checkpoint of a small, untrained ConvNet4."""
  with pytest.MonkeyPatch.context() as patch:
    base = tmp_path_factory.getbasetemp()
    patch.setenv('MAML_JAX_CACHE', str(base / 'cache'))
    patch.setattr('maml_jax.data.load_dataset', load_dataset)
    config = small_run.config(model__width=2)
    phase = setup.train_phase(config)
    params, stats = setup.phase_learner(config, phase).init(jax.random.key(0))
    path = tmp_path_factory.mktemp('saved') / 'untrained'
    saved = checkpoint.Checkpoint(path, config, 7, params, stats, [], {})
    yield checkpoint.export(saved, path)


def load_dataset(name, split, data_dir):
  return small_run.dataset(split)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  return tmp_path_factory.mktemp('workdir')


@pytest.fixture(scope='module')
def result(run, workdir):
  return sweep.evaluate_grid(small_run.config(**FIELDS), run, workdir)


def load_arrays(workdir):
  """Returns the metrics per cell and task."""
  (path,) = (workdir / 'eval').glob('*grid*.npz')
  return np.load(path)


def test_result_has_every_cell_and_its_protocol(result, workdir):
  cells = result['cells']
  assert [(c['norm'], c['queries'], c['num_steps']) for c in cells] == [
    (norm, q, k)
    for norm in ('batch', 'support')
    for q in (1, 3)
    for k in (0, 2)
  ]
  lines = list(sweep.describe_grid(result))
  rows = [line for line in lines if 'quer' in line and ' per class' in line]
  assert len(rows) == 4
  for line in rows:
    is_batch = line.startswith('batch')
    protocol = 'transductive' if is_batch else 'inductive'
    assert f' {protocol}, ' in line
  (path,) = (workdir / 'eval').glob('*grid*.json')
  assert json.loads(path.read_text()) == result
  assert result['kind'] == 'grid' and result['devices']


@functools.cache
def grid_tasks():
  config = small_run.config(eval__queries=3)
  phase, sharding = setup.eval_phase(config), setup.eval_sharding(config)
  return task_source.eval_tasks(config, phase, TASKS, sharding)


@pytest.mark.parametrize('norm', ['batch', 'support'])
def test_cell_equals_adaptation_and_query_pass(result, run, workdir, norm):
  """Adapts with each number of steps; predicts the first of each class."""
  config, saved = small_run.config(model__width=2), checkpoint.load(run)
  arrays, cells = load_arrays(workdir), result['cells']
  tasks = grid_tasks()
  for steps in (0, 2):
    phase = setup.eval_phase(config)._replace(norm=norm, num_steps=steps)
    learner = setup.phase_learner(config, phase)
    params, stats = transfer.transfer_params(learner, saved.params, saved.stats)
    adapt, predict = jax.jit(learner.adapt), jax.jit(learner.predict)
    for t in range(3):
      host_data = (x[0] for x in tasks.host_data(np.array([t])))
      episode = tasks.build_episode(tasks.keys[t], tasks.shared, *host_data)
      adapted, task_stats, _ = adapt(params, stats, episode.support)
      for queries in (1, 3):
        rows = np.concatenate([np.arange(queries) + 3 * c for c in range(3)])
        logits = predict(adapted, task_stats, episode.query.inputs[rows])
        correct = np.argmax(logits, -1) == episode.query.targets[rows]
        (cell,) = (
          i
          for i, c in enumerate(cells)
          if (c['norm'], c['queries'], c['num_steps']) == (norm, queries, steps)
        )
        assert arrays['accuracy'][cell, t] == pytest.approx(correct.mean())


@pytest.mark.slow
@pytest.mark.parametrize('norm', ['batch', 'episodic', 'support'])
def test_jitted_grid_measure_equals_op_by_op(norm):
  config = small_run.config(model__width=2, eval__num_steps=2, eval__norm=norm)
  learner = eval_learner(config)
  rng = np.random.default_rng(0)

  def batch(n):
    images = rng.uniform(size=(3 * n, 16, 16, 1)).astype(np.float32)
    return Batch(jnp.array(images), jnp.repeat(jnp.arange(3), n))

  episode = Episode(batch(1), batch(2))
  args = *learner.init(jax.random.key(0)), episode
  measure = sweep.make_grid_measure(learner, (1, 2), (0, 2), 3)
  jitted = jax.jit(measure)(*args)
  with jax.disable_jit():
    eager = measure(*args)
  assert jitted['loss'].shape == (2, 2)
  np.testing.assert_allclose(jitted['loss'], eager['loss'], rtol=1e-4)
  np.testing.assert_array_equal(jitted['accuracy'], eager['accuracy'])


def eval_learner(config):
  """Returns the learner of the eval phase, for images of 16 x 16."""
  phase = setup.eval_phase(config)
  model = make_model(
    'convnet4', 3, (16, 16, 1), norm=phase.norm, meta_test=True, width=2
  )
  inner = InnerConfig(num_steps=phase.num_steps, encoder_lr=0.4)
  return make_learner(model, inner)


def test_differences_are_paired_with_the_base_cell(result, workdir):
  base = result['base']
  # Configured: 2 queries, 1 step. Of equally close cells, the first is chosen.
  assert base == {'norm': 'batch', 'queries': 1, 'num_steps': 0}
  accuracy = load_arrays(workdir)['accuracy'].astype(np.float64)
  assert accuracy.shape == (8, TASKS)
  for i, cell in enumerate(result['cells']):
    expected = mean_interval(accuracy[i] - accuracy[0])
    assert (cell['difference'], cell['difference_interval']) == expected
    assert (cell['accuracy'], cell['interval']) == mean_interval(accuracy[i])


def test_default_norms_are_all_that_the_checkpoint_has_statistics_for(
  run, tmp_path, monkeypatch
):
  zeros = {name: np.zeros((TASKS, 2, 2)) for name in ('accuracy', 'loss')}
  monkeypatch.setattr(measurement.Evaluation, 'measure', lambda *args: zeros)
  config = small_run.config(**FIELDS | {'eval__grid_norms': ''})
  result = sweep.evaluate_grid(config, run, tmp_path)
  norms = list(dict.fromkeys(c['norm'] for c in result['cells']))
  assert norms == ['batch', 'episodic', 'cumulative', 'support']


def test_norm_without_statistics_in_the_checkpoint_is_rejected(run, tmp_path):
  fields = FIELDS | {'eval__grid_norms': 'global'}
  with pytest.raises(UserError, match='norm needs global/.*lacks'):
    sweep.evaluate_grid(small_run.config(**fields), run, tmp_path)


def test_saved_grid_is_reused_unless_overwritten_or_changed(
  result, run, workdir, monkeypatch
):
  monkeypatch.setattr(measurement.Evaluation, 'measure', None)  # not callable
  config = small_run.config(**FIELDS)
  assert sweep.evaluate_grid(config, run, workdir, overwrite=False) == result
  with pytest.raises(TypeError):
    sweep.evaluate_grid(config, run, workdir)
  with pytest.raises(TypeError):
    other = small_run.config(**FIELDS | {'eval__augment_support': 'flip'})
    sweep.evaluate_grid(other, run, workdir, overwrite=False)


class Interrupted(Exception):
  pass


@pytest.mark.slow
def test_interrupted_grid_resumes(result, run, workdir, tmp_path, monkeypatch):
  """Measures the missing tasks only; the results are the same."""
  collect, advanced = results.collect_metrics, []

  def collect_until_interrupt(run, partial_file, identity, advance):
    def run_one_batch(start):
      for i, metrics in enumerate(run(start)):
        if i == 1 and 'support' in partial_file.name:
          raise Interrupted
        yield metrics

    return collect(run_one_batch, partial_file, identity, advance)

  def collect_and_count(run, partial_file, identity, advance):
    return collect(run, partial_file, identity, lambda n: advanced.append(n))

  monkeypatch.setattr(
    measurement,
    'make_task_runner',
    functools.partial(measurement.make_task_runner, batch_size=8),
  )
  monkeypatch.setattr(results, 'collect_metrics', collect_until_interrupt)
  with pytest.raises(Interrupted):
    sweep.evaluate_grid(small_run.config(**FIELDS), run, tmp_path)
  (partial_file,) = (tmp_path / 'eval').glob('*support.part')
  with np.load(partial_file) as arrays:
    assert len(arrays['loss']) == 8
  monkeypatch.setattr(results, 'collect_metrics', collect_and_count)
  sweep.evaluate_grid(small_run.config(**FIELDS), run, tmp_path)
  assert advanced == [20, 8, 8, 4]
  for name in ('accuracy', 'loss'):
    np.testing.assert_allclose(
      load_arrays(tmp_path)[name], load_arrays(workdir)[name], rtol=1e-5
    )
  assert not list((tmp_path / 'eval').glob('*.part'))
