"""Cases recorded from PyTorch-MAML in float64, compared under jit.

Reads every *.json of the folder named by MAML_JAX_GOLDEN, by default
tests/golden. How inputs follow from a case is written there in README.md.
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
  cross_entropy,
  make_learner,
  meta_gradient,
)
from maml_jax.models import make_model
from maml_jax.pytorch_maml.weights import (
  ENCODERS,
  our_layout,
  our_path,
  torch_layout,
  unflatten,
)

FOLDER = Path(
  os.environ.get('MAML_JAX_GOLDEN') or Path(__file__).parent / 'golden'
)
CASES = sorted(FOLDER.glob('*.json'))


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def random_state(text, seed=0):
  return np.random.RandomState((zlib.crc32(text.encode()) ^ seed) & 0xFFFFFFFF)


def value(name, shape, seed, temperature):
  r = random_state(name, seed)
  if name.endswith('temp'):
    return np.float64(temperature)
  if len(shape) > 1:
    return r.randn(*shape) * np.sqrt(2 / np.prod(shape[1:]))
  if name.endswith('weight'):
    return 1 + 0.1 * r.randn(*shape)
  return 0.1 * r.randn(*shape)


def get(tree, path):
  for key in path:
    tree = tree[key]
  return tree


# The inputs of a case


def episodes(case, step):
  e = case['episodes']
  r = np.random.RandomState(e['seed'] + step)

  def batch(per_class):
    n, side = e['n_way'] * per_class, e['image_size']
    image = r.rand(e['n_episode'], n, 3, side, side).transpose(0, 1, 3, 4, 2)
    label = np.repeat(np.arange(e['n_way']), per_class)
    return Batch(jnp.array(image), jnp.tile(jnp.array(label), (len(image), 1)))

  support = batch(e['n_shot'])
  return Episode(support, batch(e['n_query']))


def norm_modes(bn_args):
  if not bn_args.get('track_running_stats', True):
    return 'batch'
  mode = 'tasknorm' if bn_args.get('alpha') else 'episodic'
  if bn_args.get('momentum', 0.1) is None:  # PyTorch's cumulative average
    mode = 'cumulative'
  layers = bn_args.get('episodic') or ()
  return (*((layer, mode) for layer in layers), ('*', 'global'))


def frozen_patterns(substrings, names):
  """The exact paths of the parameters that the substrings catch there."""
  return tuple(
    '/'.join(our_path(name))
    for name in names
    if any(s in name for s in substrings)
  )


def build(case, names):
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
    first_order=inner.get('first_order', False),
    frozen=frozen_patterns(inner.get('frozen', ()), names),
    reset_classifier=inner.get('reset_classifier', False),
  )
  return model, make_learner(model, config)


# Comparisons


def check(ours, expected, norm=0.0):
  ours, expected = np.asarray(ours), np.asarray(expected)
  scale = np.maximum(np.maximum(1, np.abs(expected)), norm)
  np.testing.assert_array_less(
    np.abs(ours - expected), 1e-6 * scale + np.finfo(np.float64).tiny
  )


def check_tensor(key, x, expected):
  norm = expected['norm']
  x = np.asarray(x).reshape(-1)
  direction = random_state('direction:' + key).randn(x.size)
  check(np.linalg.norm(x), norm, norm)
  check(x @ direction, expected['dot'], norm)
  check(x[:8], expected['head'], norm)


def test_there_are_cases():
  assert CASES, f'no *.json in {FOLDER}'


@pytest.mark.parametrize('path', CASES, ids=[p.stem for p in CASES])
def test_golden(path):
  record = json.loads(path.read_text())
  case, expect = record['case'], record['expect']
  shapes = expect['parameter_shapes']
  model, learner = build(case, shapes)
  like, stats = jax.tree.map(
    lambda x: jnp.asarray(x, jnp.float64), model.init(jax.random.key(0))
  )
  width = next(
    x.shape[-1] for x in jax.tree.leaves(like['encoder'])[::-1] if x.ndim == 4
  )
  features = shapes['classifier.linear.weight'][1]
  channels = width if features % width == 0 else features
  temperature = case['model']['classifier_args'].get('temp', 1.0)
  params = unflatten(
    {
      our_path(name): jnp.array(
        our_layout(
          np.asarray(value(name, shape, case['model']['seed'], temperature)),
          channels,
        )
      )
      for name, shape in shapes.items()
    }
  )
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, like)

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

  logits, loss, grads, stats_after = outer(params, stats, episodes(case, 0))
  check(logits, expect['logits'])
  check(loss, [expect['loss']] * 2)
  for name, expected in expect.get('grads', {}).items():
    grad = np.asarray(get(grads, our_path(name)))
    if expected is None:
      assert not grad.any(), name
    else:
      check_tensor(name, torch_layout(grad, channels), expected)
  if case.get('outer'):
    stats_after = check_outer(
      case, expect, learner, outer, params, stats, channels
    )
  for name, expected in expect.get('running_stats_after', {}).items():
    got = get(stats_after['global'], our_path(name))
    check_tensor('stats:' + name, got, expected)


def check_outer(case, expect, learner, outer, params, stats, channels):
  """Runs the outer steps; returns the statistics after them."""
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
    _, (loss, _), grads, after = outer(params, stats, episodes(case, step))
    stats = {k: after[k] if k == 'global' else v for k, v in stats.items()}
    updates, opt_state = tx.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    losses.append(loss)
  check(losses, expect['outer_losses'])
  for name, expected in expect['params_after'].items():
    x = torch_layout(np.asarray(get(params, our_path(name))), channels)
    check_tensor('after:' + name, x, expected)
  return stats
