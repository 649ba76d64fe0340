"""Tests that the examples run and learn, with few iterations."""

import importlib
import pathlib
import re
import sys
from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from maml_jax.learner import Batch, InnerConfig, cross_entropy, make_learner

pytestmark = pytest.mark.slow

FOLDER = pathlib.Path(__file__).parent.parent / 'examples'
NAMES = sorted(path.stem for path in FOLDER.glob('*.py'))
IMPORTED = {'on_glyphs'}  # runs as part of other examples


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
