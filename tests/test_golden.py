"""Compares maml_jax with results recorded from PyTorch-MAML, in float64.

Reads all *.json files in the directory $MAML_JAX_GOLDEN, by default
tests/golden. The README.md there documents how inputs are generated.
"""

import json
import os
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maml_jax.experiment.optimizers import make_optimizer
from maml_jax.learner import (
  Batch,
  Episode,
  InnerConfig,
  OuterConfig,
  cross_entropy,
  make_learner,
  meta_gradient,
)
from maml_jax.models import make_model
from maml_jax.pytorch_maml.weights import (
  ENCODERS,
  jax_layout,
  jax_path,
  torch_layout,
  unflatten,
)

FOLDER = Path(
  os.environ.get('MAML_JAX_GOLDEN') or Path(__file__).parent / 'golden'
)
CASES = sorted(FOLDER.glob('*.json'))
# Cases of this project that take the longest.
SLOW_CASES = (
  'convnet4_episodic_momentum_wd',
  'convnet4_episodic_part',
  'convnet4_episodic_test',
  'convnet4_global_stats',
  'convnet4_global_stats_test',
  'convnet4_learned_temperature',
  'convnet4_outer_adam',
  'convnet4_outer_sgd',
  'convnet4_transductive_all',
  'resnet12_transductive',
  'resnet18_episodic',
  'wide_convnet4_3way_2shot',
)


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def random_state(text, seed=0):
  return np.random.RandomState((zlib.crc32(text.encode()) ^ seed) & 0xFFFFFFFF)


def make_tensor(name, shape, seed, temperature):
  """Returns the initial value of a parameter of PyTorch-MAML."""
  r = random_state(name, seed)
  if name.endswith('temp'):
    return np.float64(temperature)
  if len(shape) > 1:
    return r.randn(*shape) * np.sqrt(2 / np.prod(shape[1:]))
  if name.endswith('weight'):
    return 1 + 0.1 * r.randn(*shape)
  return 0.1 * r.randn(*shape)


def get_leaf(tree, path):
  for key in path:
    tree = tree[key]
  return tree


# The inputs of a case


def make_episodes(case, step):
  """Returns the episodes of an outer step, with a leading axis T."""
  e = case['episodes']
  r = np.random.RandomState(e['seed'] + step)

  def batch(per_class):
    n, side = e['n_way'] * per_class, e['image_size']
    images = r.rand(e['n_episode'], n, 3, side, side).transpose(0, 1, 3, 4, 2)
    targets = jnp.repeat(jnp.arange(e['n_way']), per_class)
    return Batch(jnp.array(images), jnp.tile(targets, (len(images), 1)))

  support = batch(e['n_shot'])
  return Episode(support, batch(e['n_query']))


def norm_modes(bn_args):
  """Returns the `norm` of `make_model` for PyTorch-MAML's `bn_args`."""
  if not bn_args.get('track_running_stats', True):
    return 'batch'
  mode, global_mode = 'episodic', 'global'
  if bn_args.get('alpha'):
    mode, global_mode = 'tasknorm', 'tasknorm_global'
  if bn_args.get('momentum', 0.1) is None:  # PyTorch's cumulative average
    mode = 'cumulative'
  layers = bn_args.get('episodic') or ()
  return (*((layer, mode) for layer in layers), ('*', global_mode))


def frozen_patterns(substrings, names):
  """Returns the paths of the parameters whose name contains a substring."""
  return tuple(
    '/'.join(jax_path(name))
    for name in names
    if any(s in name for s in substrings)
  )


def make_model_and_learner(case, names):
  model_args, inner = case['model'], case['inner']
  bn_args = model_args['bn_args']
  side = case['episodes']['image_size']
  encoder = model_args['encoder']
  classifier_args = model_args['classifier_args']
  model = make_model(
    ENCODERS[encoder],
    case['episodes']['n_way'],
    (side, side, 3),
    norm=norm_modes(bn_args),
    meta_test=not case['meta_train'],
    norm_momentum=1 - (bn_args.get('momentum', 0.1) or 0.1),
    norm_eps=bn_args.get('eps', 1e-5),
    temperature=classifier_args.get('temp', 1.0),
    learn_temperature=classifier_args.get('learn_temp', False),
  )
  config = InnerConfig(
    num_steps=inner['n_step'],
    encoder_lr=inner['encoder_lr'],
    classifier_lr=inner['classifier_lr'],
    momentum=inner.get('momentum', 0.0),
    weight_decay=inner.get('weight_decay', 0.0),
    frozen=frozen_patterns(inner.get('frozen', ()), names),
    head='zero' if inner.get('reset_classifier', False) else 'learned',
  )
  is_first_order = inner.get('first_order', False)
  outer = OuterConfig('first_order' if is_first_order else 'exact')
  return model, make_learner(model, config, outer)


# Comparisons


def assert_close(actual, expected, norm=0.0):
  """Compares numbers as described in golden/README.md."""
  actual, expected = np.asarray(actual), np.asarray(expected)
  scale = np.maximum(np.maximum(1, np.abs(expected)), norm)
  np.testing.assert_array_less(
    np.abs(actual - expected), 1e-6 * scale + np.finfo(np.float64).tiny
  )


def assert_tensor_close(key, x, expected):
  """Compares a tensor with its recorded norm, projection and first entries."""
  norm = expected['norm']
  x = np.asarray(x).reshape(-1)
  direction = random_state('direction:' + key).randn(x.size)
  assert_close(np.linalg.norm(x), norm, norm)
  assert_close(x @ direction, expected['dot'], norm)
  assert_close(x[:8], expected['head'], norm)


def test_golden_directory_has_cases():
  assert CASES, f'no *.json files in {FOLDER}'


@pytest.mark.parametrize(
  'path',
  [
    pytest.param(
      path,
      id=path.stem,
      marks=pytest.mark.slow if path.stem in SLOW_CASES else (),
    )
    for path in CASES
  ],
)
def test_results_equal_those_of_pytorch_maml(path):
  record = json.loads(path.read_text())
  case, expect = record['case'], record['expect']
  shapes = expect['parameter_shapes']
  model, learner = make_model_and_learner(case, shapes)
  initial_params, stats = jax.tree.map(
    lambda x: jnp.asarray(x, jnp.float64), model.init(jax.random.key(0))
  )
  width = next(
    x.shape[-1]
    for x in jax.tree.leaves(initial_params['encoder'])[::-1]
    if x.ndim == 4
  )
  features = shapes['classifier.linear.weight'][1]
  channels = width if features % width == 0 else features
  temperature = case['model']['classifier_args'].get('temp', 1.0)
  params = unflatten(
    {
      jax_path(name): jnp.array(
        jax_layout(
          np.asarray(
            make_tensor(name, shape, case['model']['seed'], temperature)
          ),
          channels,
        )
      )
      for name, shape in shapes.items()
    }
  )
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(
    jnp.shape, initial_params
  )

  @jax.jit
  def outer(params, stats, episodes):
    def one_task(episode):
      adapted, after, _ = learner.adapt(params, stats, episode.support)
      return learner.predict(adapted, after, episode.query.inputs), after

    logits, after = jax.lax.map(one_task, episodes)
    loss = cross_entropy(
      logits.reshape(-1, logits.shape[-1]), episodes.query.targets.reshape(-1)
    )
    grads, losses = None, loss
    if case['meta_train']:
      grads, _, metrics = meta_gradient(
        learner, params, stats, episodes, tasks_per_chunk=1
      )
      losses = metrics['loss']
    after = jax.tree.map(lambda x: x.mean(0), after)
    return logits, (loss, losses.mean()), grads, after

  logits, loss, grads, stats_after = outer(
    params, stats, make_episodes(case, 0)
  )
  assert_close(logits, expect['logits'])
  assert_close(loss, [expect['loss']] * 2)
  for name, expected in expect.get('grads', {}).items():
    grad = np.asarray(get_leaf(grads, jax_path(name)))
    if expected is None:
      assert not grad.any(), name
    else:
      assert_tensor_close(name, torch_layout(grad, channels), expected)
  if case.get('outer'):
    stats_after = run_outer_loop(
      case, expect, learner, outer, params, stats, channels
    )
  for name, expected in expect.get('running_stats_after', {}).items():
    actual = get_leaf(stats_after['global'], jax_path(name))
    assert_tensor_close('stats:' + name, actual, expected)


def run_outer_loop(case, expect, learner, outer, params, stats, channels):
  """Compares losses and params of an outer loop; returns the final stats."""
  settings = case['outer']
  tx = make_optimizer(
    settings['optimizer'],
    settings['lr'],
    weight_decay=settings['weight_decay'],
    clip_value=settings['clip'],
  )
  params = learner.reset_head(params)
  opt_state, losses = tx.init(params), []
  for step in range(settings['n_step']):
    params = learner.reset_head(params)
    _, (loss, _), grads, after = outer(params, stats, make_episodes(case, step))
    stats = {k: after[k] if k == 'global' else v for k, v in stats.items()}
    updates, opt_state = tx.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    losses.append(loss)
  assert_close(losses, expect['outer_losses'])
  for name, expected in expect['params_after'].items():
    x = torch_layout(np.asarray(get_leaf(params, jax_path(name))), channels)
    assert_tensor_close('after:' + name, x, expected)
  return stats
