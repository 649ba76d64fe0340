"""Tests that tasks do not depend on where images are stored."""

from functools import partial

import jax
import numpy as np
import pytest
import small_run

from maml_jax.data.episodes import task_keys
from maml_jax.data.image_storage import image_storage
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


def read_records(path):
  """Returns the metrics of a run without durations."""
  records = metrics_log.read_records(path)
  for record in records:
    del record['seconds']
  return records


def assert_close(a, b):
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), a, b)


@pytest.mark.slow
def test_host_and_device_give_bit_identical_training_tasks(small):
  fields = {'data__augment_support': 'random_resized_crop'}
  config = small_run.config(**fields)
  sharding = setup.eval_sharding(config)
  device, host = (
    task_source.train_tasks(
      small_run.config(data__placement=placement, **fields), sharding
    )
    for placement in ('auto', 'host')
  )
  assert (device.placement, host.placement) == ('device', 'host')
  assert device.host_data is None and host.shared == ()
  key = setup.rng_stream(config.seed, setup.TRAIN_STREAM)
  for step in (0, 7):
    keys = task_keys(key, step, 8)
    (images,) = host.host_data(step)
    a = jax.vmap(lambda key: device.sample_episode(key, device.shared))(keys)
    b = jax.vmap(lambda key, x: host.sample_episode(key, (), x))(keys, images)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
def test_runs_do_not_depend_on_placement_of_images(small, tmp_path):
  saved, records = [], []
  for placement in ('device', 'host'):
    config = small_run.config(data__placement=placement, eval__num_tasks=37)
    assert train(config, tmp_path / placement) == 0
    evaluate.evaluate(config, tmp_path / placement)
    saved.append(checkpoint.load(tmp_path / placement, 'latest'))
    records.append(read_records(tmp_path / placement))
  device, host = saved
  assert_close(device.params, host.params)
  assert_close(device.opt_state, host.opt_state)
  for a, b in zip(*records, strict=True):
    assert a.pop('split') == b.pop('split')
    assert a == pytest.approx(b, rel=1e-4)
  device, host = (np.load(p) for p in sorted(tmp_path.glob('*/eval/*.npz')))
  assert_close(dict(device), dict(host))


def test_placement_may_change_on_resume(small, tmp_path):
  first = small_run.config(train__num_epochs=1, data__placement='device')
  assert train(first, tmp_path) == 0
  assert train(small_run.config(data__placement='host'), tmp_path) == 0
  assert checkpoint.load(tmp_path, 'latest').step == 10


def test_placement_follows_device_memory_unless_set(small):
  config = small_run.config()
  sharding = setup.eval_sharding(config)
  dataset = small_run.dataset()
  assert task_source.choose_placement(config, sharding, dataset) == 'device'

  class Device:
    platform = 'gpu'

    def __init__(self, limit):
      self.memory_stats = lambda: {'bytes_limit': limit}

  class Mesh:
    devices = np.array([Device(0)])
    local_devices = [Device(3 * dataset.images.nbytes)]

  sharding = sharding._replace(mesh=Mesh)
  assert task_source.choose_placement(config, sharding, dataset) == 'device'
  Mesh.local_devices = [Device(3 * dataset.images.nbytes - 3)]
  assert task_source.choose_placement(config, sharding, dataset) == 'host'
  for placement in ('host', 'device'):
    config = small_run.config(data__placement=placement)
    chosen = task_source.choose_placement(config, sharding, dataset)
    assert chosen == placement


def prefetch(lengths, host_data):
  """Returns the data of calls of these lengths, from step 5 on."""
  sharding = setup.eval_sharding(small_run.config())
  rows, step = [], 5
  with task_source.Prefetcher(host_data, sharding, 4) as prefetcher:
    for n in lengths:
      (array,) = prefetcher.take(step, n)
      assert array.shape == (4, 8, 2)
      assert len(array.sharding.device_set) == 8
      rows.append(np.asarray(array)[:n])
      step += n
  return np.concatenate(rows)


@pytest.mark.parametrize('lengths', [(6 * (1,)), (4, 2), (1, 3, 2)])
def test_prefetcher_returns_the_data_of_each_step(lengths):
  def host_data(step):
    return (np.full((8, 2), step, np.uint8),)

  np.testing.assert_array_equal(
    prefetch(lengths, host_data)[:, 3, 1], [5, 6, 7, 8, 9, 10]
  )


def test_prefetcher_raises_errors_of_its_thread():
  def host_data(step):
    raise UserError('cannot read')

  with pytest.raises(UserError, match='cannot read'):
    prefetch([1], host_data)


def test_prefetcher_without_host_data_returns_nothing():
  with task_source.Prefetcher(None, None, 4) as prefetcher:
    assert prefetcher.take(0, 3) == ()


@pytest.mark.slow
def test_ways_may_differ_between_training_validation_and_test(
  small, tmp_path, capsys
):
  config = small_run.config(
    inner__head='zero', task__ways=3, val__ways=4, eval__ways=7
  )
  assert train(config, tmp_path) == 0
  saved = checkpoint.load(tmp_path)
  assert saved.params['classifier']['kernel'].shape == (8, 3)
  result = evaluate.evaluate(config, tmp_path)
  assert result['ways'] == 7
  assert 'glyphs test, 7-way 1-shot' in capsys.readouterr().out
  # Compare with an evaluation task by task.
  phase = setup.eval_phase(config)
  learner = setup.phase_learner(config, phase)
  params, stats = transfer.transfer_params(learner, saved.params, saved.stats)
  sharding = setup.eval_sharding(config)
  tasks = task_source.eval_tasks(config, phase, 10, sharding)
  accuracies = []
  (positions,) = tasks.host_data(np.arange(10))
  for key, position in zip(tasks.keys, positions, strict=True):
    episode = tasks.build_episode(key, np.asarray(tasks.shared), position)
    assert set(np.asarray(episode.query.targets)) == set(range(7))
    adapted, task_stats, _ = learner.adapt(params, stats, episode.support)
    logits = learner.predict(adapted, task_stats, episode.query.inputs)
    assert logits.shape == (14, 7)
    accuracies.append((logits.argmax(-1) == episode.query.targets).mean())
  np.testing.assert_allclose(result['accuracy'], np.mean(accuracies), rtol=1e-6)


@pytest.mark.parametrize(
  ('image_shape', 'stored'),
  [
    ((84, 84, 3), (168, 128)),
    ((28, 28, 1), (8, 128)),
    ((32, 32, 3), (24, 128)),
  ],
)
def test_tpus_store_images_in_whole_tiles(image_shape, stored):
  images = np.random.RandomState(0).randint(256, size=(5, *image_shape))
  images = images.astype(np.uint8)
  storage = image_storage(image_shape, 'tpu')
  packed = storage.pack(images)
  assert packed.shape == (5, *stored)
  assert packed.nbytes == storage.nbytes(5)
  positions = np.array([[4, 0, 4], [1, 2, 3]])
  taken = jax.jit(storage.take)(packed, positions)
  np.testing.assert_array_equal(taken, images[positions])


@pytest.mark.parametrize('platform', ['cpu', 'gpu'])
def test_cpus_and_gpus_store_images_as_they_are(platform):
  images = np.zeros((5, 28, 28, 1), np.uint8)
  storage = image_storage((28, 28, 1), platform)
  assert storage.pack(images) is images
  assert storage.nbytes(5) == images.nbytes
  assert storage.take(images, np.array([2, 1])).shape == (2, 28, 28, 1)


def test_padding_counts_when_images_are_placed(small, monkeypatch):
  config, dataset = small_run.config(), small_run.dataset()
  sharding = setup.eval_sharding(config)
  seen = []
  monkeypatch.setattr(
    type(sharding), 'fits_in_memory', lambda _, n: seen.append(n) or True
  )
  for platform in ('cpu', 'tpu'):
    monkeypatch.setattr(task_source, 'mesh_platform', lambda _, p=platform: p)
    task_source.choose_placement(config, sharding, dataset)
  assert seen == [len(dataset.images) * 784, len(dataset.images) * 1024]


def test_training_tasks_do_not_depend_on_the_storage(small, monkeypatch):
  config = small_run.config()
  sharding = setup.eval_sharding(config)
  episodes = []
  for platform in ('cpu', 'tpu'):
    monkeypatch.setattr(task_source, 'mesh_platform', lambda _, p=platform: p)
    tasks = task_source.train_tasks(config, sharding)
    key = jax.random.key(0)
    episodes.append(jax.jit(tasks.sample_episode)(key, tasks.shared))
  assert tasks.shared.images.shape[1:] == (8, 128)
  jax.tree.map(np.testing.assert_array_equal, *episodes)
