"""Tests that the examples run and learn, with few iterations."""

import importlib
import pathlib
import re
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import scipy.integrate
from flax import nnx

from maml_jax.learner import (
  Batch,
  Episode,
  InnerConfig,
  cross_entropy,
  make_learner,
)
from maml_jax.types import Dataset

pytestmark = pytest.mark.slow

FOLDER = pathlib.Path(__file__).parent.parent / 'examples'
NAMES = sorted(path.stem for path in FOLDER.glob('*.py'))
IMPORTED = {'gallery', 'on_glyphs'}  # run as part of other examples


@pytest.fixture(autouse=True)
def import_example(monkeypatch):
  """Returns a function that imports an example by name.

  Ranks may be promoted, as by default in JAX.
  """
  monkeypatch.syspath_prepend(str(FOLDER))
  with jax.numpy_rank_promotion('allow'):
    yield importlib.import_module
  for name in NAMES:
    sys.modules.pop(name, None)


def test_every_example_is_tested():
  source = pathlib.Path(__file__).read_text()
  tested = set(re.findall(r"import_example\('(\w+)'\)", source))
  assert tested | IMPORTED == set(NAMES)


def test_sinusoid_learns(import_example):
  result = import_example('sinusoid').main(steps=3000)
  learned = result['learned initialization, 1 step']
  assert learned < result['learned initialization, 0 steps'] / 2
  assert learned < result['random initialization, 10 steps'] / 3


def test_sensors_learns(import_example):
  result = import_example('sensors').main(steps=800, num_tasks=200)
  assert result['after 3 steps'] < result['after 0 steps'] - 0.1
  assert result['after 3 steps'] < result['one distribution for all'] - 0.2


def test_linen_network_learns(import_example, glyphs, monkeypatch):
  monkeypatch.setenv('MAML_JAX_DATA', str(glyphs))
  result = import_example('linen_network').main(steps=60, width=8)
  (random, interval), (learned, _) = result['random'], result['learned']
  assert learned > random + 2 * interval


def test_nnx_network_learns(import_example, glyphs, monkeypatch):
  monkeypatch.setenv('MAML_JAX_DATA', str(glyphs))
  state, result = import_example('nnx_network').main(steps=60, width=8)
  (random, interval), (learned, _) = result['random'], result['learned']
  assert learned > random + 2 * interval


def test_oscillator_learns(import_example, tmp_path):
  module, figure = import_example('oscillator'), tmp_path / 'figure.png'
  errors = module.main(100, num_tasks=8, adam_steps=(5,), output=figure)
  learned = errors['step 5'].mean()
  assert learned < errors['step 0'].mean() - 0.02
  assert learned < errors['random start, 5 steps of Adam'].mean() - 0.02
  assert_is_picture(figure)


def test_oscillator_solves_its_equation(import_example):
  """Compares the targets with numerical integration."""
  task = import_example('oscillator').sample_episode(jax.random.key(0), ())
  t, zeta, omega, u0, v0 = (
    np.asarray(task.query.inputs[name], np.float64)
    for name in ('t', 'zeta', 'omega', 'u0', 'v0')
  )
  solution = scipy.integrate.solve_ivp(
    lambda t, y: (y[1], -2 * zeta * omega * y[1] - omega**2 * y[0]),
    (t[0], t[-1]),
    (u0, v0),
    t_eval=t,
    rtol=1e-8,
  )
  np.testing.assert_allclose(task.query.targets, solution.y[0], atol=1e-4)
  assert not task.support.targets


def test_neural_field_learns(import_example, glyphs, monkeypatch, tmp_path):
  monkeypatch.setenv('MAML_JAX_DATA', str(glyphs))
  module, figure = import_example('neural_field'), tmp_path / 'figure.png'
  monkeypatch.setattr(module, 'WIDTH', 32)
  scores = module.main(60, num_tasks=8, adam_steps=(3,), output=figure)
  learned = scores['step 3'].mean()
  assert learned > scores['step 0'].mean() + 1
  assert learned > scores['Adam, 3'].mean() + 1
  assert_is_picture(figure)


def test_segmentation_learns(import_example, glyphs, monkeypatch, tmp_path):
  monkeypatch.setenv('MAML_JAX_DATA', str(glyphs))
  module, figure = import_example('segmentation'), tmp_path / 'figure.png'
  monkeypatch.setattr(module, 'WIDTH', 8)
  monkeypatch.setattr(module, 'RATES', (1e-2,))
  scores = module.main(60, num_tasks=6, shots=(5,), output=figure)
  means = {name: x.mean() for name, x in scores[5].items()}
  assert means['learned start, 3 steps'] > means['no adaptation'] + 0.05
  assert means['random start, 50 steps of Adam'] > 0.05
  assert_is_picture(figure)


def test_segmentation_masks_only_the_target(import_example):
  """Each image is uniform, with the number of its class as value."""
  module = import_example('segmentation')
  classes = np.arange(10)
  images = np.broadcast_to(
    (100 + classes[:, None, None, None]).astype(np.uint8), (10, 28, 28, 1)
  )
  dataset = Dataset(
    *map(jnp.asarray, (images, classes[:, None], classes * 0 + 1))
  )
  scene, mask = module.sample_scene(jax.random.key(0), dataset, 3)
  np.testing.assert_array_equal(mask, (scene[..., 0] * 255).round() == 103)


def test_interval_and_rate_of_the_baseline(import_example, capsys):
  """Adam minimizes (x - target)^2 on each task, from 0."""
  gallery = import_example('gallery')
  target = np.array([0.5, 2.0], np.float32)
  tasks = Episode(Batch(target, ()), Batch(target, target))

  def loss(params, stats, support):
    return (params - support.inputs) ** 2, stats

  def apply(params, stats, inputs, *, train):
    return params, stats

  def score(outputs, targets):
    return -abs(outputs - targets)

  args = loss, apply, (1e-3, 0.1, 1e3), 60, tasks, tasks, score
  outputs = gallery.fit_tuned(*args, jnp.zeros(()))
  assert capsys.readouterr().out.endswith(': 0.1\n')
  np.testing.assert_allclose(outputs, target, atol=0.05)
  gallery.print_intervals({'error': np.array([1.0, 2.0, 3.0])}, 'dB')
  assert capsys.readouterr().out.split() == [
    'error',
    '2.000',
    '±',
    '2.484',
    'dB',
  ]


def assert_is_picture(path):
  """Checks that the file is small enough to be committed, and not empty."""
  with PIL.Image.open(path) as image:
    assert image.width > 400 and image.height > 200
    assert len(image.convert('L').getcolors()) > 30
  assert path.stat().st_size < 100_000


def test_inner_loop_updates_statistics_like_nnx(import_example):
  """Compares with a loop that trains the NNX module itself."""
  module = import_example('nnx_network')
  model = module.make_model(width=4)
  rng = np.random.default_rng(0)
  support = Batch(rng.random((5, 28, 28, 1), np.float32), np.arange(5))
  params, stats = model.init(jax.random.key(0))
  inner = InnerConfig(num_steps=2, encoder_lr=0.1, classifier_lr=0.1)
  learner = make_learner(model, inner)
  adapted, new_stats, losses = jax.jit(learner.adapt)(params, stats, support)

  network = module.Network(nnx.Rngs(jax.random.key(0)), width=4)

  def loss(network):
    return cross_entropy(network(support.inputs, train=True), support.targets)

  loss_and_grad = nnx.jit(nnx.value_and_grad(loss))
  for expected in losses:
    value, grads = loss_and_grad(network)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    before = nnx.state(network, nnx.Param)
    nnx.update(network, jax.tree.map(lambda p, g: p - 0.1 * g, before, grads))
  for actual, kind in (adapted, nnx.Param), (new_stats, nnx.BatchStat):
    expected = nnx.to_pure_dict(nnx.state(network, kind))
    jax.tree.map(
      partial(np.testing.assert_allclose, atol=1e-4), actual, expected
    )
  changed = jax.tree.map(lambda x, y: bool((x != y).all()), stats, new_stats)
  assert all(jax.tree.leaves(changed))
