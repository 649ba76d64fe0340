"""Every program that ships, jitted, against its op-by-op run.

Compiled gradients have been wrong by 100 % without any error; so second order,
first order and evaluation are each compared with `jax.disable_jit`, task by
task, under vmap, in chunks and on eight devices.
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
  mean_over_tasks,
  require_divisible,
)
from maml_jax.utils.errors import UserError

WAYS, SHOTS, QUERIES, SIDE = 3, 2, 2, 16
LAYOUTS = {
  'vmap': {},
  'chunk 1': {'chunk': 1},
  'chunk 2': {'chunk': 2},
  '8 devices': {'devices': 8},
  '2 devices, chunk 2': {'devices': 2, 'chunk': 2},
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


def episodes(tasks=8):
  r = np.random.RandomState(0)

  def batch(per_class):
    image = r.rand(tasks, WAYS * per_class, SIDE, SIDE, 3)
    label = np.tile(np.repeat(np.arange(WAYS), per_class), (tasks, 1))
    return Batch(jnp.array(image), jnp.array(label))

  support = batch(SHOTS)
  return Episode(support, batch(QUERIES))


@functools.cache
def build(norm='batch', meta_test=False, encoder='convnet4', **inner):
  model = make_model(
    encoder, WAYS, (SIDE, SIDE, 3), norm=norm, width=4, meta_test=meta_test
  )
  params, stats = model.init(jax.random.key(0))
  # Away from the initial 0 and 1, where mistakes could hide.
  noise = np.random.RandomState(1)
  params, stats = jax.tree.map(
    lambda x: (
      jnp.abs(x + 0.1 * noise.randn(*x.shape))
      if x.shape and x.min() >= 0
      else jnp.asarray(x + 0.1 * noise.randn(*x.shape))
    ),
    (params, stats),
  )
  return make_learner(model, InnerConfig(**INNER | inner)), params, stats


def program(kind, learner, devices=None, chunk=None):
  """(params, stats, episodes) -> what this kind of program ships."""
  mesh = make_mesh(jax.devices()[:devices]) if devices else None
  if kind != 'evaluation':
    return lambda params, stats, episodes: meta_gradient(
      learner, params, stats, episodes, mesh=mesh, tasks_per_chunk=chunk
    )

  def one_task(shared, episode):
    return (), learner.loss(*shared, episode)[1][1]

  return lambda params, stats, episodes: mean_over_tasks(one_task, mesh, chunk)(
    (params, stats), episodes
  )


def op_by_op(kind, learner, *args):
  with jax.disable_jit():
    return program(kind, learner, chunk=1)(*args)


@functools.cache
def reference(kind):
  return op_by_op(kind, *build(**kinds(kind)), episodes())


def kinds(kind):
  return {
    'second order': {},
    'first order': {'first_order': True},
    'evaluation': {'num_steps': 3},
  }[kind]


def assert_close(got, expected, tolerance=1e-9):
  def check(x, y):
    x, y = np.asarray(x), np.asarray(y)
    scale = max(1.0, np.abs(y).max(initial=0))
    np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * scale)

  jax.tree.map(check, got, expected)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('kind', ['second order', 'first order', 'evaluation'])
def test_jitted_equals_op_by_op(kind, layout):
  learner, params, stats = build(**kinds(kind))
  run = jax.jit(program(kind, learner, **LAYOUTS[layout]))
  assert_close(run(params, stats, episodes()), reference(kind))


class OneBlock(ConvNet4):
  """The first block of ConvNet4, which is compiled soon."""

  @nn.compact
  def __call__(self, x, *, train):
    block = ConvBlock(self.width, self.norm('conv1'), self.init)
    return block(x, train=train).mean((1, 2))


@pytest.mark.parametrize(
  'mode, devices, inner',
  [
    ('batch', (1, 2, 4, 8), {}),
    *((mode, (1, 8), {}) for mode in MODES if mode != 'batch'),
    ('global', (1, 8), {'first_order': True}),
    ('global', (1, 8), {'remat': True}),
    ('global', (1, 8), {'first_order': True, 'remat': True}),
  ],
)
def test_any_number_of_devices_gives_the_same(
  monkeypatch, mode, devices, inner
):
  """Gradients, statistics and metrics of each task."""
  monkeypatch.setitem(ENCODERS, 'one_block', OneBlock)
  learner, params, stats = build(mode, encoder='one_block', **inner)
  results = []
  for number in devices:
    run = jax.jit(program('gradient', learner, devices=number, chunk=1))
    results.append(run(params, stats, episodes()))
  for other in results[1:]:
    assert_close(other, results[0], 1e-13)


def test_sums_as_accelerators_take_them(monkeypatch):
  monkeypatch.setattr(sharding, 'uses_all_gather', lambda mesh: False)
  learner, params, stats = build()
  run = jax.jit(program('second order', learner, devices=8))
  assert_close(run(params, stats, episodes()), reference('second order'))


@pytest.mark.parametrize('mode', [m for m in MODES if m != 'batch'])
@pytest.mark.parametrize('meta_test', [False, True])
def test_jitted_equals_op_by_op_in_every_norm_mode(mode, meta_test):
  kind = 'evaluation' if meta_test else 'second order'
  learner, *state = build(norm=mode, meta_test=meta_test)
  args = *state, episodes(4)
  # One layout that vectorises and spreads over devices at once.
  run = jax.jit(program(kind, learner, devices=2, chunk=2))
  assert_close(run(*args), op_by_op(kind, learner, *args))


def test_float32_programs_equal_op_by_op():
  """At the width that ships, in the precision that ships."""
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
    run = program('second order', learner, chunk=1)
    compiled = jax.jit(run)(*args)
    with jax.disable_jit():
      assert_close(compiled, run(*args), 1e-3)


def test_mixed_mode_on_devices_equals_the_default_op_by_op():
  learner, params, stats = build(mixed_mode=True)
  run = jax.jit(program('second order', learner, devices=8))
  got = run(params, stats, episodes())
  assert_close(got, reference('second order'), 1e-12)


@pytest.mark.parametrize(
  'norm', [MODES[:4], MODES[4:] + ('batch', 'batch')], ids=str
)
def test_mixed_mode_equals_the_default_in_every_norm_mode(norm):
  results = []
  for mixed_mode in (True, False):
    learner, params, stats = build(
      norm=tuple((f'conv{i}', mode) for i, mode in enumerate(norm, 1)),
      mixed_mode=mixed_mode,
      frozen=('bn', 'conv3'),
      reset_classifier=True,
    )
    run = jax.jit(program('second order', learner, devices=2, chunk=2))
    results.append(run(params, stats, episodes(4)))
  assert_close(*results, 1e-12)


def test_mixed_mode_op_by_op_equals_the_default():
  learner, params, stats = build(mixed_mode=True, remat=False)
  got = op_by_op('second order', learner, params, stats, episodes())
  assert_close(got, reference('second order'), 1e-12)


@pytest.mark.parametrize('first_order', [True, False])
def test_remat_changes_nothing(first_order):
  results = []
  for remat in (True, False):
    learner, params, stats = build(first_order=first_order, remat=remat)
    run = jax.jit(program('second order', learner, chunk=1))
    results.append(run(params, stats, episodes(1)))
  assert_close(*results)


def test_meta_gradient_equals_finite_differences():
  """Central ones, so close together that no ReLU or maximum changes sides."""
  learner, params, stats = build()
  episode = jax.tree.map(lambda x: x[0], episodes(1))
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
def test_inductive_modes_judge_each_image_alone(mode):
  """And `batch` does not: it is transductive."""
  learner, params, stats = build(norm=mode)
  episode = jax.tree.map(lambda x: x[0], episodes(1))
  params, stats, _ = learner.adapt(params, stats, episode.support)
  together = learner.predict(params, stats, episode.query.inputs)
  alone = learner.predict(params, stats, episode.query.inputs[:1])
  assert np.allclose(together[:1], alone, atol=1e-9) == (mode != 'batch')


def test_a_task_keeps_its_own_statistics_to_itself():
  for mode in MODES:
    learner, params, stats = build(norm=mode)
    episode = jax.tree.map(lambda x: x[0], episodes(1))
    _, (after, _) = learner.loss(params, stats, episode)
    moved = any(
      not np.allclose(x, y)
      for x, y in zip(
        jax.tree.leaves(stats), jax.tree.leaves(after), strict=True
      )
    )
    assert moved == (mode == 'global'), mode


def test_global_statistics_stay_at_meta_test():
  learner, params, stats = build(norm='global', meta_test=True)
  episode = jax.tree.map(lambda x: x[0], episodes(1))
  _, after, _ = learner.adapt(params, stats, episode.support)
  jax.tree.map(np.testing.assert_array_equal, after, stats)


def test_even_meta_batches_are_taken():
  require_divisible(8, 8, 1)
  require_divisible(6, 1, 3)
  require_divisible(4, 2)


def test_uneven_meta_batches_are_refused_with_numbers_that_work():
  with pytest.raises(UserError) as error:
    require_divisible(6, 4, 2)
  message = str(error.value)
  assert '6 tasks' in message and 'take 8 tasks' in message
  assert '1 or 3 device(s)' in message
  with pytest.raises(UserError, match='take 4 or 8 tasks'):
    require_divisible(6, 4)
  learner, params, stats = build()
  with pytest.raises(UserError, match='in chunks of 3'):
    meta_gradient(learner, params, stats, episodes(), tasks_per_chunk=3)


@pytest.mark.parametrize(
  'tasks, devices, more, layout',
  [
    (8, 8, {}, (8, 1)),
    (12, 8, {}, (6, 1)),
    (4, 8, {}, (4, 1)),
    (7, 8, {}, (7, 1)),
    (8, 8, {'chunk': 2}, (4, 1)),
    (4, 8, {'queries': 80}, (8, 2)),
    (4, 8, {'queries': 75}, (4, 1)),  # odd
    (4, 12, {'queries': 75}, (12, 3)),
    (4, 8, {'queries': 80, 'chunk': 2}, (2, 1)),
    (6, 8, {'queries': 80}, (6, 1)),
    (12, 16, {'processes': 4}, (12, 1)),
    (12, 16, {'processes': 2}, (12, 1)),
    (8, 12, {'processes': 4}, (8, 1)),
    (2, 8, {'processes': 4, 'queries': 80}, (8, 4)),
  ],
)
def test_most_devices_that_can_be_used_are_used(tasks, devices, more, layout):
  assert choose_layout(tasks, devices, **more) == DeviceLayout(*layout)


def test_every_process_needs_a_task():
  with pytest.raises(UserError) as error:
    choose_layout(6, 8, processes=4)
  assert '6 tasks do not divide over 4 processes' in str(error.value)
  assert 'take 4 or 8 tasks, or 1 or 2 or 3 processes' in str(error.value)
