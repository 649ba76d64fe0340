"""Compares programs of methods with op-by-op execution: `make test-methods`.

Not part of `make test-all`, because it takes long: golden files and smaller
models check the same there.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_cases import CASES, Case

from maml_jax import config as config_lib
from maml_jax.experiment import setup
from maml_jax.learner import Batch, Episode, meta_gradient
from maml_jax.methods import METHODS
from maml_jax.sharding import make_mesh

NUM_TASKS, SHOTS, QUERIES = 2, 2, 2


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def make_episodes(ways):
  r = np.random.RandomState(0)

  def batch(per_class):
    images = r.rand(NUM_TASKS, ways * per_class, 28, 28, 1)
    labels = np.tile(np.repeat(np.arange(ways), per_class), (NUM_TASKS, 1))
    return Batch(jnp.array(images), jnp.array(labels))

  support = batch(SHOTS)
  return Episode(support, batch(QUERIES))


def assert_close(a, b, tolerance):
  jax.tree.map(
    partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), a, b
  )


@pytest.mark.parametrize('name', METHODS)
def test_preset_is_right_jitted_rematerialized_and_on_two_devices(name):
  config = config_lib.load(name, ['--data.name=glyphs', '--model.width=4'])
  config.inner.num_steps = min(config.inner.num_steps, 3)
  config.inner.eps_root = 1e-4  # derivatives of Adam are large near 0
  phase = setup.train_phase(config)
  remat = config.inner.remat

  def gradient(params, stats, epoch=0, mesh=None, remat=remat):
    config.inner.remat = remat
    learner = setup.phase_learner(config, phase)
    grads, stats, metrics = meta_gradient(
      learner, params, stats, episodes, epoch=epoch, mesh=mesh
    )
    return grads, stats, metrics

  episodes = make_episodes(phase.ways)
  params, stats = setup.phase_learner(config, phase).init(jax.random.key(0))
  r = np.random.RandomState(1)
  params, stats = jax.tree.map(
    lambda x: jnp.asarray(x, jnp.float64), (params, stats)
  )
  # Noise, because initial values of 0 and 1 could hide errors.
  params = jax.tree.map(lambda x: x + 0.01 * r.randn(*x.shape), params)
  jitted = jax.jit(gradient)(params, stats)
  grads = jitted[0]
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(jitted))
  for part in grads.get('inner', grads['encoder']).values():
    assert any(np.abs(x).max() > 0 for x in jax.tree.leaves(part))
  other_remat = jax.jit(partial(gradient, remat=not remat))(params, stats)
  assert_close(other_remat, jitted, 1e-10)
  mesh = make_mesh(jax.devices()[:NUM_TASKS])
  assert_close(
    jax.jit(partial(gradient, mesh=mesh))(params, stats), jitted, 1e-10
  )
  with jax.disable_jit():
    assert_close(gradient(params, stats), jitted, 1e-8)


@pytest.mark.parametrize('file', CASES, ids=lambda file: file.stem)
def test_golden_case_equals_op_by_op(file):
  case = Case(file)
  case.inner['num_steps'] = min(case.inner['num_steps'], 4)

  def gradient(**inner):
    learner = case.learner(**inner)
    return meta_gradient(
      learner, case.params, {}, case.episodes, epoch=case.epoch
    )

  jitted = jax.jit(gradient)()
  with jax.disable_jit():
    assert_close(gradient(), jitted, 1e-11)
  if case.outer.gradient == 'exact':
    mixed = jax.jit(lambda: gradient(mixed_mode=True))()
    assert_close(mixed, jitted, 1e-12)
