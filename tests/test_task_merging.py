"""Tests of networks that process the channels of several tasks side by side.

The reference processes the tasks one after another.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax import ops
from maml_jax.config import load_preset
from maml_jax.experiment import setup
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
from maml_jax.sharding import make_mesh
from maml_jax.utils.errors import UserError

WAYS, SHAPE = 3, (17, 18, 3)


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


class TwoBlocks(ConvNet4):
  """The first two blocks of ConvNet4, which compile in half the time."""

  @nn.compact
  def __call__(self, x, *, train, context=None):
    x = ops.merge_channels(x)
    for name in ('conv1', 'conv2'):
      block = ConvBlock(self.width, self.norm(name), self.init, name=name)
      x = block(x, train=train)
    return ops.split_channels(x).reshape(x.shape[0], -1)


@pytest.fixture(autouse=True)
def two_blocks(monkeypatch):
  monkeypatch.setitem(ENCODERS, 'two_blocks', TwoBlocks)


def make_episodes(num_tasks, shots=2, queries=3):
  r = np.random.default_rng(0)

  def batch(n):
    images = r.normal(size=(num_tasks, WAYS * n, *SHAPE))
    return Batch(
      jnp.asarray(images),
      jnp.asarray(np.tile(np.repeat(np.arange(WAYS), n), (num_tasks, 1))),
    )

  return Episode(batch(shots), batch(queries))


def make_run(
  inner, outer=None, num_tasks=3, encoder='two_blocks', norm='batch'
):
  """Returns a function from a layout to the result of `meta_gradient`."""
  network = make_model(encoder, WAYS, SHAPE, width=5, norm=norm)
  inner = InnerConfig(
    **{'num_steps': 2, 'encoder_lr': 0.1, 'classifier_lr': 0.2} | inner
  )
  learner = make_learner(network, inner, outer and OuterConfig(**outer))
  init = jax.tree.map(
    lambda x: x.astype(jnp.float64), learner.init(jax.random.key(1))
  )
  args = (*init, make_episodes(num_tasks))
  return lambda **layout: jax.jit(
    lambda *args: meta_gradient(learner, *args, **layout)
  )(*args)


def assert_equal(results, expected):
  scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected[0]))
  for x, y in zip(*map(jax.tree.leaves, (results, expected)), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-12 * scale)


@pytest.mark.parametrize(
  'norm', ['batch', 'episodic', 'cumulative', 'support', 'tasknorm_global']
)
def test_merged_tasks_equal_separate_tasks(norm):
  run = make_run({}, norm=norm)
  assert_equal(run(merge_tasks=True), run(tasks_per_chunk=1))


def test_merged_tasks_of_convnet4():
  run = make_run({'remat': False}, encoder='convnet4')
  assert_equal(run(merge_tasks=True), run(tasks_per_chunk=1))


@pytest.mark.parametrize(
  ('inner', 'outer'),
  [
    ({'mixed_mode': True, 'momentum': 0.5}, {}),
    (
      {'learn_lr': 'parameter', 'per_step': ('lr', 'bn'), 'frozen': ('bn',)},
      {'loss_steps': 'all', 'loss_epochs': 3},
    ),
    ({'head': 'prototype'}, {'gradient': 'first_order'}),
    ({'frozen': ('encoder/conv1', '**/bn')}, {}),
  ],
  ids=['mixed', 'learned', 'prototype', 'frozen'],
)
def test_merging_does_not_depend_on_the_method(inner, outer):
  run = make_run(inner, outer)
  assert_equal(run(merge_tasks=True), run(tasks_per_chunk=1))


def test_merged_chunks_on_two_devices():
  run = make_run({}, num_tasks=8)
  layout = {'mesh': make_mesh(jax.devices()[:2]), 'tasks_per_chunk': 2}
  assert_equal(run(merge_tasks=True, **layout), run(tasks_per_chunk=1))


def test_merged_tasks_equal_op_by_op_execution():
  run = make_run({})
  with jax.disable_jit():
    expected = run(tasks_per_chunk=1)
  assert_equal(run(merge_tasks=True), expected)


def test_merged_program_has_no_grouped_convolution_and_no_task_axis():
  """All arrays of the size of images have the channels of all tasks."""
  run = make_run({})
  text = str(jax.make_jaxpr(lambda: run(merge_tasks=True))())
  convolutions = [line for line in text.splitlines() if ' conv[' in line]
  assert convolutions
  # float64 [N, H, W, T * C]: three leading axes, whatever the pass.
  for line in convolutions:
    assert line.split(':f64[')[1].split(']')[0].count(',') == 3
  assert 'stack_tasks' not in text


def test_other_vmap_axes_are_kept():
  """Three images of each of two tasks, each image with a vmap of its own."""

  def of_task(x):
    return jax.vmap(lambda x: ops.split_channels(ops.merge_channels(x) ** 2))(x)

  x = jnp.arange(2 * 3 * 4.0).reshape(2, 3, 4)
  np.testing.assert_array_equal(ops.vmap_merged(of_task, 0)(x), x**2)
  gradient = jax.grad(lambda x: ops.vmap_merged(of_task, 0)(x).sum())(x)
  np.testing.assert_array_equal(gradient, 2 * x)


def test_channels_of_other_tasks_do_not_leak():
  """Each task's features depend on its own images only."""
  model = make_model('two_blocks', WAYS, SHAPE, width=5)
  params, stats = model.init(jax.random.key(0))
  images = make_episodes(3).support.inputs

  def features(images):
    return model.features(params, stats, images, train=True)[0]

  jacobian = jax.jacrev(
    lambda x: ops.vmap_merged(features, 0)(x).sum((1, 2)).astype(float)
  )(images)
  for i in range(3):
    for j in range(3):
      assert bool(jnp.any(jacobian[i, j] != 0)) == (i == j)


def test_mixing_merged_channels_with_those_of_one_task_is_an_error():
  def of_task(x):
    return ops.split_channels(ops.merge_channels(x) * jnp.tile(x, 2))

  with pytest.raises(ValueError, match='combined with those of one task'):
    ops.vmap_merged(of_task, 0)(jnp.ones((2, 4)))


@pytest.mark.parametrize(
  ('encoder', 'args'), [('resnet12', {}), ('convnet4', {'context_size': 2})]
)
def test_merging_other_networks_is_an_error(encoder, args):
  model = make_model(encoder, WAYS, SHAPE, **args)
  learner = make_learner(model, InnerConfig())
  params, stats = jax.eval_shape(learner.init, jax.random.key(0))
  with pytest.raises(UserError, match='needs a ConvNet4 without a context'):
    jax.eval_shape(
      lambda *args: meta_gradient(learner, *args, merge_tasks=True),
      params,
      stats,
      make_episodes(2),
    )


@pytest.mark.parametrize(
  ('fields', 'chunk', 'merges'),
  [
    ({}, 1, False),
    ({'train.tasks_per_chunk': 4}, 4, True),
    ({'precision': 'bfloat16'}, 4, True),
    ({'train.tasks_per_chunk': 2}, 2, True),
    ({'train.tasks_per_chunk': 1}, 1, False),
    ({'train.meta_batch_size': 16, 'train.tasks_per_chunk': 8}, 8, False),
    ({'precision': 'tf32', 'model.encoder': 'wide_convnet4'}, 2, True),
    ({'precision': 'bfloat16', 'model.encoder': 'resnet12'}, 1, False),
    ({'precision': 'bfloat16', 'model.context_size': 3}, 1, False),
  ],
  ids=str,
)
def test_networks_that_are_merged_in_training(
  monkeypatch, fields, chunk, merges
):
  monkeypatch.setattr('maml_jax.platforms.mesh_platform', lambda mesh: 'tpu')
  config = load_preset('mini_5w1s')
  config.update_from_flattened_dict(fields)
  sharding = setup.train_sharding(
    config, split_queries=False, devices=jax.devices()[:1]
  )
  assert (sharding.tasks_per_chunk, sharding.merge_tasks) == (chunk, merges)
