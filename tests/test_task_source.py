"""The same tasks, wherever their images lie."""

from functools import partial

import jax
import numpy as np
import pytest
import small_run

from maml_jax.data.episodes import task_keys
from maml_jax.evaluation import evaluate
from maml_jax.experiment import (
  checkpoint,
  metrics_log,
  setup,
  task_source,
  transfer,
)
from maml_jax.train import train
from maml_jax.utils.errors import UserError


@pytest.fixture
def small(monkeypatch, tmp_path_factory):
  small_run.use(monkeypatch, tmp_path_factory.getbasetemp() / 'cache')


def records(path):
  rows = metrics_log.read_records(path)
  for row in rows:
    del row['seconds']
  return rows


def assert_close(a, b):
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), a, b)


def test_host_and_device_give_the_same_training_tasks_bit_by_bit(small):
  config = small_run.config(data__augment_support='random_resized_crop')
  machine = setup.eval_sharding(config)
  device, host = (
    task_source.train_tasks(c, machine)
    for c in (
      config,
      small_run.config(
        data__augment_support='random_resized_crop', data__placement='host'
      ),
    )
  )
  assert device.given is None and host.shared == ()
  key = setup.rng_stream(config.seed, setup.TRAIN_STREAM)
  for step in (0, 7):
    keys = task_keys(key, step, 8)
    (images,) = host.given(step)
    a = jax.vmap(lambda key: device.sample(key, device.shared))(keys)
    b = jax.vmap(lambda key, image: host.sample(key, (), image))(keys, images)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_images_on_the_host_make_no_difference(small, tmp_path):
  saved, rows = [], []
  for place in ('device', 'host'):
    config = small_run.config(data__placement=place, eval__num_tasks=37)
    assert train(config, tmp_path / place) == 0
    evaluate.evaluate(config, tmp_path / place)
    saved.append(checkpoint.load(tmp_path / place, 'latest'))
    rows.append(records(tmp_path / place))
  device, host = saved
  assert_close(device.params, host.params)
  assert_close(device.opt_state, host.opt_state)
  for a, b in zip(*rows, strict=True):
    assert a.pop('split') == b.pop('split')
    assert a == pytest.approx(b, rel=1e-4)
  device, host = (np.load(p) for p in sorted(tmp_path.glob('*/eval/*.npz')))
  assert_close(dict(device), dict(host))


def test_a_run_may_go_on_with_its_images_elsewhere(small, tmp_path):
  one = small_run.config(train__num_epochs=1, data__placement='device')
  assert train(one, tmp_path) == 0
  assert train(small_run.config(data__placement='host'), tmp_path) == 0
  assert checkpoint.load(tmp_path, 'latest').step == 10


def test_images_go_where_there_is_room(small, monkeypatch):
  config = small_run.config()
  machine = setup.eval_sharding(config)
  dataset = small_run.dataset()
  assert task_source.choose_placement(config, machine, dataset) == 'device'

  class Device:
    def __init__(self, limit):
      self.memory_stats = lambda: {'bytes_limit': limit}

  class Mesh:
    local_devices = [Device(3 * dataset.images.nbytes)]

  machine = machine._replace(mesh=Mesh)
  assert task_source.choose_placement(config, machine, dataset) == 'device'
  Mesh.local_devices = [Device(3 * dataset.images.nbytes - 3)]
  assert task_source.choose_placement(config, machine, dataset) == 'host'
  for place in ('host', 'device'):
    told = small_run.config(data__placement=place)
    assert task_source.choose_placement(told, machine, dataset) == place


def taken(lengths, given):
  machine = setup.eval_sharding(small_run.config())
  rows, step = [], 5
  with task_source.Prefetcher(given, machine, 4) as ahead:
    for n in lengths:
      (array,) = ahead.take(step, n)
      assert array.shape == (4, 8, 2)
      assert len(array.sharding.device_set) == 8
      rows.append(np.asarray(array)[:n])
      step += n
  return np.concatenate(rows)


@pytest.mark.parametrize('lengths', [(6 * (1,)), (4, 2), (1, 3, 2)])
def test_ahead_gives_every_step_its_own(lengths):
  def given(step):
    return (np.full((8, 2), step, np.uint8),)

  np.testing.assert_array_equal(
    taken(lengths, given)[:, 3, 1], [5, 6, 7, 8, 9, 10]
  )


def test_ahead_brings_errors_to_the_loop():
  def given(step):
    raise UserError('the disk is gone')

  with pytest.raises(UserError, match='the disk is gone'):
    taken([1], given)


def test_nothing_is_given_where_nothing_is_missing():
  with task_source.Prefetcher(None, None, 4) as ahead:
    assert ahead.take(0, 3) == ()


def test_ways_differ_between_training_validation_and_test(
  small, tmp_path, capsys
):
  config = small_run.config(
    inner__reset_classifier=True, task__ways=3, val__ways=4, eval__ways=7
  )
  assert train(config, tmp_path) == 0
  saved = checkpoint.load(tmp_path)
  assert saved.params['classifier']['kernel'].shape == (8, 3)
  result = evaluate.evaluate(config, tmp_path)
  assert result['ways'] == 7
  assert 'glyphs test, 7-way 1-shot' in capsys.readouterr().out
  # As good as under an evaluation that knows of no training.
  phase = setup.eval_phase(config)
  learner = setup.phase_learner(config, phase)
  params, stats = transfer.transfer_params(learner, saved.params, saved.stats)
  fixed = task_source.eval_tasks(config, phase, 10, setup.eval_sharding(config))
  accuracies = []
  (positions,) = fixed.given(np.arange(10))
  for key, position in zip(fixed.keys, positions, strict=True):
    episode = fixed.build_episode(key, np.asarray(fixed.shared), position)
    assert set(np.asarray(episode.query.targets)) == set(range(7))
    adapted, task_stats, _ = learner.adapt(params, stats, episode.support)
    logits = learner.predict(adapted, task_stats, episode.query.inputs)
    assert logits.shape == (14, 7)
    accuracies.append((logits.argmax(-1) == episode.query.targets).mean())
  np.testing.assert_allclose(result['accuracy'], np.mean(accuracies), rtol=1e-6)
