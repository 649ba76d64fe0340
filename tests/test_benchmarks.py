"""Tests of the benchmarks: counted operations, rows, tables, and the CLI."""

import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from benchmarks import (
  compare,
  flops,
  pretraining,
  profile,
  run,
  scaling,
  table,
  timing,
  variants,
  with_jax,
  worker,
)
from benchmarks.workload import WORKLOADS, Workload, random_episodes
from maml_jax import config as config_lib
from maml_jax import ops
from maml_jax.experiment import setup
from maml_jax.models.convnet import ConvBlock
from maml_jax.models.norm import BatchNorm
from maml_jax.sharding import make_mesh, mean_over_tasks
from maml_jax.utils.errors import UserError

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIGS = ROOT / 'configs'
GPU_SCRIPT = ROOT / 'benchmarks' / 'gpu.sh'
ROWS = (
  'iteration/5w1s',
  'iteration/evaluation',
  'compile/iteration',
  'memory/5w1s K=5',
  'sampling/draw',
  'sampling/train loop',
  'flops',
  'scaling/8 tasks, 2 simulated devices',
  'variants/im2col',
  'profile',
)
PROFILE = {f'profile/{category}' for category in profile.CATEGORIES}
CPU_ONLY = {'profile', 'variants'}


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
  """Rows of every group at tiny sizes: 'group/name' -> row."""
  path = tmp_path_factory.mktemp('benchmarks') / 'rows.jsonl'
  flags = ['--tiny', '--repeats=2', '--seconds=0', f'--json={path}']
  assert run.main([*flags, '--only', *ROWS]) == 0
  found = [json.loads(line) for line in path.read_text().splitlines()]
  return {f'{row["group"]}/{row["name"]}': row for row in found}


def test_only_selects_groups_and_rows(rows):
  assert set(rows) == {*ROWS, *PROFILE, 'flops/5w1s'} - {'flops', 'profile'}
  assert {row['group'] for row in rows.values()} == set(run.GROUPS)


def test_shares_of_profile_sum_to_one(rows):
  found = [rows[name] for name in sorted(PROFILE)]
  assert sum(row['share'] for row in found) == pytest.approx(1)
  assert rows['profile/convolutions']['ms'] > 0
  assert rows['profile/kernel gradients']['calls'] > 0


@pytest.mark.parametrize(
  'name',
  [
    'pooling after scaling',
    'bias at every pixel',
    'im2col',
    'kernel gradient by im2col',
  ],
)
def test_variants_compute_the_same_and_are_undone(name):
  block = ConvBlock(8, BatchNorm, 'torch')
  images = jax.random.normal(jax.random.key(1), (4, 7, 7, 3))
  init = nn.init(ConvBlock.__call__, block)
  params = init(jax.random.key(0), images, train=True)

  @jax.grad
  def gradient(params, images):
    return jnp.square(block.apply(params, images, train=True) - 1.0).sum()

  def run(dtype=jnp.float32):
    """Returns the program and its result."""
    jax.clear_caches()
    args = params, images.astype(dtype)
    return jax.jit(gradient).lower(*args).as_text(), jax.jit(gradient)(*args)

  dtypes = jnp.float32, jnp.bfloat16
  default = [run(dtype) for dtype in dtypes]
  with variants.variants()[name]:
    program, gradients = run()
  assert program != default[0][0]
  assert_close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
  jax.tree.map(assert_close, gradients, default[0][1])
  for dtype, (program, gradients) in zip(dtypes, default, strict=True):
    program_after, gradients_after = run(dtype)
    assert program_after == program
    jax.tree.map(np.testing.assert_array_equal, gradients_after, gradients)


def test_rows_record_machine_and_versions(rows):
  for row in rows.values():
    assert row['device'] and row['processor'] and row['commit']
    assert row['platform'] in ('cpu', 'gpu', 'tpu') and row['cores'] >= 1
    assert row['jax'] == jax.__version__ and row['devices'] >= 1
    assert row['python'] == '.'.join(map(str, sys.version_info[:3]))
    assert row['precision'] == 'float32' and row['tiny'] is True


def test_medians_are_within_their_range(rows):
  ranges = [
    (row[f'{name}_min'], row[name], row[f'{name}_max'])
    for row in rows.values()
    for name in row
    if f'{name}_min' in row
  ]
  assert len(ranges) >= len(rows)
  assert all(low <= median <= high for low, median, high in ranges)


def test_iteration_row_is_consistent(rows):
  row = rows['iteration/5w1s']
  assert row['tasks_per_s'] == pytest.approx(2 / (row['ms'] / 1e3))
  assert row['used'] == min(2, row['devices'])
  assert row['repeats'] == 2


def test_memory_row_is_consistent(rows):
  row = rows['memory/5w1s K=5']
  assert row['saved'] == pytest.approx(1 - row['mb_remat'] / row['mb'])


def test_flops_row_is_consistent(rows):
  row = rows['flops/5w1s']
  low, high = (row['gflop'] / row[f'ms_{end}'] * 1e3 for end in ('max', 'min'))
  assert row['gflops_min'] == pytest.approx(low)
  assert row['gflops_max'] == pytest.approx(high)
  assert row['share'] > 0
  assert row['matmul_gflops'] > 0


def test_sampling_row_is_consistent(rows):
  row = rows['sampling/draw']
  assert row['alone_share'] == pytest.approx(row['alone_ms'] / row['ms_with'])
  assert row['share'] < 1


def test_scaling_row_is_consistent(rows):
  row = rows['scaling/8 tasks, 2 simulated devices']
  assert row['used'] == row['devices'] == 2
  assert row['platform'] == 'cpu'
  assert row['params'] == 3 * 3 * 3 * 4 + 4 + 4 * 2
  *_, line = scaling.markdown_table([row]).splitlines()
  cells = [cell.strip() for cell in line.strip('|').split('|')]
  assert cells[:4] == ['8 tasks, 2 simulated devices', '120', cells[2], '2']
  per_gflop = row['ms'] / row['gflop']
  assert cells[-1] == f'{per_gflop:.2f} ms'


def test_compile_time_is_split_into_trace_and_compile(rows):
  row = rows['compile/iteration']
  assert row['repeats'] == 1
  for kind in ('cold', 'cached'):
    parts = row[f'{kind}_trace_s'] + row[f'{kind}_compile_s']
    assert 0 < row[f'{kind}_s'] == pytest.approx(parts)


def test_memory_of_meta_iteration_is_below_500_mb():
  """Four tasks run one by one, as on a CPU; remat halves the memory."""
  work = WORKLOADS['5w1s']
  program, _ = with_jax.compile_program(work)
  assert program.memory_analysis().temp_size_in_bytes < 500e6
  program, _ = with_jax.compile_program(work._replace(remat=True))
  assert program.memory_analysis().temp_size_in_bytes < 250e6


@pytest.mark.parametrize(
  ('name', 'preset'),
  [('5w1s', 'mini_5w1s'), ('inductive', 'mini_5w1s_inductive')],
)
def test_workloads_match_configs(name, preset):
  config = config_lib.load(str(CONFIGS / f'{preset}.py'))
  work, inner = WORKLOADS[name], with_jax.inner_config(WORKLOADS[name])
  fields = vars(inner) | {'frozen': tuple(inner.frozen)}
  assert fields == dict(config.inner)
  assert config.model.norm == ('episodic' if work.inductive else 'batch')
  assert config.model.encoder == work.encoder
  assert (config.task.ways, config.task.queries) == (work.ways, work.queries)
  assert config.train.meta_batch_size == work.tasks
  params = {'w': jnp.linspace(-1.0, 1.0, 5)}
  grads = {'w': jnp.array([0.3, -20.0, 0.0, 1.0, 40.0])}
  txs = with_jax.workload_optimizer(work), setup.make_outer_optimizer(config)
  updates = [tx.update(grads, tx.init(params), params)[0]['w'] for tx in txs]
  np.testing.assert_array_equal(*updates)


def test_random_episodes_have_documented_shapes():
  (x, y), (x_query, _) = random_episodes(Workload(shots=2))
  assert x.shape == (4, 10, 84, 84, 3) and x_query.shape == (4, 75, 84, 84, 3)
  assert y[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


# Counting operations: a convolution of N images with C channels and a k x k
# kernel, with an output of H x W x O, has 2 N H W O k k C of them.

IMAGES, KERNEL = jnp.zeros((2, 6, 5, 3)), jnp.zeros((3, 3, 3, 4))
CONV = 2 * (2 * 6 * 5 * 4) * (3 * 3 * 3)


def count_flops(fn, *args):
  return flops.count_flops(jax.make_jaxpr(fn)(*args))


def test_matrix_product_has_two_flops_per_multiply_add():
  a, b = jnp.zeros((7, 2, 3)), jnp.zeros((7, 3, 5))
  assert count_flops(jnp.matmul, a, b) == 2 * 7 * 2 * 3 * 5
  assert count_flops(lambda a: jnp.sin(a) + 1, a) == 0


def test_flops_of_convolutions_match_the_definition():
  assert count_flops(ops.conv, IMAGES, KERNEL) == CONV
  strided = count_flops(lambda x, k: ops.conv(x, k, stride=2), IMAGES, KERNEL)
  assert strided == 2 * (2 * 3 * 3 * 4) * (3 * 3 * 3)
  of_jax = count_flops(
    lambda x, k: lax.conv_general_dilated(
      x, k, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    ),
    IMAGES,
    KERNEL,
  )
  assert of_jax == CONV
  grouped = count_flops(
    lambda x, k: lax.conv_general_dilated(
      x,
      k,
      (1, 1),
      'SAME',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=3,
    ),
    IMAGES,
    jnp.zeros((3, 3, 1, 6)),
  )
  assert grouped == 2 * (2 * 6 * 5 * 6) * (3 * 3 * 1)


def test_gradient_has_the_flops_of_one_convolution_per_operand():
  def loss(x, k):
    return (ops.conv(x, k) ** 2).sum()

  assert count_flops(jax.grad(loss, 0), IMAGES, KERNEL) == 2 * CONV
  assert count_flops(jax.grad(loss, 1), IMAGES, KERNEL) == 2 * CONV
  assert count_flops(jax.grad(loss, (0, 1)), IMAGES, KERNEL) == 3 * CONV
  linear = jax.grad(lambda x, k: ops.conv(x, k).sum(), 1)
  assert (
    count_flops(linear, IMAGES, KERNEL) == CONV
  )  # the forward result is unused


def test_flops_are_summed_over_tasks_with_separate_kernels():
  images, kernels = jnp.zeros((7, *IMAGES.shape)), jnp.zeros((7, *KERNEL.shape))
  assert count_flops(jax.vmap(ops.conv), images, kernels) == 7 * CONV

  def gradients(x, k):
    grad = jax.grad(lambda x, k: ops.conv(x, k).sum(), 1)
    return jax.vmap(grad)(x, k)

  assert count_flops(gradients, images, kernels) == 7 * CONV


def test_flops_of_loops_and_branches():
  a = jnp.zeros((4, 4))

  def looped(a):
    step = jax.checkpoint(lambda c, _: (jnp.sin(c @ a), None))
    return lax.scan(step, a, length=5)[0]

  def branched(flag, a):
    return lax.cond(flag, lambda a: a @ a @ a, lambda a: a @ a, a)

  assert count_flops(jax.jit(looped), a) == 5 * 128
  assert count_flops(branched, True, a) == 2 * 128
  # Products: 5 forward, 5 recomputed in the backward pass, 2 gradients each.
  assert (
    count_flops(jax.grad(lambda a: looped(a).sum()), a) == (5 + 5 + 10) * 128
  )
  with pytest.raises(ValueError, match='cannot count a while loop'):
    count_flops(lambda a: lax.while_loop(lambda x: x[0, 0] > 0, looped, a), a)


def test_flops_are_summed_over_devices():
  def one_task(k, x):
    return ops.conv(x, k).sum(), ()

  images = jnp.zeros((2, *IMAGES.shape))
  for mesh in (None, make_mesh(jax.devices()[:2])):
    over_tasks = mean_over_tasks(one_task, mesh, 1)
    assert count_flops(over_tasks, KERNEL, images) == 2 * CONV


@pytest.mark.parametrize('name', ['evaluation', 'first_order'])
def test_flops_of_iteration_match_sum_over_layers(name):
  """ConvNet4 on 84, 42, 21 and 10 pixels, and a head."""
  work = WORKLOADS[name]
  first, *rest = (
    2 * side**2 * 32 * 9 * channels
    for side, channels in ((84, 3), (42, 32), (21, 32), (10, 32))
  )
  head = 2 * (5 * 5 * 32) * 5
  forward = first + sum(rest) + head
  # Backward: the gradients of kernels and inputs, but not of images.
  both = forward + first + 2 * (sum(rest) + head)
  support, query = 5 * work.num_steps, 5 * 15
  total = support * both + query * (forward if work.evaluation else both)
  fn, args = with_jax.make_program(work)
  assert count_flops(fn, *args) == 4 * total


# Timing and tables


def test_functions_are_timed_in_alternating_order(monkeypatch):
  order = []
  calls = {
    name: lambda name=name: order.append(name) or jnp.zeros(()) for name in 'ab'
  }
  monkeypatch.setattr(timing, 'SECONDS_PER_SAMPLE', 0.0)
  times = timing.time_interleaved(calls, timing.Settings(repeats=3))
  assert ''.join(order) == 'aabb' + 'ab' + 'ba' + 'ab'
  assert [len(times[name]) for name in 'ab'] == [3, 3]


def test_at_least_two_samples_are_taken():
  settings = timing.Settings(repeats=9, seconds=-1)  # always exceeded
  times = timing.time_interleaved({'a': lambda: jnp.zeros(())}, settings)
  assert len(times['a']) == 2


def test_milliseconds_returns_median_and_range():
  assert timing.milliseconds('ms', [0.004, 0.001, 0.002]) == {
    'ms': 2.0,
    'ms_min': 1.0,
    'ms_max': 4.0,
  }


def test_table_shows_ranges_missing_values_and_failures(capsys):
  shown = table.Table(
    {'ms': table.RangeFormat('.1f'), 'used': 'd'}, ['a', 'long name', 'c']
  )
  shown.start_row('a')
  shown.finish_row({'ms': 2.0, 'ms_min': 1.0, 'ms_max': 4.04, 'used': 3})
  shown.start_row('long name')
  shown.finish_row({'used': 4})
  shown.start_row('c')
  shown.fail_row(UserError('no memory\nmore'))
  header, first, second, third = capsys.readouterr().out.splitlines()
  assert header.split() == ['ms', 'used']
  assert first.split() == ['a', '2.0', '(1.0..4.0)', '3']
  assert second.split() == ['long', 'name', '4']
  assert third == 'c          failed: no memory'
  assert first.index('3', 12) == second.index('4') == header.index('used') + 3


def test_unknown_group_suggests_closest_name(capsys):
  with pytest.raises(SystemExit):
    run.main(['--only', 'iteraton'])
  assert 'did you mean iteration?' in capsys.readouterr().err


def test_failed_row_does_not_abort_the_run(tmp_path, capsys):
  def fail():
    raise UserError('out of memory')

  rows = {'a': fail, 'b': lambda: timing.median_and_range('ms', [1.0])}
  path = tmp_path / 'rows.jsonl'
  settings = timing.Settings(tiny=True)
  assert run.measure_all({'iteration': rows}, settings, path) == 1
  assert 'failed: out of memory' in capsys.readouterr().out
  assert json.loads(path.read_text())['name'] == 'b'


def test_run_module_reports_error_of_the_process():
  with pytest.raises(UserError, match='invalid int value'):
    timing.run_module('benchmarks.scaling', 'x', precision='float32')


# Comparison with other libraries


class FakeWorker:
  """A worker without a process, whose iterations take a given time."""

  def __init__(self, seconds, log, name):
    self.seconds, self.log, self.name = seconds, log, name

  def wait_until_ready(self):
    return {'device': 'cpu'}

  def time_iteration(self):
    self.log.append(self.name)
    return self.seconds

  def close(self):
    self.log.append(f'{self.name} closed')


@pytest.fixture
def worker_log(monkeypatch):
  """Replaces workers by `FakeWorker`; returns the log of their calls."""
  log = []
  seconds = {'maml_jax': 0.5, 'pytorch_maml': 1.0, 'learn2learn': 2.0}
  seconds['pytorch'] = 2.0
  monkeypatch.setattr(
    compare,
    'Worker',
    lambda python, name, *_, **__: FakeWorker(seconds[name], log, name),
  )
  return log


COMPARE_FLAGS = '--pytorch_maml=a --learn2learn=b --workloads 5w1s'.split()


def test_libraries_are_timed_in_alternating_order(worker_log, tmp_path, capsys):
  path = tmp_path / 'rows.jsonl'
  assert compare.main([*COMPARE_FLAGS, '--pairs=2', f'--json={path}']) == 0
  names = ['maml_jax', 'pytorch_maml', 'learn2learn']
  assert worker_log[:9] == [*names, *names[::-1], *names]
  assert all(f'{name} closed' in worker_log for name in names)
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert [(r['peer'], r['ratio']) for r in rows] == [
    ('pytorch_maml', 2.0),
    ('learn2learn', 4.0),
  ]
  assert all(r['differs'] and r['device'] == 'cpu' for r in rows)
  assert 'learn2learn   2.000 s =  4.00 x' in capsys.readouterr().out


def test_library_that_cannot_run_is_skipped(worker_log, monkeypatch, capsys):
  def wait_until_ready(worker):
    if worker.name == 'learn2learn':
      raise UserError('ModuleNotFoundError: no torch')
    return {}

  monkeypatch.setattr(FakeWorker, 'wait_until_ready', wait_until_ready)
  assert compare.main([*COMPARE_FLAGS, '--pairs=1']) == 1
  out = capsys.readouterr().out
  assert 'learn2learn skipped: ModuleNotFoundError: no torch' in out
  assert 'pytorch_maml: median ratio 2.00' in out


def test_pretraining_is_measured_in_images_per_second(worker_log, capsys):
  assert pretraining.main(['--pairs=2']) == 0
  row = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert row['maml_jax_images_per_second'] == 256
  assert row['pytorch_images_per_second'] == 64
  assert row['ratio'] == row['ratio_min'] == 4


def test_worker_reports_why_it_cannot_run():
  out = io.StringIO()
  worker.serve(out, 'pytorch_maml', '5w1s', 'float32', '/missing')
  error = json.loads(out.getvalue())['error']
  assert error.startswith('ModuleNotFoundError')


# The script for machines with a GPU, with an echo in place of Python


@pytest.fixture
def run_gpu_script(tmp_path):
  """Returns a function that runs PARTS: parts -> exit status, output."""
  if not shutil.which('setsid'):
    pytest.skip('the script needs Linux')
  python = tmp_path / 'python'
  fail = 'case "$*" in "-m pytest"*) exit 1; esac'
  python.write_text(f'#!/bin/sh\necho "ran $*"\n{fail}\n')
  python.chmod(0o755)
  env = {'OUT': f'{tmp_path}/out', 'PYTHON': f'{python}', 'TRY': '1'}

  def run_script(parts):
    done = subprocess.run(
      [GPU_SCRIPT],
      env=os.environ | env | {'PARTS': parts, 'MAML_JAX_DATA': ''},
      capture_output=True,
      text=True,
    )
    return done.returncode, done.stdout

  return run_script


def test_gpu_script_repeats_only_failed_steps(run_gpu_script):
  status, out = run_gpu_script('tests,bench')
  assert status == 1
  assert 'tests: failed (1)' in out
  groups = ' '.join(line for line in out.splitlines() if '--only' in line)
  for group in run.GROUPS.keys() - CPU_ONLY:
    assert f'--only {group}' in groups
  status, out = run_gpu_script('bench,tests')
  assert status == 1
  assert '-m pytest' in out
  assert '--only' not in out
  assert run_gpu_script('bench')[0] == 0


def test_gpu_script_tests_exist(run_gpu_script):
  _, out = run_gpu_script('tests')
  paths = re.findall(r'tests/\w+\.py', out)
  assert paths
  assert all((ROOT / path).exists() for path in paths)


def test_gpu_script_skips_training_without_data(run_gpu_script):
  status, out = run_gpu_script('train,eval')
  assert status == 0
  assert 'training: skipped' in out
  assert 'ran' not in out


def test_gpu_script_rejects_unknown_part(run_gpu_script):
  status, out = run_gpu_script('bnch')
  assert status == 1
  assert 'error: PARTS: unknown part bnch' in out
