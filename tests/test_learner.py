"""Compares jitted meta-gradients and evaluations with op-by-op execution.

Compiled gradients have been wrong by 100 % without any error. Second order,
first order and evaluation are therefore compared with `jax.disable_jit`: task
by task, vectorized, in chunks and on eight devices.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from maml_jax import sharding
from maml_jax.learner import (
  Batch,
  Episode,
  InnerConfig,
  OuterConfig,
  make_learner,
  meta_gradient,
)
from maml_jax.models import ENCODERS, make_model
from maml_jax.models.convnet import ConvBlock, ConvNet4
from maml_jax.models.norm import MODES
from maml_jax.sharding import (
  DeviceLayout,
  choose_layout,
  make_mesh,
  map_tasks,
  require_divisible,
)
from maml_jax.utils.errors import UserError

WAYS, SHOTS, QUERIES, SIDE = 3, 2, 2, 16
LAYOUTS = {
  'vmap': {},
  'chunks of 1': {'tasks_per_chunk': 1},
  'chunks of 2': {'tasks_per_chunk': 2},
  '8 devices': {'devices': 8},
  '2 devices, chunks of 2': {'devices': 2, 'tasks_per_chunk': 2},
}
KINDS = {
  'second order': {},
  'first order': {'gradient': 'first_order'},
  'evaluation': {'num_steps': 3},
}
INNER = {
  'num_steps': 2,
  'encoder_lr': 0.05,
  'classifier_lr': 0.1,
  'momentum': 0.5,
  'weight_decay': 0.01,
}


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def make_episodes(num_tasks=8):
  """Returns episodes of random images."""
  r = np.random.RandomState(0)

  def batch(per_class):
    images = r.rand(num_tasks, WAYS * per_class, SIDE, SIDE, 3)
    labels = np.tile(np.repeat(np.arange(WAYS), per_class), (num_tasks, 1))
    return Batch(jnp.array(images), jnp.array(labels))

  support = batch(SHOTS)
  return Episode(support, batch(QUERIES))


def first_episode():
  return jax.tree.map(lambda x: x[0], make_episodes(1))


@functools.cache
def build_learner(
  norm='batch',
  meta_test=False,
  encoder='convnet4',
  gradient='exact',
  **inner,
):
  """Returns a learner with parameters and statistics."""
  model = make_model(
    encoder, WAYS, (SIDE, SIDE, 3), norm=norm, width=4, meta_test=meta_test
  )
  params, stats = model.init(jax.random.key(0))
  # Noise, because initial values of 0 and 1 could hide errors.
  noise = np.random.RandomState(1)
  params, stats = jax.tree.map(
    lambda x: (
      jnp.abs(x + 0.1 * noise.randn(*x.shape))
      if x.shape and x.min() >= 0
      else jnp.asarray(x + 0.1 * noise.randn(*x.shape))
    ),
    (params, stats),
  )
  config = InnerConfig(**INNER | inner)
  learner = make_learner(model, config, OuterConfig(gradient))
  return learner, params, stats


def make_program(kind, learner, devices=None, tasks_per_chunk=None):
  """Returns `fn(params, stats, episodes)`: a meta-gradient or an evaluation."""
  mesh = make_mesh(jax.devices()[:devices]) if devices else None
  if kind != 'evaluation':
    return lambda params, stats, episodes: meta_gradient(
      learner,
      params,
      stats,
      episodes,
      mesh=mesh,
      tasks_per_chunk=tasks_per_chunk,
    )

  def evaluate_task(shared, episode):
    return learner.loss(*shared, episode)[1][1]

  over_tasks = map_tasks(evaluate_task, mesh, tasks_per_chunk)
  return lambda params, stats, episodes: over_tasks((params, stats), episodes)


def run_op_by_op(kind, learner, *args):
  with jax.disable_jit():
    return make_program(kind, learner, tasks_per_chunk=1)(*args)


@functools.cache
def reference(kind):
  """Returns the results of op-by-op execution."""
  return run_op_by_op(kind, *build_learner(**KINDS[kind]), make_episodes())


def assert_close(got, expected, tolerance=1e-9):
  def check(x, y):
    x, y = np.asarray(x), np.asarray(y)
    scale = max(1.0, np.abs(y).max(initial=0))
    np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * scale)

  jax.tree.map(check, got, expected)


# A worker that runs one of a kind also runs it op by op, which takes longest.
FAST_PROGRAMS = {('first order', 'chunks of 2'), ('evaluation', '8 devices')}


@pytest.mark.parametrize(
  'kind, layout',
  [
    pytest.param(
      kind,
      layout,
      marks=[] if (kind, layout) in FAST_PROGRAMS else [pytest.mark.slow],
    )
    for kind in KINDS
    for layout in LAYOUTS
  ],
)
def test_jitted_equals_op_by_op(kind, layout):
  learner, params, stats = build_learner(**KINDS[kind])
  run = jax.jit(make_program(kind, learner, **LAYOUTS[layout]))
  assert_close(run(params, stats, make_episodes()), reference(kind))


class OneBlock(ConvNet4):
  """The first block of ConvNet4, which compiles fast."""

  @nn.compact
  def __call__(self, x, *, train):
    block = ConvBlock(self.width, self.norm('conv1'), self.init)
    return block(x, train=train).mean((1, 2))


@pytest.mark.slow
@pytest.mark.parametrize(
  'mode, devices, inner',
  [
    ('batch', (1, 2, 4, 8), {}),
    *((mode, (1, 8), {}) for mode in MODES if mode != 'batch'),
    ('global', (1, 8), {'gradient': 'first_order'}),
    ('global', (1, 8), {'remat': True}),
    ('global', (1, 8), {'gradient': 'first_order', 'remat': True}),
  ],
)
def test_results_do_not_depend_on_number_of_devices(
  monkeypatch, mode, devices, inner
):
  """Compares gradients, statistics and the metrics of each task."""
  monkeypatch.setitem(ENCODERS, 'one_block', OneBlock)
  learner, params, stats = build_learner(mode, encoder='one_block', **inner)
  results = []
  for number in devices:
    run = jax.jit(
      make_program('second order', learner, devices=number, tasks_per_chunk=1)
    )
    results.append(run(params, stats, make_episodes()))
  for other in results[1:]:
    assert_close(other, results[0], 1e-13)


def test_all_reduce_of_accelerators_gives_the_same_results(monkeypatch):
  monkeypatch.setattr(sharding, 'uses_all_gather', lambda mesh: False)
  learner, params, stats = build_learner()
  run = jax.jit(make_program('second order', learner, devices=8))
  assert_close(run(params, stats, make_episodes()), reference('second order'))


# All norm modes, as those of the four layers of two networks.
LAYER_MODES = [
  tuple((f'conv{i}', mode) for i, mode in enumerate(modes, 1))
  for modes in (MODES[:4], MODES[4:] + ('batch',))
]


@pytest.mark.slow
@pytest.mark.parametrize('norm', LAYER_MODES, ids=str)
@pytest.mark.parametrize('meta_test', [False, True])
def test_jitted_equals_op_by_op_in_every_norm_mode(norm, meta_test):
  kind = 'evaluation' if meta_test else 'second order'
  learner, *state = build_learner(norm=norm, meta_test=meta_test)
  args = *state, make_episodes(4)
  # This layout vectorizes tasks and distributes them over devices.
  run = jax.jit(make_program(kind, learner, devices=2, tasks_per_chunk=2))
  assert_close(run(*args), run_op_by_op(kind, learner, *args))


@pytest.mark.slow
def test_float32_meta_gradient_equals_op_by_op():
  """Uses the default width and precision."""
  with jax.enable_x64(False):
    model = make_model('convnet4', WAYS, (28, 28, 3))
    params, stats = model.init(jax.random.key(0))
    learner = make_learner(model, InnerConfig(num_steps=1, frozen=('bn',)))
    r = np.random.RandomState(0)
    batch = Batch(
      jnp.array(r.rand(2, WAYS, 28, 28, 3), jnp.float32),
      jnp.tile(jnp.arange(WAYS), (2, 1)),
    )
    args = params, stats, Episode(batch, jax.tree.map(lambda x: x + 0, batch))
    run = make_program('second order', learner, tasks_per_chunk=1)
    compiled = jax.jit(run)(*args)
    with jax.disable_jit():
      assert_close(compiled, run(*args), 1e-3)


def test_mixed_mode_on_8_devices_equals_default_mode():
  learner, params, stats = build_learner(mixed_mode=True)
  run = jax.jit(make_program('second order', learner, devices=8))
  got = run(params, stats, make_episodes())
  assert_close(got, reference('second order'), 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize('norm', LAYER_MODES, ids=str)
def test_mixed_mode_equals_default_mode_in_every_norm_mode(norm):
  results = []
  for mixed_mode in (True, False):
    learner, params, stats = build_learner(
      norm=norm,
      mixed_mode=mixed_mode,
      frozen=('bn', 'conv3'),
      head='zero',
    )
    run = jax.jit(
      make_program('second order', learner, devices=2, tasks_per_chunk=2)
    )
    results.append(run(params, stats, make_episodes(4)))
  assert_close(*results, 1e-12)


@pytest.mark.slow
def test_mixed_mode_op_by_op_equals_default_mode():
  learner, params, stats = build_learner(mixed_mode=True, remat=False)
  got = run_op_by_op('second order', learner, params, stats, make_episodes())
  assert_close(got, reference('second order'), 1e-12)


@pytest.mark.parametrize(
  'gradient',
  ['first_order', pytest.param('exact', marks=pytest.mark.slow)],
)
def test_remat_and_unrolling_do_not_change_results(gradient):
  results = []
  for loop in ({}, {'remat': False}, {'remat': False, 'unroll': True}):
    learner, params, stats = build_learner(gradient=gradient, **loop)
    run = jax.jit(make_program('second order', learner, tasks_per_chunk=1))
    results.append(run(params, stats, make_episodes(1)))
  assert_close(results[0], results[1])
  assert_close(results[2], results[1])


@pytest.mark.slow
def test_meta_gradient_equals_finite_differences():
  """The step is so small that no ReLU or maximum switches."""
  learner, params, stats = build_learner()
  episode = first_episode()
  flat, unflatten = ravel_pytree(params)
  loss = jax.jit(lambda x: learner.loss(unflatten(x), stats, episode)[0])
  grad = jax.jit(jax.grad(loss))(flat)
  for seed in range(5):
    direction, step = np.random.RandomState(seed).randn(flat.size), 1e-8
    difference = loss(flat + step * direction) - loss(flat - step * direction)
    np.testing.assert_allclose(
      difference / (2 * step), grad @ direction, rtol=1e-6
    )


@pytest.mark.parametrize('mode', MODES)
def test_only_batch_mode_depends_on_other_query_images(mode):
  learner, params, stats = build_learner(norm=mode)
  episode = first_episode()
  params, stats, _ = learner.adapt(params, stats, episode.support)
  all_images = learner.predict(params, stats, episode.query.inputs)
  first_image = learner.predict(params, stats, episode.query.inputs[:1])
  is_equal = np.allclose(all_images[:1], first_image, atol=1e-9)
  assert is_equal == (mode != 'batch')


def test_only_global_statistics_carry_over_to_the_next_task():
  for mode in MODES:
    learner, params, stats = build_learner(norm=mode)
    episode = first_episode()
    _, (after, _) = learner.loss(params, stats, episode)
    has_changed = any(
      not np.allclose(x, y)
      for x, y in zip(
        jax.tree.leaves(stats), jax.tree.leaves(after), strict=True
      )
    )
    assert has_changed == (mode in ('global', 'tasknorm_global')), mode


def test_global_statistics_are_unchanged_at_meta_test():
  learner, params, stats = build_learner(norm='global', meta_test=True)
  episode = first_episode()
  _, after, _ = learner.adapt(params, stats, episode.support)
  jax.tree.map(np.testing.assert_array_equal, after, stats)


@pytest.mark.parametrize('devices', [1, 8])
def test_meta_gradient_makes_episodes_where_they_are_computed(
  monkeypatch, devices
):
  """Equals the gradient on the same episodes made beforehand."""
  monkeypatch.setitem(ENCODERS, 'one_block', OneBlock)
  learner, params, stats = build_learner('global', encoder='one_block')
  images = jnp.array(np.random.RandomState(2).rand(20, SIDE, SIDE, 3))
  keys = jax.random.split(jax.random.key(3), 8)

  def make_episode(images, key):
    rows = jax.random.permutation(key, len(images))

    def batch(rows):
      return Batch(images[rows], jnp.arange(len(rows)) % WAYS)

    num_support = WAYS * SHOTS
    return Episode(batch(rows[:num_support]), batch(rows[num_support:]))

  kwargs = {'mesh': make_mesh(jax.devices()[:devices]), 'tasks_per_chunk': 1}

  @jax.jit
  def from_keys(params, stats, images, keys):
    return meta_gradient(
      learner,
      params,
      stats,
      keys,
      make_episode=make_episode,
      shared=images,
      **kwargs,
    )

  @jax.jit
  def from_episodes(params, stats, episodes):
    return meta_gradient(learner, params, stats, episodes, **kwargs)

  episodes = jax.vmap(make_episode, (None, 0))(images, keys)
  got = from_keys(params, stats, images, keys)
  assert got[2]['loss'].shape == (8,)
  assert_close(got, from_episodes(params, stats, episodes), 1e-12)


def test_divisible_meta_batches_are_accepted():
  require_divisible(8, 8, 1)
  require_divisible(6, 1, 3)
  require_divisible(4, 2)


def test_indivisible_meta_batch_is_rejected_with_suggestions():
  with pytest.raises(UserError) as error:
    require_divisible(6, 4, 2)
  message = str(error.value)
  assert '6 tasks' in message and 'use 8 tasks' in message
  assert '1 or 3 device(s)' in message
  with pytest.raises(UserError, match='use 4 or 8 tasks'):
    require_divisible(6, 4)
  learner, params, stats = build_learner()
  with pytest.raises(UserError, match='in chunks of 3'):
    meta_gradient(learner, params, stats, make_episodes(), tasks_per_chunk=3)


@pytest.mark.parametrize(
  'tasks, devices, kwargs, layout',
  [
    (8, 8, {}, (8, 1)),
    (12, 8, {}, (6, 1)),
    (4, 8, {}, (4, 1)),
    (7, 8, {}, (7, 1)),
    (8, 8, {'tasks_per_chunk': 2}, (4, 1)),
    (4, 8, {'queries': 80}, (8, 2)),
    (4, 8, {'queries': 75}, (4, 1)),  # odd
    (4, 12, {'queries': 75}, (12, 3)),
    (4, 8, {'queries': 80, 'tasks_per_chunk': 2}, (2, 1)),
    (6, 8, {'queries': 80}, (6, 1)),
    (12, 16, {'processes': 4}, (12, 1)),
    (12, 16, {'processes': 2}, (12, 1)),
    (8, 12, {'processes': 4}, (8, 1)),
    (2, 8, {'processes': 4, 'queries': 80}, (8, 4)),
  ],
)
def test_layout_uses_as_many_devices_as_possible(
  tasks, devices, kwargs, layout
):
  assert choose_layout(tasks, devices, **kwargs) == DeviceLayout(*layout)


def test_layout_needs_a_task_per_process():
  with pytest.raises(UserError) as error:
    choose_layout(6, 8, processes=4)
  assert '6 tasks cannot be divided evenly over 4 processes' in str(error.value)
  assert 'use 4 or 8 tasks, or 1 or 2 or 3 processes' in str(error.value)
