"""Pre-training on all classes: the loss, the batches, devices and resuming."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import small_run

from maml_jax import config as config_lib
from maml_jax.evaluation.evaluate import evaluate
from maml_jax.experiment import checkpoint, metrics_log, setup, task_source
from maml_jax.experiment.pretraining import cosine_logits, pretraining_learner
from maml_jax.experiment.transfer import transfer_params
from maml_jax.learner import Batch, Episode
from maml_jax.methods import with_pretraining
from maml_jax.sharding import DeviceLayout, TaskSharding, make_mesh
from maml_jax.train import train
from maml_jax.utils.errors import UserError

NUM_CLASSES = 8  # of `small_run.dataset`


@pytest.fixture
def small(monkeypatch, tmp_path):
  small_run.use(monkeypatch, tmp_path / 'cache')


def make_config(**fields):
  flags = {'pretrain__batch_size': 4, 'train__meta_batch_size': 8, **fields}
  config = with_pretraining(small_run.config())
  return config_lib.override(
    config, small_run.flags(**flags, eval__num_steps=0)
  )


@pytest.mark.parametrize('head', ['cosine', 'linear'])
def test_loss_is_smoothed_cross_entropy_of_all_classes(small, head):
  config = make_config(pretrain__head=head, model__temperature=5.0)
  learner = pretraining_learner(config, NUM_CLASSES)
  params, stats = learner.init(jax.random.key(0))
  r = np.random.RandomState(0)
  images = np.float32(r.rand(6, 28, 28, 1))
  labels = np.array([0, 7, 3, 3, 1, 5], np.int32)
  model = setup.phase_model(
    config, setup.train_phase(config)._replace(ways=NUM_CLASSES)
  )
  features, expected_stats = model.features(params, stats, images, train=True)
  features = np.float64(features)
  kernel = np.float64(params['classifier']['kernel'])
  if head == 'cosine':
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    kernel /= np.linalg.norm(kernel, axis=0)
    logits = 5 * features @ kernel
  else:
    logits = features @ kernel  # the small model has no temperature
  log_p = scipy.special.log_softmax(logits, 1)
  targets = 0.9 * np.eye(NUM_CLASSES)[labels] + 0.1 / NUM_CLASSES
  episode = Episode((), Batch(images, labels))
  loss, (stats, metrics) = jax.jit(learner.loss)(params, stats, episode)
  np.testing.assert_allclose(loss, -(targets * log_p).sum(1).mean(), rtol=1e-5)
  expected = (logits.argmax(1) == labels).mean()
  np.testing.assert_allclose(metrics['accuracy'], expected, rtol=1e-6)
  jax.tree.map(
    partial(np.testing.assert_allclose, rtol=1e-5), stats, expected_stats
  )


def test_batches_contain_labeled_images_of_all_classes(small):
  config = make_config(pretrain__batch_size=50, data__augment_query='none')
  dataset = small_run.dataset()
  sharding = TaskSharding(make_mesh(), 1)
  tasks, num_classes = task_source.class_batches(config, sharding)
  assert num_classes == NUM_CLASSES
  sample = jax.jit(tasks.sample_episode)
  labels = []
  for key in jax.random.split(jax.random.key(0), 20):
    episode = sample(key, tasks.shared)
    assert episode.support == ()
    images, targets = map(np.asarray, episode.query)
    for image, label in zip(images, targets, strict=True):
      rows = dataset.index[label][: dataset.size[label]]
      same = dataset.images[rows] == np.rint(255 * image)
      assert same.all((1, 2, 3)).any()
    labels.extend(targets)
  counts = np.bincount(labels, minlength=NUM_CLASSES)
  expected = len(labels) * dataset.size / dataset.size.sum()
  assert np.abs(counts - expected).max() < 4 * np.sqrt(expected.max())


@pytest.mark.parametrize('fields', [{}, {'data__placement': 'host'}], ids=str)
def test_resume_is_bit_exact(small, tmp_path, fields):
  train(make_config(), tmp_path / 'a')
  train(make_config(train__num_epochs=1, **fields), tmp_path / 'b')
  assert train(make_config(**fields), tmp_path / 'b') == 0
  a, b = (checkpoint.load(tmp_path / name, 'latest') for name in 'ab')
  jax.tree.map(np.testing.assert_array_equal, a[2:6], b[2:6])
  records = [metrics_log.read_records(tmp_path / name) for name in 'ab']
  for record in records[0] + records[1]:
    record.pop('seconds', None)
  assert records[0] == records[1]


def test_results_do_not_depend_on_devices(small, tmp_path, monkeypatch):
  for devices in (1, 8):
    monkeypatch.setattr(
      setup, 'choose_layout', lambda *_, n=devices, **__: DeviceLayout(n, 1)
    )
    train(make_config(), tmp_path / str(devices))
  one, eight = (checkpoint.load(tmp_path / n, 'latest') for n in ('1', '8'))
  assert np.abs(one.params['encoder']['kernel']).max() > 0
  jax.tree.map(
    partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
    one[2:6],
    eight[2:6],
  )


def test_encoder_is_evaluated_and_meta_trained(small, tmp_path):
  config = make_config(
    train__num_epochs=8, outer__lr=0.001, data__augment_query='none'
  )
  assert train(config, tmp_path / 'pretrained') == 0
  records = metrics_log.read_records(tmp_path / 'pretrained')
  values = [r['accuracy'] for r in records if r['split'] == 'train']
  assert values[-1] > 0.9
  result = evaluate(config, tmp_path / 'pretrained')
  assert result['accuracy'] > 0.9 and result['num_steps'] == 0
  # The head has other outputs in meta-training.
  source = checkpoint.load(tmp_path / 'pretrained')
  assert source.params['classifier']['kernel'].shape == (8, NUM_CLASSES)
  maml = small_run.config(train__init_from=str(tmp_path / 'pretrained'))
  learner = setup.phase_learner(maml, setup.train_phase(maml))
  params, _ = transfer_params(learner, source.params, source.stats)
  jax.tree.map(
    np.testing.assert_array_equal, params['encoder'], source.params['encoder']
  )
  assert params['classifier']['kernel'].shape == (8, 3)
  assert train(maml, tmp_path / 'maml') == 0
  # A run cannot change what it trains.
  with pytest.raises(UserError, match='train.objective: classes -> tasks'):
    train(small_run.config(), tmp_path / 'pretrained')


def test_cosine_logits_have_finite_derivatives_at_zero():
  grads = jax.grad(lambda x: cosine_logits(x, jnp.ones((3, 2))).sum())(
    jnp.zeros((1, 3))
  )
  assert np.isfinite(grads).all()
