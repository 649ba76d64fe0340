"""The grid: each cell is an evaluation of its own, on the same tasks."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run

from maml_jax.evaluation import evaluate, results, sweep
from maml_jax.evaluation.statistics import mean_interval
from maml_jax.experiment import checkpoint, setup, task_source, transfer
from maml_jax.inner_loop import InnerConfig
from maml_jax.learner import Batch, Episode, make_learner
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
  """A small ConvNet4 that has learned nothing, as a checkpoint."""
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


def arrays_of(workdir):
  (path,) = (workdir / 'eval').glob('*grid*.npz')
  return np.load(path)


def test_has_every_cell_and_says_what_each_is(result, workdir):
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
    word = 'transductive' if line.startswith('batch') else 'inductive'
    assert f' {word}, ' in line
  (path,) = (workdir / 'eval').glob('*grid*.json')
  assert json.loads(path.read_text()) == result
  assert result['kind'] == 'grid' and result['devices']


@functools.cache
def fixed(num_tasks=TASKS):
  phase = setup.eval_phase(small_run.config(eval__queries=3))
  machine = setup.eval_sharding(small_run.config())
  return task_source.eval_tasks(small_run.config(), phase, num_tasks, machine)


@pytest.mark.parametrize('norm', ['batch', 'support'])
def test_a_cell_is_an_adaptation_and_its_query_pass(result, run, workdir, norm):
  """Op by op: adapt with as many steps, predict the first of each class."""
  config, saved = small_run.config(model__width=2), checkpoint.load(run)
  arrays, cells = arrays_of(workdir), result['cells']
  for steps in (0, 2):
    phase = setup.eval_phase(config)._replace(norm=norm, num_steps=steps)
    learner = setup.phase_learner(config, phase)
    params, stats = transfer.transfer_params(learner, saved.params, saved.stats)
    adapt, predict = jax.jit(learner.adapt), jax.jit(learner.predict)
    for t in range(3):
      task = fixed()
      given = task.given(np.array([t]))
      episode = task.build_episode(
        task.keys[t], task.shared, *(x[0] for x in given)
      )
      adapted, task_stats, _ = adapt(params, stats, episode.support)
      for queries in (1, 3):
        chosen = np.concatenate([np.arange(queries) + 3 * c for c in range(3)])
        logits = predict(adapted, task_stats, episode.query.inputs[chosen])
        right = np.argmax(logits, -1) == episode.query.targets[chosen]
        (cell,) = (
          i
          for i, c in enumerate(cells)
          if (c['norm'], c['queries'], c['num_steps']) == (norm, queries, steps)
        )
        assert arrays['accuracy'][cell, t] == pytest.approx(right.mean())


@pytest.mark.parametrize('norm', ['batch', 'episodic', 'support'])
def test_jitted_equals_op_by_op(norm):
  config = small_run.config(model__width=2, eval__num_steps=2, eval__norm=norm)
  learner = eval_learner(config)
  rng = np.random.default_rng(0)

  def batch(n):
    image = rng.uniform(size=(3 * n, 16, 16, 1)).astype(np.float32)
    return Batch(jnp.array(image), jnp.repeat(jnp.arange(3), n))

  episode = Episode(batch(1), batch(2))
  args = *learner.init(jax.random.key(0)), episode
  measure = sweep.make_grid_measure(learner, (1, 2), (0, 2), 3)
  jitted = jax.jit(measure)(*args)
  with jax.disable_jit():
    plain = measure(*args)
  assert jitted['loss'].shape == (2, 2)
  np.testing.assert_allclose(jitted['loss'], plain['loss'], rtol=1e-4)
  np.testing.assert_array_equal(jitted['accuracy'], plain['accuracy'])


def eval_learner(config):
  """That of a phase, for images of 16 x 16."""
  phase = setup.eval_phase(config)
  model = make_model(
    'convnet4', 3, (16, 16, 1), norm=phase.norm, meta_test=True, width=2
  )
  inner = InnerConfig(num_steps=phase.num_steps, encoder_lr=0.4)
  return make_learner(model, inner)


def test_differences_are_paired_with_the_base(result, workdir):
  base = result['base']
  # As configured: 2 queries, 1 step; the nearest of the grid, the lower first.
  assert base == {'norm': 'batch', 'queries': 1, 'num_steps': 0}
  accuracy = arrays_of(workdir)['accuracy'].astype(np.float64)
  assert accuracy.shape == (8, TASKS)
  for i, cell in enumerate(result['cells']):
    expected = mean_interval(accuracy[i] - accuracy[0])
    assert (cell['difference'], cell['difference_interval']) == expected
    assert (cell['accuracy'], cell['interval']) == mean_interval(accuracy[i])


def test_by_default_takes_every_mode_the_checkpoint_serves(
  run, tmp_path, monkeypatch
):
  zeros = {name: np.zeros((TASKS, 2, 2)) for name in ('accuracy', 'loss')}
  monkeypatch.setattr(evaluate.Evaluation, 'measure', lambda *args: zeros)
  config = small_run.config(**FIELDS | {'eval__grid_norms': ''})
  result = sweep.evaluate_grid(config, run, tmp_path)
  norms = list(dict.fromkeys(c['norm'] for c in result['cells']))
  assert norms == ['batch', 'episodic', 'cumulative', 'support']


def test_refuses_a_mode_that_the_checkpoint_does_not_serve(run, tmp_path):
  fields = FIELDS | {'eval__grid_norms': 'global'}
  with pytest.raises(UserError, match='norm needs global/.*lacks'):
    sweep.evaluate_grid(small_run.config(**fields), run, tmp_path)


def test_measures_again_only_if_told_or_if_something_differs(
  result, run, workdir, monkeypatch
):
  monkeypatch.setattr(evaluate.Evaluation, 'measure', None)  # not callable
  config = small_run.config(**FIELDS)
  assert sweep.evaluate_grid(config, run, workdir, again=False) == result
  with pytest.raises(TypeError):
    sweep.evaluate_grid(config, run, workdir)
  with pytest.raises(TypeError):
    other = small_run.config(**FIELDS | {'eval__augment_support': 'flip'})
    sweep.evaluate_grid(other, run, workdir, again=False)


class Interrupted(Exception):
  pass


def test_goes_on_where_it_was_interrupted(
  result, run, workdir, tmp_path, monkeypatch
):
  """To the same numbers, measuring only what is missing."""
  collect, advanced = results.collect_metrics, []

  def interrupted(run, part, identity, advance):
    def few(start):
      for i, metrics in enumerate(run(start)):
        if i == 1 and 'support' in part.name:
          raise Interrupted
        yield metrics

    return collect(few, part, identity, advance)

  monkeypatch.setattr(evaluate, 'BATCH_SIZE', 8)
  make_runner = evaluate.make_task_runner
  monkeypatch.setattr(
    evaluate, 'make_task_runner', functools.partial(make_runner, batch=8)
  )
  monkeypatch.setattr(results, 'collect_metrics', interrupted)
  with pytest.raises(Interrupted):
    sweep.evaluate_grid(small_run.config(**FIELDS), run, tmp_path)
  (part,) = (tmp_path / 'eval').glob('*support.part')
  with np.load(part) as kept:
    assert len(kept['loss']) == 8

  def counting(run, part, identity, advance):
    return collect(run, part, identity, lambda n: advanced.append(n))

  monkeypatch.setattr(results, 'collect_metrics', counting)
  sweep.evaluate_grid(small_run.config(**FIELDS), run, tmp_path)
  assert advanced == [20, 8, 8, 4]
  for name in ('accuracy', 'loss'):
    np.testing.assert_allclose(
      arrays_of(tmp_path)[name], arrays_of(workdir)[name], rtol=1e-5
    )
  assert not list((tmp_path / 'eval').glob('*.part'))
