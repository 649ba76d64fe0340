"""Evaluation: the right tasks, each once, and honest intervals."""

import functools
import json
import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import small_run

from maml_jax import data
from maml_jax.data.episodes import draw_positions, task_keys
from maml_jax.evaluation import evaluate
from maml_jax.evaluation.statistics import mean_interval
from maml_jax.experiment import checkpoint, setup, task_source, transfer
from maml_jax.sharding import TaskSharding, make_mesh
from maml_jax.train import train
from maml_jax.utils.errors import UserError

ONE = TaskSharding(make_mesh(jax.devices()[:1]), 1)
ALL = TaskSharding(make_mesh(), 1)


@pytest.fixture
def small(monkeypatch, tmp_path_factory):
  small_run.use(monkeypatch, tmp_path_factory.getbasetemp() / 'cache')


@functools.cache
def fixed_tasks():
  """300 tasks of the split 'test'."""
  phase = setup.eval_phase(small_run.config())
  return task_source.eval_task_indices(small_run.dataset('test'), phase, 300)


def evaluator_of(config, machine, num_tasks, **kwargs):
  """An evaluator of the eval phase of a config, at its initial parameters."""
  phase = setup.eval_phase(config)
  learner = setup.phase_learner(config, phase)
  fixed = task_source.eval_tasks(
    config, phase, num_tasks, machine if machine.mesh else ONE
  )
  evaluator = evaluate.make_evaluator(learner, fixed, machine, **kwargs)
  return partial(evaluator, *learner.init(jax.random.key(0)))


def assert_close(a, b):
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), a, b)


@pytest.mark.parametrize('norm', ['batch', 'support'])
def test_jitted_equals_op_by_op(norm, monkeypatch):
  monkeypatch.setattr(
    data, 'load_dataset', lambda *_: small_run.dataset('test')
  )
  config = small_run.config(eval__norm=norm)
  evaluator = evaluator_of(config, TaskSharding(None, 1), num_tasks=2, batch=2)
  jitted = evaluator()
  with jax.disable_jit():
    assert_close(evaluator(), jitted)


@pytest.mark.parametrize(
  'machine', [ONE, ALL, TaskSharding(ALL.mesh, None), TaskSharding(ONE.mesh, 3)]
)
@pytest.mark.parametrize('batch', [1, 7, 32])
def test_batches_devices_and_chunks_change_nothing(small, machine, batch):
  config = small_run.config(eval__augment_support='flip')
  expected = evaluator_of(config, ONE, num_tasks=19, batch=19)()
  metrics = evaluator_of(config, machine, num_tasks=19, batch=batch)()
  assert_close(metrics, expected)
  assert len(metrics['loss']) == 19
  assert metrics.keys() == {'loss', 'accuracy', 'support_loss'}


def test_counts_every_task_once(small):
  counted = []
  evaluator = evaluator_of(small_run.config(), ALL, num_tasks=19, batch=8)
  evaluator(counted.append)
  assert counted == [8, 8, 3]


def test_stops_when_told(small):
  counted = []
  evaluator = evaluator_of(small_run.config(), ALL, num_tasks=19, batch=8)
  assert evaluator(counted.append, stop=counted) is None
  assert counted == [8]


def test_fixed_tasks_are_distinct_and_fixed():
  positions, keys = fixed_tasks()
  names = {
    tuple(sorted((*sorted(row[:1]), *sorted(row[1:])) for row in task))
    for task in positions.tolist()
  }
  assert len(names) == 300
  assert len(set(map(tuple, jax.random.key_data(keys).tolist()))) == 300
  phase = setup.eval_phase(small_run.config())
  fewer = task_source.eval_task_indices(small_run.dataset('test'), phase, 40)
  np.testing.assert_array_equal(fewer[0], positions[:40])
  assert (fewer[1] == keys[:40]).all()


def test_transforms_are_not_told_by_the_draw():
  """One key for both would tie the augmentation of a task to its classes."""
  number = setup.EVAL_STREAM + data.SPLITS.index('test')
  key, _ = jax.random.split(setup.rng_stream(0, number))
  drawn = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(300))
  assert not (fixed_tasks()[1] == drawn).any()


def test_streams_of_splits_and_of_training_differ():
  """Even where the images are the same."""
  dataset, config = small_run.dataset(), small_run.config()
  streams = [
    task_source.eval_task_indices(
      dataset, setup.eval_phase(config)._replace(split=split), 50
    )[0]
    for split in data.SPLITS
  ]
  shape = setup.train_phase(config).shape
  _, index, size = small_run.on_device(dataset)
  draw = partial(draw_positions, index=index, size=size, **shape)
  key = setup.rng_stream(0, setup.TRAIN_STREAM)
  streams.append(jax.vmap(draw)(task_keys(key, 0, 50)))
  for i, a in enumerate(streams):
    for b in streams[:i]:
      assert (np.asarray(a) != np.asarray(b)).any((1, 2)).mean() > 0.9


def test_interval_is_students():
  values = np.random.default_rng(0).normal(size=12)
  mean, half = mean_interval(values)
  low, high = scipy.stats.t.interval(
    0.95, 11, values.mean(), scipy.stats.sem(values)
  )
  np.testing.assert_allclose([mean - half, mean + half], [low, high])
  assert mean_interval([0.25]) == (0.25, np.inf)
  assert mean_interval(np.ones(5, np.float32)) == (1.0, 0.0)


@pytest.mark.parametrize('num_tasks, queries', [(30, 75), (600, 5)])
def test_interval_covers_the_truth_in_95_of_100_evaluations(num_tasks, queries):
  """Tasks of unlike difficulty, answered with binomial luck."""
  rng = np.random.default_rng(0)
  difficulty = rng.beta(5, 5, (4000, num_tasks))
  accuracies = rng.binomial(queries, difficulty) / queries
  results = [mean_interval(row) for row in accuracies]
  covered = np.mean([abs(mean - 0.5) <= half for mean, half in results])
  assert 0.94 < covered < 0.96


@pytest.fixture
def run(small, tmp_path):
  """A workdir with a trained run."""
  config = small_run.config()
  assert train(config, tmp_path) == 0
  return tmp_path


def test_evaluates_and_writes_what_it_says(run, capsys):
  config = small_run.config(eval__queries=3, eval__num_tasks=21)
  capsys.readouterr()
  result = evaluate.evaluate(config, run)
  line, curve, path = capsys.readouterr().out.splitlines()
  assert '2 steps' not in curve and 'transductive, 3 queries' in curve
  for words in (
    'glyphs test',
    '3-way 1-shot',
    '3 queries',
    'transductive',
    '21 tasks',
    f'{100 * result["accuracy"]:.2f}',
  ):
    assert words in line
  name = f'test_3w1s_q3_k1_batch_21_step{result["step"]}.json'
  assert path == str(run / 'eval' / name)
  assert json.loads(pathlib.Path(path).read_text()) == result
  tasks = np.load(path.replace('.json', '.npz'))
  assert tasks['accuracy'].shape == (21,)
  mean, half = mean_interval(tasks['accuracy'])
  assert (result['accuracy'], result['interval']) == (mean, half)
  assert result['median'] == np.median(tasks['accuracy'])
  assert result['transductive'] and result['seed'] == 0
  assert evaluate.evaluate(config, result['checkpoint'], run) == result


def test_says_how_many_tasks_are_at_chance_and_what_each_answer_was(run):
  config = small_run.config(eval__queries=3, eval__num_tasks=21)
  result = evaluate.evaluate(config, run)
  (file,) = (run / 'eval').glob('*.npz')
  with np.load(file) as arrays:
    label = np.repeat(np.arange(3), 3)
    right = (arrays['predicted'] == label).mean(1)
    np.testing.assert_allclose(right, arrays['accuracy'], rtol=1e-6)
    assert result['at_chance'] == np.mean(right < 0.34)
    dataset = small_run.dataset('test')
    phase = setup.eval_phase(config)
    positions, _ = task_source.eval_task_indices(dataset, phase, 21)
    for task, classes in zip(positions, arrays['classes'], strict=True):
      for row, c in zip(task, classes, strict=True):
        assert set(row) <= set(dataset.index[c, : dataset.size[c]])


def test_curve_is_an_evaluation_after_each_number_of_steps(run):
  fields = {'eval__num_tasks': 12, 'eval__queries': 3}
  config = small_run.config(eval__num_steps=2, eval__curve_tasks=8, **fields)
  result = evaluate.evaluate(config, run)
  curve, support = result['curve'], setup.eval_phase(config)
  assert curve['num_tasks'] == 8
  for steps in range(3):
    phase = support._replace(num_steps=steps)
    metrics = evaluate.phase_evaluator(config, phase, 8, ALL)(
      *checkpoint.load(run)[3:5]
    )
    mean, half = mean_interval(metrics['accuracy'])
    assert curve['query']['accuracy'][steps] == pytest.approx(mean)
    assert curve['query']['interval'][steps] == pytest.approx(half)
    loss = metrics['loss'].mean()
    assert curve['query']['loss'][steps] == pytest.approx(loss, rel=1e-5)
  assert curve['support']['loss'][2] < curve['support']['loss'][0]


def test_baselines_are_measured_on_the_same_tasks(run, capsys):
  config = small_run.config(eval__baselines=True, eval__num_tasks=12)
  capsys.readouterr()
  result = evaluate.evaluate(config, run)
  out = capsys.readouterr().out
  (file,) = (run / 'eval').glob('*.npz')
  with np.load(file) as arrays:
    names = {row['name']: row for row in result['baselines']}
    assert names.keys() == {'no_adaptation', 'nearest_mean', 'linear_head'}
    for name, row in names.items():
      values = arrays[f'baseline_{name}']
      assert (row['accuracy'], row['interval']) == mean_interval(values)
      difference = values.astype(np.float64) - arrays['accuracy']
      assert (row['difference'], row['difference_interval']) == mean_interval(
        difference
      )
      assert f'{name}, transductive, 2 queries per class' in out
  still = setup.eval_phase(config)._replace(num_steps=0)
  metrics = evaluate.phase_evaluator(config, still, 12, ALL)(
    *checkpoint.load(run)[3:5]
  )
  accuracy = metrics['accuracy'].mean()
  assert names['no_adaptation']['accuracy'] == pytest.approx(accuracy)


def test_default_number_of_tasks_follows_the_hardware(monkeypatch):
  config = small_run.config(eval__num_tasks=0)
  assert setup.num_eval_tasks(config) == 600
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert setup.num_eval_tasks(config) == 10_000
  assert setup.num_eval_tasks(small_run.config(eval__num_tasks=7)) == 7


def test_validation_is_the_evaluation_of_the_val_split(run):
  config = small_run.config(eval__split='val')
  saved = checkpoint.load(run)
  result = evaluate.evaluate(config, run)
  for name in ('accuracy', 'interval', 'loss'):
    assert result[name] == pytest.approx(saved.metrics[name], rel=1e-6)


def test_refuses_a_checkpoint_of_another_config(run):
  with pytest.raises(UserError, match='inner.encoder_lr: 0.1 -> 0.5'):
    evaluate.evaluate(small_run.config(inner__encoder_lr=0.5), run)
  with pytest.raises(UserError, match='no best checkpoint'):
    evaluate.evaluate(small_run.config(), run / 'nowhere')


def saved_as(config, path):
  """A checkpoint of a network of the config that has learned nothing."""
  phase = setup.train_phase(config)
  init = jax.jit(setup.phase_learner(config, phase).init)
  params, stats = init(jax.random.key(5))
  stats = jax.tree.map(lambda x: x + 0.25, stats)
  return checkpoint.Checkpoint(path, config, 0, params, stats, [], {})


def eval_learner(config):
  return setup.phase_learner(config, setup.eval_phase(config))


def test_fit_takes_what_the_learner_needs(tmp_path):
  saved = saved_as(small_run.config(model__norm='global'), tmp_path)
  for norm in ('global', 'batch', 'episodic', 'cumulative', 'support'):
    config = small_run.config(model__norm='global', eval__norm=norm)
    learner = eval_learner(config)
    params, stats = transfer.transfer_params(learner, saved.params, saved.stats)
    jax.tree.map(np.testing.assert_array_equal, params, saved.params)
    _, fresh = jax.jit(learner.init)(jax.random.key(0))
    expected = saved.stats if norm == 'global' else fresh
    jax.tree.map(np.testing.assert_array_equal, stats, expected)


@pytest.mark.parametrize('norm', ['global', 'tasknorm'])
def test_fit_refuses_what_the_checkpoint_lacks(tmp_path, norm):
  saved = saved_as(small_run.config(), tmp_path)
  with pytest.raises(UserError, match='norm needs .*conv1/bn'):
    learner = eval_learner(small_run.config(eval__norm=norm))
    transfer.transfer_params(learner, saved.params, saved.stats)


def test_other_numbers_of_ways_with_a_head_that_is_reset(tmp_path):
  kwargs = {'inner__reset_classifier': True}
  saved = saved_as(small_run.config(**kwargs), tmp_path)
  learner = eval_learner(small_run.config(eval__ways=5, **kwargs))
  params, _ = transfer.transfer_params(learner, saved.params, saved.stats)
  assert params['classifier']['kernel'].shape == (4, 5)
  image = jnp.zeros((2, 28, 28, 1))
  assert learner.predict(params, {}, image).shape == (2, 5)


@pytest.mark.parametrize(
  'norm, transductive',
  [
    ('batch', True),
    ('episodic', False),
    ((('conv1', 'batch'), ('*', 'global')), True),
    ((('conv1', 'support'), ('*', 'global')), False),
  ],
)
def test_says_what_is_transductive(norm, transductive):
  assert evaluate.is_transductive(norm) == transductive
