"""Tests of evaluations: tasks, evaluators, results, and other norm modes."""

import functools
import json
import pathlib
import re
from functools import partial

import image_folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run
from PIL import Image

from maml_jax import config as config_lib
from maml_jax import data
from maml_jax.data import images as image_lib
from maml_jax.data.episodes import draw_positions, task_keys
from maml_jax.evaluation import evaluate, measurement, runner
from maml_jax.evaluation.statistics import expected_at_chance, mean_interval
from maml_jax.experiment import checkpoint, setup, task_source, transfer
from maml_jax.experiment.formatting import describe_data
from maml_jax.experiment.metrics import is_transductive
from maml_jax.sharding import TaskSharding, make_mesh
from maml_jax.train import train
from maml_jax.utils.errors import UserError

ONE_DEVICE = TaskSharding(make_mesh(jax.devices()[:1]), 1)
ALL_DEVICES = TaskSharding(make_mesh(), 1)


@pytest.fixture
def small(monkeypatch, tmp_path_factory):
  small_run.use(monkeypatch, tmp_path_factory.getbasetemp() / 'cache')


@functools.cache
def indices_of_test_tasks():
  """Returns positions and keys of 300 tasks of the split 'test'."""
  phase = setup.eval_phase(small_run.config())
  return task_source.eval_task_indices(small_run.dataset('test'), phase, 300)


def make_evaluator(config, sharding, num_tasks, **kwargs):
  """Returns an evaluator of the initial parameters of a config."""
  phase = setup.eval_phase(config)
  learner = setup.phase_learner(config, phase)
  tasks = task_source.eval_tasks(
    config, phase, num_tasks, sharding if sharding.mesh else ONE_DEVICE
  )
  evaluator = runner.make_evaluator(learner, tasks, sharding, **kwargs)
  return partial(evaluator, *learner.init(jax.random.key(0)))


def assert_close(a, b):
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), a, b)


@pytest.mark.slow
@pytest.mark.parametrize('norm', ['batch', 'support'])
def test_jitted_evaluator_equals_op_by_op(norm, monkeypatch):
  monkeypatch.setattr(
    data, 'load_dataset', lambda *_: small_run.dataset('test')
  )
  config = small_run.config(eval__norm=norm)
  evaluator = make_evaluator(
    config, TaskSharding(None, 1), num_tasks=2, batch_size=2
  )
  jitted = evaluator()
  with jax.disable_jit():
    assert_close(evaluator(), jitted)


@pytest.mark.parametrize(
  'sharding',
  [
    ONE_DEVICE,
    ALL_DEVICES,
    TaskSharding(ALL_DEVICES.mesh, None),
    TaskSharding(ONE_DEVICE.mesh, 3),
  ],
  ids=['1 device', '8 devices', '8 devices, vmap', '1 device, chunks of 3'],
)
@pytest.mark.parametrize('batch_size', [1, 7, 32])
def test_results_do_not_depend_on_batches_devices_and_chunks(
  small, sharding, batch_size
):
  config = small_run.config(eval__augment_support='flip')
  expected = make_evaluator(config, ONE_DEVICE, num_tasks=19, batch_size=19)()
  metrics = make_evaluator(
    config, sharding, num_tasks=19, batch_size=batch_size
  )()
  assert_close(metrics, expected)
  assert len(metrics['loss']) == 19
  assert metrics.keys() == {'loss', 'accuracy', 'support_loss'}


def test_evaluator_advances_by_every_task_once(small):
  counts = []
  evaluator = make_evaluator(
    small_run.config(), ALL_DEVICES, num_tasks=19, batch_size=8
  )
  evaluator(counts.append)
  assert counts == [8, 8, 3]


def test_evaluator_returns_none_once_stopped(small):
  counts = []
  evaluator = make_evaluator(
    small_run.config(), ALL_DEVICES, num_tasks=19, batch_size=8
  )
  assert evaluator(counts.append, stop=counts) is None
  assert counts == [8]


def test_eval_tasks_are_distinct_and_independent_of_their_number():
  positions, keys = indices_of_test_tasks()
  distinct = {
    tuple(sorted((*sorted(row[:1]), *sorted(row[1:])) for row in task))
    for task in positions.tolist()
  }
  assert len(distinct) == 300
  assert len(set(map(tuple, jax.random.key_data(keys).tolist()))) == 300
  phase = setup.eval_phase(small_run.config())
  fewer = task_source.eval_task_indices(small_run.dataset('test'), phase, 40)
  np.testing.assert_array_equal(fewer[0], positions[:40])
  assert (fewer[1] == keys[:40]).all()


def test_transforms_and_draws_use_different_keys():
  """One key for both would correlate augmentation and classes."""
  number = setup.EVAL_STREAM + data.SPLITS.index('test')
  key, _ = jax.random.split(setup.rng_stream(0, number))
  draw_keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(300))
  assert not (indices_of_test_tasks()[1] == draw_keys).any()


def test_random_number_streams_of_splits_and_training_differ():
  """All of them draw from the same images."""
  dataset, config = small_run.dataset(), small_run.config()
  positions = [
    task_source.eval_task_indices(
      dataset, setup.eval_phase(config)._replace(split=split), 50
    )[0]
    for split in data.SPLITS
  ]
  shape = setup.train_phase(config).shape
  _, index, size = small_run.on_device(dataset)
  draw = partial(draw_positions, index=index, size=size, **shape)
  key = setup.rng_stream(0, setup.TRAIN_STREAM)
  positions.append(jax.vmap(draw)(task_keys(key, 0, 50)))
  for i, a in enumerate(positions):
    for b in positions[:i]:
      assert (np.asarray(a) != np.asarray(b)).any((1, 2)).mean() > 0.9


@pytest.fixture
def run(small, tmp_path):
  """The workdir of a trained run."""
  config = small_run.config()
  assert train(config, tmp_path) == 0
  return tmp_path


def test_evaluate_prints_and_saves_the_result(run, capsys):
  config = small_run.config(eval__queries=3, eval__num_tasks=21)
  capsys.readouterr()
  result = evaluate.evaluate(config, run)
  line, curve, path = capsys.readouterr().out.splitlines()
  assert '2 steps' not in curve and 'transductive, 3 queries' in curve
  for text in (
    'glyphs test',
    '3-way 1-shot',
    '3 queries',
    'transductive',
    '21 tasks',
    f'{100 * result["accuracy"]:.2f}',
  ):
    assert text in line
  name = f'test_3w1s_q3_k1_batch_21_step{result["step"]}.json'
  assert path == str(run / 'eval' / name)
  assert json.loads(pathlib.Path(path).read_text()) == result
  tasks = np.load(path.replace('.json', '.npz'))
  assert tasks['accuracy'].shape == (21,)
  interval = mean_interval(tasks['accuracy'])
  assert (result['accuracy'], result['interval']) == interval
  assert result['median'] == np.median(tasks['accuracy'])
  assert result['transductive'] and result['seed'] == 0
  assert evaluate.evaluate(config, result['checkpoint'], run) == result


def test_result_has_share_at_chance_predictions_and_classes(run):
  config = small_run.config(eval__queries=3, eval__num_tasks=21)
  result = evaluate.evaluate(config, run)
  (file,) = (run / 'eval').glob('*.npz')
  with np.load(file) as arrays:
    labels = np.repeat(np.arange(3), 3)
    accuracy = (arrays['predicted'] == labels).mean(1)
    np.testing.assert_allclose(accuracy, arrays['accuracy'], rtol=1e-6)
    assert result['at_chance'] == np.mean(accuracy < 0.34)
    assert result['expected_at_chance'] == expected_at_chance(9, 3)
    dataset = small_run.dataset('test')
    phase = setup.eval_phase(config)
    positions, _ = task_source.eval_task_indices(dataset, phase, 21)
    for task, classes in zip(positions, arrays['classes'], strict=True):
      for row, c in zip(task, classes, strict=True):
        assert set(row) <= set(dataset.index[c, : dataset.size[c]])


def test_curve_equals_evaluations_after_each_step(run):
  fields = {'eval__num_tasks': 12, 'eval__queries': 3}
  config = small_run.config(eval__num_steps=2, eval__curve_tasks=8, **fields)
  result = evaluate.evaluate(config, run)
  curve, eval_phase = result['curve'], setup.eval_phase(config)
  assert curve['num_tasks'] == 8
  for steps in range(3):
    phase = eval_phase._replace(num_steps=steps)
    metrics = runner.phase_evaluator(config, phase, 8, ALL_DEVICES)(
      *checkpoint.load(run)[3:5]
    )
    mean, half_width = mean_interval(metrics['accuracy'])
    assert curve['query']['accuracy'][steps] == pytest.approx(mean)
    assert curve['query']['interval'][steps] == pytest.approx(half_width)
    loss = metrics['loss'].mean()
    assert curve['query']['loss'][steps] == pytest.approx(loss, rel=1e-5)
  assert curve['support']['loss'][2] < curve['support']['loss'][0]


def test_baselines_are_compared_on_the_same_tasks(run, capsys):
  config = small_run.config(eval__baselines=True, eval__num_tasks=12)
  capsys.readouterr()
  result = evaluate.evaluate(config, run)
  out = capsys.readouterr().out
  (file,) = (run / 'eval').glob('*.npz')
  with np.load(file) as arrays:
    rows = {row['name']: row for row in result['baselines']}
    assert rows.keys() == {
      'no_adaptation',
      'nearest_centroid',
      'simple_shot',
      'linear_head',
      'cosine_head',
    }
    for name, row in rows.items():
      values = arrays[f'baseline_{name}']
      assert (row['accuracy'], row['interval']) == mean_interval(values)
      difference = values.astype(np.float64) - arrays['accuracy']
      assert (row['difference'], row['difference_interval']) == mean_interval(
        difference
      )
      assert f'{name}, transductive, 2 queries per class' in out
  phase = setup.eval_phase(config)._replace(num_steps=0)
  metrics = runner.phase_evaluator(config, phase, 12, ALL_DEVICES)(
    *checkpoint.load(run)[3:5]
  )
  accuracy = metrics['accuracy'].mean()
  assert rows['no_adaptation']['accuracy'] == pytest.approx(accuracy)


@pytest.mark.parametrize(
  'fields',
  [
    {'inner__rule': 'alfa'},
    {'inner__per_step': 'encoder', 'inner__frozen': 'encoder'},
  ],
  ids=str,
)
def test_baselines_of_learned_inner_loops_are_measured(small, tmp_path, fields):
  train(small_run.config(train__num_epochs=1, **fields), tmp_path)
  config = small_run.config(train__num_epochs=1, eval__baselines=True, **fields)
  assert len(evaluate.evaluate(config, tmp_path)['baselines']) == 5


def test_default_number_of_tasks_depends_on_the_backend(monkeypatch):
  config = small_run.config(eval__num_tasks=0)
  assert setup.num_eval_tasks(config) == 600
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert setup.num_eval_tasks(config) == 10_000
  assert setup.num_eval_tasks(small_run.config(eval__num_tasks=7)) == 7


@pytest.fixture
def untrained(small, tmp_path):
  """A checkpoint of initial parameters for glyphs."""
  return image_folders.make_checkpoint(tmp_path / 'untrained')


@pytest.fixture
def birds(monkeypatch, small):
  """Color images of 84 x 84, the data set 'cub' and the folder 'birds'."""
  dataset = small_run.dataset('test')
  shape = len(dataset.images), 84, 84, 3
  images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  dataset = dataset._replace(images=images)

  def load_dataset(name, split, root):
    is_birds = (name, root) in (('cub', None), ('folder', 'birds'))
    return dataset if is_birds else small_run.dataset(split)

  monkeypatch.setattr(data, 'load_dataset', load_dataset)
  return dataset


def test_other_data_set_is_evaluated_under_a_name_of_its_own(
  untrained, birds, tmp_path, capsys
):
  config = small_run.config(eval__data='cub', eval__curve_tasks=0)
  result = evaluate.evaluate(config, untrained, tmp_path)
  line = capsys.readouterr().out.splitlines()[0]
  assert 'cub test (trained on glyphs), 3-way 1-shot' in line
  assert (result['data'], result['data_root']) == ('cub', '')
  assert result['name'] == 'cub_test_3w1s_q2_k1_batch_10_step0'
  assert result['config']['data']['name'] == 'glyphs'
  assert (
    evaluate.evaluate(config, untrained, tmp_path, overwrite=False) == result
  )


def test_images_of_another_data_set_are_converted_for_the_model(birds):
  config = small_run.config(eval__data='cub')
  tasks = task_source.eval_tasks(
    config, setup.eval_phase(config), 2, ONE_DEVICE
  )
  spec = data.spec('glyphs')  # gray, 28 x 28, light on dark
  images = [Image.fromarray(image) for image in birds.images]
  expected = np.stack([image_lib.to_array(image, spec) for image in images])
  np.testing.assert_array_equal(tasks.shared, expected)


def test_folders_of_images_have_results_of_their_own(
  untrained, birds, tmp_path
):
  names = []
  for root in ('birds', 'fish', 'birds/'):
    config = small_run.config(eval__data='folder', eval__data_root=root)
    phase = setup.eval_phase(config)
    e = measurement.Evaluation(config, untrained, tmp_path, phase, 'x')
    names.append(e.name)
    assert describe_data(e.metadata()) == (
      f'folder {root} test (trained on glyphs)'
    )
  first, second, third = names
  assert re.fullmatch(r'folder-[0-9a-f]{8}_test_3w1s_x_10_step0', first)
  assert first == third != second


@pytest.mark.parametrize(
  'fields, name, root',
  [
    ({'data.root': 'd'}, 'mini_imagenet', None),
    ({'eval.data': 'mini_imagenet'}, 'mini_imagenet', None),
    ({'eval.data': 'cub'}, 'cub', ''),
    ({'eval.data': 'cub', 'data.root': 'd'}, 'cub', 'd'),
    ({'eval.data': 'cub', 'eval.data_root': 'e'}, 'cub', 'e'),
    ({'eval.data_root': 'e', 'data.root': 'd'}, 'mini_imagenet', 'e'),
    ({'data.name': 'folder', 'data.root': 'd'}, 'folder', None),
    ({'data.name': 'folder', 'data.root': 'd', 'eval.data': 'cub'}, 'cub', ''),
    (
      {'data.name': 'folder', 'data.root': 'd', 'eval.data_root': 'e'},
      'folder',
      'e',
    ),
  ],
)
def test_data_set_and_root_of_an_evaluation(fields, name, root):
  flags = [f'--{field}={value}' for field, value in fields.items()]
  config = config_lib.load('mini_5w1s', flags)
  phase = setup.eval_phase(config)
  assert (phase.data, phase.data_root) == (name, root)
  phase = setup.val_phase(config)
  assert (phase.data, phase.data_root) == (config.data.name, None)


@pytest.mark.parametrize(
  'flags, message',
  [
    (['--eval.data=cubs'], 'config.eval.data=cubs: unknown; did you mean cub?'),
    (
      ['--eval.data=sinusoid'],
      'eval.data=sinusoid: must be classification, be',
    ),
    (['--eval.data=folder'], 'eval.data=folder: set config.eval.data_root to'),
  ],
)
def test_impossible_data_set_of_an_evaluation_is_rejected(flags, message):
  with pytest.raises(UserError, match=message):
    config_lib.load('mini_5w1s', flags)


def test_result_of_another_checkpoint_is_not_overwritten(untrained, tmp_path):
  config = small_run.config(eval__num_tasks=2, eval__curve_tasks=0)
  first = evaluate.evaluate(config, untrained, tmp_path)
  path = tmp_path / 'eval' / f'{first["name"]}.json'
  moved = untrained.rename(tmp_path / 'moved')  # the same parameters
  first = evaluate.evaluate(config, moved, tmp_path)
  saved = checkpoint.load(moved)
  changed = jax.tree.map(lambda x: x + 1, saved.params)
  other = checkpoint.export(saved._replace(params=changed), tmp_path / 'other')
  with pytest.raises(
    UserError, match=f'{path} is the result of another checkpoint, {moved}: '
  ):
    evaluate.evaluate(config, other, tmp_path)
  assert json.loads(path.read_text()) == first


def test_validation_equals_evaluation_of_the_val_split(run):
  config = small_run.config(eval__split='val')
  saved = checkpoint.load(run)
  result = evaluate.evaluate(config, run)
  for name in ('accuracy', 'interval', 'loss'):
    assert result[name] == pytest.approx(saved.metrics[name], rel=1e-6)


def test_checkpoint_of_another_config_is_rejected(run):
  with pytest.raises(UserError, match='inner.encoder_lr: 0.1 -> 0.5'):
    evaluate.evaluate(small_run.config(inner__encoder_lr=0.5), run)
  with pytest.raises(UserError, match='no such directory'):
    evaluate.evaluate(small_run.config(), run / 'nowhere')


def untrained_checkpoint(config, path):
  """Returns a checkpoint with initial parameters and nonzero statistics."""
  phase = setup.train_phase(config)
  init = jax.jit(setup.phase_learner(config, phase).init)
  params, stats = init(jax.random.key(5))
  stats = jax.tree.map(lambda x: x + 0.25, stats)
  return checkpoint.Checkpoint(path, config, 0, params, stats, [], {})


def eval_learner(config):
  return setup.phase_learner(config, setup.eval_phase(config))


@pytest.mark.slow
def test_transfer_keeps_params_and_stats_that_the_learner_needs(tmp_path):
  saved = untrained_checkpoint(small_run.config(model__norm='global'), tmp_path)
  for norm in ('global', 'batch', 'episodic', 'cumulative', 'support'):
    config = small_run.config(model__norm='global', eval__norm=norm)
    learner = eval_learner(config)
    params, stats = transfer.transfer_params(learner, saved.params, saved.stats)
    jax.tree.map(np.testing.assert_array_equal, params, saved.params)
    _, fresh = jax.jit(learner.init)(jax.random.key(0))
    expected = saved.stats if norm == 'global' else fresh
    jax.tree.map(np.testing.assert_array_equal, stats, expected)


@pytest.mark.parametrize('norm', ['global', 'tasknorm'])
def test_transfer_rejects_checkpoint_without_needed_parts(tmp_path, norm):
  saved = untrained_checkpoint(small_run.config(), tmp_path)
  with pytest.raises(UserError, match='norm needs .*conv1/bn'):
    learner = eval_learner(small_run.config(eval__norm=norm))
    transfer.transfer_params(learner, saved.params, saved.stats)


def test_transfer_to_other_ways_initializes_the_head(tmp_path):
  kwargs = {'inner__head': 'zero'}
  saved = untrained_checkpoint(small_run.config(**kwargs), tmp_path)
  learner = eval_learner(small_run.config(eval__ways=5, **kwargs))
  params, _ = transfer.transfer_params(learner, saved.params, saved.stats)
  assert params['classifier']['kernel'].shape == (4, 5)
  images = jnp.zeros((2, 28, 28, 1))
  assert learner.predict(params, {}, images).shape == (2, 5)


@pytest.mark.parametrize(
  'norm, transductive',
  [
    ('batch', True),
    ('episodic', False),
    ((('conv1', 'batch'), ('*', 'global')), True),
    ((('conv1', 'support'), ('*', 'global')), False),
  ],
)
def test_norm_mode_batch_is_transductive(norm, transductive):
  assert is_transductive(norm) == transductive
