"""Tests of `maml_jax.sharding`; test_learner.py tests layouts and gradients."""

import os
import subprocess
import sys
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax.learner import (
  Batch,
  Episode,
  InnerConfig,
  Model,
  make_learner,
  meta_gradient,
)
from maml_jax.platforms import (
  default_tasks_per_chunk,
  merged_tasks_per_chunk,
  unrolls_inner_loop,
)
from maml_jax.sharding import (
  make_mesh,
  map_tasks,
)
from maml_jax.utils.errors import UserError

ONE_DEVICE_PER_CORE = """
from maml_jax.sharding import one_device_per_core
one_device_per_core({meta_batch_size}, {tasks_per_chunk})
import jax
print(jax.device_count())"""


def count_devices(
  meta_batch_size, tasks_per_chunk=1, setup_code='', **environment
):
  """Returns the number of devices of a new process."""
  code = setup_code + ONE_DEVICE_PER_CORE.format(
    meta_batch_size=meta_batch_size, tasks_per_chunk=tasks_per_chunk
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    env=os.environ | {'JAX_PLATFORMS': 'cpu'} | environment,
    capture_output=True,
    text=True,
    check=True,
  )
  return int(done.stdout)


@pytest.mark.parametrize(
  'meta_batch_size, tasks_per_chunk', [(4, 1), (6, 3), (7, 1)]
)
def test_cpu_has_as_many_devices_as_tasks_divide_over(
  meta_batch_size, tasks_per_chunk
):
  cores = len(os.sched_getaffinity(0))
  divisors = [
    n
    for n in range(1, cores + 1)
    if meta_batch_size % (n * tasks_per_chunk) == 0
  ]
  assert count_devices(meta_batch_size, tasks_per_chunk) == max(divisors)


def test_configured_number_of_devices_is_kept():
  flag = '--xla_force_host_platform_device_count=3'
  assert count_devices(4, XLA_FLAGS=flag) == 3
  setup_code = "import jax; jax.config.update('jax_num_cpu_devices', 5)\n"
  assert count_devices(4, setup_code=setup_code) == 5


def test_number_of_devices_is_kept_once_jax_is_initialized():
  setup_code = 'import jax; jax.devices()\n'
  assert count_devices(4, setup_code=setup_code) == 1


def test_devices_may_wait_long_for_each_other():
  """XLA's default of 40 s ends processes on machines that are busy."""
  code = ONE_DEVICE_PER_CORE.format(meta_batch_size=4, tasks_per_chunk=1)
  given = '--xla_cpu_collective_call_warn_stuck_timeout_seconds=9'
  done = subprocess.run(
    [
      sys.executable,
      '-c',
      f"{code}; import os; print(os.environ['XLA_FLAGS'])",
    ],
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': given},
    capture_output=True,
    text=True,
    check=True,
  )
  added, kept = done.stdout.splitlines()[-1].split()
  name, seconds = added.split('=')
  assert name == '--xla_cpu_collective_call_terminate_timeout_seconds'
  assert int(seconds) > 3600 and kept == given


def scale_and_sum(shared, task):
  """Returns a tree of results that differ in shape and dtype."""
  scaled = shared['scale'] * task['x']
  return {'scaled': scaled, 'total': (scaled.sum(), task['id'] + 1)}


@pytest.mark.parametrize('devices', [None, 8])
@pytest.mark.parametrize('tasks_per_chunk', [None, 1, 2])
def test_map_tasks_equals_a_loop(devices, tasks_per_chunk):
  tasks = {
    'x': jnp.array(np.random.RandomState(0).randn(16, 3), jnp.float32),
    'id': jnp.arange(16),
  }
  shared = {'scale': jnp.array([1.0, 2.0, 3.0], jnp.float32)}
  mesh = make_mesh(jax.devices()[:devices]) if devices else None
  results = jax.jit(map_tasks(scale_and_sum, mesh, tasks_per_chunk))(
    shared, tasks
  )
  expected = [
    scale_and_sum(shared, jax.tree.map(lambda x, i=i: x[i], tasks))
    for i in range(16)
  ]
  expected = jax.tree.map(lambda *x: np.stack(x), *expected)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), results, expected
  )
  assert results['total'][1].dtype == jnp.int32


def test_map_tasks_rejects_indivisible_tasks():
  run = map_tasks(lambda shared, task: task, make_mesh())
  with pytest.raises(UserError, match='use 8 tasks'):
    run((), jnp.arange(6))


@pytest.mark.parametrize(
  'layout',
  [
    {},
    {'tasks_per_chunk': 1},
    {'tasks_per_chunk': 2},
    {'devices': 8},
    {'devices': 2, 'tasks_per_chunk': 2},
  ],
  ids=str,
)
@pytest.mark.parametrize('mixed_mode', [False, True])
def test_counters_and_random_keys_in_statistics_keep_their_types(
  layout, mixed_mode
):
  """A network with dropout that counts its support passes, 3 per task."""

  def apply(params, stats, inputs, *, train):
    hidden = jnp.tanh(inputs @ params['encoder'])
    if train:
      key, mask_key = jax.random.split(stats['key'])
      hidden *= jax.random.bernoulli(mask_key, 0.5, hidden.shape)
      stats = {**stats, 'key': key, 'count': stats['count'] + 1}
    return hidden @ params['classifier'], stats

  r = np.random.RandomState(0)
  params = {
    'encoder': jnp.float32(r.randn(3, 4)),
    'classifier': jnp.float32(r.randn(4, 2)),
  }
  stats = {
    'count': jnp.int32(4),
    'key': jax.random.key(1),
    'raw': jax.random.PRNGKey(2),
    'flag': jnp.array(True),
  }
  inner = InnerConfig(num_steps=3, mixed_mode=mixed_mode)
  learner = make_learner(Model(None, apply), inner)
  targets = jnp.tile(jnp.arange(6) % 2, (8, 1))
  episodes = Episode(
    *(Batch(jnp.float32(r.randn(8, 6, 3)), targets) for _ in range(2))
  )
  layout = dict(layout)
  if devices := layout.pop('devices', None):
    layout['mesh'] = make_mesh(jax.devices()[:devices])
  run = jax.jit(lambda *args: meta_gradient(learner, *args, **layout))
  grads, new, _ = run(params, stats, episodes)
  assert {k: x.dtype for k, x in new.items()} == {
    k: x.dtype for k, x in stats.items()
  }
  assert new['count'] == 7 and new['flag']
  np.testing.assert_array_equal(new['raw'], stats['raw'])
  key = stats['key']
  for _ in range(3):
    key = jax.random.split(key)[0]
  assert new['key'] == key
  expected = jax.vmap(
    jax.grad(learner.loss, has_aux=True), in_axes=(None, None, 0)
  )(params, stats, episodes)[0]
  for name, x in grads.items():
    np.testing.assert_allclose(x, expected[name].mean(0), atol=1e-6)


class MeshOf:
  """A mesh of one device of a platform that this machine may lack."""

  def __init__(self, platform):
    self.devices = np.array([self])
    self.platform = platform


@dataclass(frozen=True)
class Tpu:
  """A chip of a host with 2 x 2."""

  id: int
  coords: tuple[int, int, int]
  core_on_chip: int = 0
  process_index: int = 0
  platform: str = 'tpu'
  device_kind: str = 'TPU v5 lite'


@pytest.mark.parametrize('count', [1, 3, 4])
def test_mesh_of_any_number_of_tpus(count):
  chips = [Tpu(i, (i % 2, i // 2, 0)) for i in range(count)]
  assert list(make_mesh(chips).devices) == chips


@pytest.mark.parametrize(
  ('platform', 'tasks'), [('cpu', 1), ('tpu', 1), ('gpu', None)]
)
def test_platform_of_the_mesh_decides_the_tasks_per_chunk(platform, tasks):
  assert default_tasks_per_chunk(MeshOf(platform)) == tasks


@pytest.mark.parametrize(
  ('platform', 'steps', 'unrolls'),
  [
    ('cpu', 1, False),
    ('tpu', 5, True),
    ('tpu', 6, False),
    ('gpu', 10, True),
    ('gpu', 20, False),
  ],
)
def test_short_inner_loops_are_unrolled_on_accelerators(
  platform, steps, unrolls
):
  assert unrolls_inner_loop(MeshOf(platform), steps) == unrolls


@pytest.mark.parametrize(
  ('platform', 'width', 'tasks', 'expected'),
  [
    ('tpu', 32, 4, 4),
    ('tpu', 32, 8, 4),
    ('tpu', 32, 6, 3),
    ('tpu', 64, 4, 2),
    ('tpu', 256, 4, 1),
    ('tpu', 32, 1, 1),
    ('cpu', 32, 4, 1),
    ('gpu', 32, 4, 1),
  ],
)
def test_tasks_are_merged_to_fill_the_lanes_of_tpus(
  platform, width, tasks, expected
):
  assert merged_tasks_per_chunk(MeshOf(platform), width, tasks) == expected
